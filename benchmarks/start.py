"""What a run costs besides embedding: ``python -m benchmarks.start``.

Runs the command on a few ten-second clips: alone with empty caches below ``paths.models``, alone again, and as a sweep
of four jobs; rounds are interleaved, in an outputs folder that earlier rounds have filled, and medians are printed.
``--against CHECKOUT`` interleaves another checkout of the runner.  Wall clock: the command up to its first worker's
start, the steps of the worker's start, the rest of the worker, the command otherwise.  Processor time: of the command's
process alone, and of all its child processes.  ``outside`` is the share of the wall clock in which no worker has a run,
``no worker`` that in which none is there or prepares for the next job; one that was started ahead is taken to be there
since the last one's end, the first one since the command's start.  A sweep's seconds are sums over its jobs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.data import make_clips

PROJECT = Path(__file__).resolve().parents[1]

SWEEP_JOBS = 4

_COMMAND = """
import json, os, resource, sys, time
from runner.cli.run import main
status = main(sys.argv[2:])
children = resource.getrusage(resource.RUSAGE_CHILDREN)
with open(sys.argv[1], "w") as file:
    json.dump({"own": time.process_time(), "children": children.ru_utime + children.ru_stime}, file)
sys.stdout.flush()
os._exit(status)
"""
"""The command, and then its processor times, which its parent can't tell apart."""

_STEPS = ("import", "device", "weights", "calibration", "compile", "parity", "pin")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clips", type=int, default=12, help="of ten seconds, a run")
    parser.add_argument("--against", type=Path, help="another checkout")
    parser.add_argument("overrides", nargs="*", help="of every run: device=gpu precision=auto")
    options = parser.parse_args()
    checkouts = [PROJECT, *([options.against.resolve()] if options.against else [])]
    measured: dict[tuple[Path, str], list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        clips = make_clips(folder, "wav16", options.clips)[0].parent
        for _ in range(options.rounds):
            for checkout in checkouts:
                own = folder / f"checkout{checkouts.index(checkout)}"
                shutil.rmtree(own / "models", ignore_errors=True)
                for name in ("first run", "later run", "sweep"):
                    overrides = [
                        *("weights=random", "dataset=folder", f"dataset.root={clips}"),
                        *(f"paths.outputs={own}", f"paths.models={own}/models", *options.overrides),
                        *(
                            ("-m", f"profile.round={','.join(map(str, range(1, SWEEP_JOBS + 1)))}")
                            if name == "sweep"
                            else ()
                        ),
                    ]
                    measured.setdefault((checkout, name), []).append(_run(checkout, own, overrides))
    for checkout in checkouts:
        print(f"\n{checkout if len(checkouts) > 1 else ''}, medians of {options.rounds}, seconds".lstrip(", "))
        _print({name: measured[checkout, name] for name in ("first run", "later run", "sweep")})


def _run(checkout: Path, folder: Path, overrides: list[str]) -> dict[str, float]:
    """Run the command, and return its times in seconds; for a sweep, sums over its jobs."""
    times = folder / "times.json"
    folder.mkdir(exist_ok=True)
    before = set(folder.rglob("result.json"))
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    command = [sys.executable, "-c", _COMMAND, str(times), *overrides]
    began, start = time.time(), time.monotonic()
    subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
    wall = time.monotonic() - start
    processor: dict[str, float] = json.loads(times.read_text())
    paths = (path for path in set(folder.rglob("result.json")) - before if "mlartifacts" not in path.parts)
    jobs = sorted(map(_times_of, paths), key=lambda job: job["spawned_at"])
    ready = jobs[0]["spawned_at"] - began
    unprepared = ready * (1.0 - jobs[0]["ahead"])
    gaps = [
        (later["spawned_at"] - job["spawned_at"] - job["worker"]) * (1.0 - later["ahead"])
        for job, later in itertools.pairwise(jobs)
    ]
    last = jobs[-1]["spawned_at"] + jobs[-1]["worker"] - began
    total = {name: sum(job[name] for job in jobs) for name in jobs[0] if name not in ("spawned_at", "ahead")}
    return {
        "command, before": ready,
        **total,
        "command, otherwise": wall - total["worker"] - ready,
        "wall": wall,
        "outside": 1.0 - total["worker"] / wall,
        "no worker": (unprepared + sum(gaps) + wall - last) / wall,
        "cpu command": processor["own"],
        "cpu workers": processor["children"],
    }


def _times_of(path: Path) -> dict[str, float]:
    result: dict[str, Any] = json.loads(path.read_text())
    spec = json.loads((path.parent / ".runner" / "spec.json").read_text())
    metrics = result["metrics"]
    steps = {name: metrics.get(f"startup_{name}_s", 0.0) for name in _STEPS}
    return {
        "spawned_at": spec["spawned_at"],
        "ahead": float("started ahead" in (path.parent / "runner.log").read_text()),
        **steps,
        "other start": metrics["startup_s"] - sum(steps.values()),
        "start": metrics["startup_s"],
        "rest of worker": result["worker_s"] - metrics["startup_s"],
        "worker": result["worker_s"],
    }


def _print(measured: dict[str, list[dict[str, float]]]) -> None:
    print(f"{'':22s}" + "".join(f"{name:>14s}" for name in measured))
    first = next(iter(measured.values()))[0]
    for row in first:
        medians = [statistics.median(times[row] for times in runs) for runs in measured.values()]
        cells = (f"{100 * value:12.0f} %" if row in ("outside", "no worker") else f"{value:14.2f}" for value in medians)
        print(f"{row:22s}" + "".join(cells))


if __name__ == "__main__":
    main()
