"""What ``engine=ray`` costs on one machine: ``python -m tests.benchmarks.ray_overhead``.

The same files through ``engine=local`` and ``engine=ray`` (which it starts), a command each, one after the other,
several rounds interleaved with the order turned round; both may use all cores.  A speed is seconds of audio over
seconds of the steady state: from ready sessions to the last embedding (local) or to the last shard (Ray).  Printed are
medians and what Ray takes more.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from runner.hardware import host_facts
from tests.benchmarks.data import SECONDS, make_clips

PROJECT = Path(__file__).resolve().parents[2]
ENGINES = {
    "engine=local": ("engine=local",),
    "engine=ray": ("engine=ray", "engine.decode=inside"),
    "engine=ray, decoding apart": ("engine=ray", "engine.decode=apart"),
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=3000, help="of ten seconds")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kind", default="wav16", choices=("wav16", "flac44", "ogg44"))
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--apart", action="store_true", help="also with decoding apart from the actors that embed")
    parser.add_argument("--folder", type=Path, default=PROJECT / "outputs" / "benchmark")
    options = parser.parse_args()
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    clips = make_clips(folder, options.kind, options.clips)[0].parent
    names = [name for name in ENGINES if options.apart or "apart" not in name]
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for number in range(options.rounds):
        for name in names if number % 2 == 0 else names[::-1]:
            found[name].append(_run(ENGINES[name], options.precision, clips, folder))
            print(f"round {number + 1} {name}: {found[name][-1]}", file=sys.stderr, flush=True)
    facts = host_facts()
    print(
        f"{facts['cpu']}, {facts['cores']} cores; {options.clips} clips of {SECONDS} s ({options.kind}), "
        f"precision={options.precision}, medians of {options.rounds} rounds"
    )
    print(f"{'':28s} {'× realtime':>10s} {'spread':>7s} {'start s':>8s} {'whole s':>8s} {'takes more':>11s}")
    speeds = {name: [SECONDS * options.clips / each["steady_s"] for each in runs] for name, runs in found.items()}
    local = statistics.median(speeds["engine=local"])
    for name, runs in found.items():
        speed = statistics.median(speeds[name])
        start, whole = (statistics.median(each[key] for each in runs) for key in ("start_s", "whole_s"))
        spread = (max(speeds[name]) - min(speeds[name])) / speed
        print(f"{name:28s} {speed:10.0f} {spread:7.0%} {start:8.1f} {whole:8.1f} {local / speed - 1:11.1%}")


def _run(engine: tuple[str, ...], precision: str, clips: Path, folder: Path) -> dict[str, float]:
    run_dir = folder / "run"
    shutil.rmtree(run_dir, ignore_errors=True)
    command = [sys.executable, "-m", "runner", *engine, f"dataset.root={clips}", f"precision={precision}"]
    command += ["device=cpu", "weights=random", "tracking=none", "profile=off", f"output.dir={run_dir}"]
    command += [f"paths.models={folder / 'models'}"]
    start = time.perf_counter()
    subprocess.run(command, cwd=PROJECT, check=True, capture_output=True, text=True)
    whole = time.perf_counter() - start
    steady = json.loads((run_dir / "result.json").read_text())["metrics"]["steady_s"]
    return {"steady_s": steady, "whole_s": whole, "start_s": whole - steady}


if __name__ == "__main__":
    main()
