"""What ``engine=ray`` costs on one machine: ``python -m benchmarks.ray_overhead``.

The same files through ``engine=local`` and ``engine=ray`` (which it starts), a command each, one after the other,
several rounds interleaved with the order turned round; both may use all cores, and the GPU with ``--device gpu``.  A
speed is the run's own: seconds of audio over seconds of the steady state, from ready sessions to the last embedding.
Printed are medians, what Ray takes more, in how many runs slots' pages were locked for the GPU, and how far rows lie
from those of the first run.
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

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.data import SECONDS, make_clips
from benchmarks.gpu import make_many
from runner.devices.host import host_facts

PROJECT = Path(__file__).resolve().parents[1]
ENGINES = {
    "engine=local": ("engine=local",),
    "engine=ray": ("engine=ray",),
    "engine=ray, 2 actors a GPU": ("engine=ray", "engine.num_gpus_per_actor=0.5"),
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=3000, help="of ten seconds")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kind", default="wav16", choices=("wav16", "flac44", "ogg44"))
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--device", default="cpu", choices=("cpu", "gpu"))
    parser.add_argument("--two", action="store_true", help="also with two actors a GPU")
    parser.add_argument("--distinct", type=int, help="recordings; other clips are hard links to them")
    parser.add_argument("--folder", type=Path, default=PROJECT / "outputs" / "benchmark")
    options = parser.parse_args()
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if options.distinct:
        clips = make_many(folder, options.kind, options.clips, options.distinct)
    else:
        clips = make_clips(folder, options.kind, options.clips)[0].parent
    names = [name for name in ENGINES if options.two or "2 actors" not in name]
    differs, reference = 0.0, folder / "reference"
    shutil.rmtree(reference, ignore_errors=True)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for number in range(options.rounds):
        for name in names if number % 2 == 0 else names[::-1]:
            settings = (*ENGINES[name], f"precision={options.precision}", f"device={options.device}")
            found[name].append(_run(settings, clips, folder))
            differs = max(differs, _difference(folder / "run", reference))
            print(f"round {number + 1} {name}: {found[name][-1]}", file=sys.stderr, flush=True)
    facts = host_facts()
    print(
        f"{facts['cpu']}, {facts['cores']} cores, device={options.device}; {options.clips} clips of {SECONDS} s "
        f"({options.kind}), precision={options.precision}, medians of {options.rounds} rounds"
    )
    print(f"{'':28s} {'× realtime':>10s} {'spread':>7s} {'start s':>8s} {'whole s':>8s} {'takes more':>11s}")
    speeds = {name: [each["realtime_factor"] for each in runs] for name, runs in found.items()}
    local = statistics.median(speeds["engine=local"])
    for name, runs in found.items():
        speed = statistics.median(speeds[name])
        start, whole = (statistics.median(each[key] for each in runs) for key in ("start_s", "whole_s"))
        spread = (max(speeds[name]) - min(speeds[name])) / speed
        print(f"{name:28s} {speed:10.0f} {spread:7.0%} {start:8.1f} {whole:8.1f} {local / speed - 1:11.1%}")
    if options.device == "gpu":
        locked = [bool(each["pinned"]) for runs in found.values() for each in runs]
        print(f"slots' pages were locked in {sum(locked)} of {len(locked)} runs")
    print(f"the same clips and examples in all; embeddings differ by {differs:.1e} of the largest value at most")


def _run(settings: tuple[str, ...], clips: Path, folder: Path) -> dict[str, float]:
    run_dir = folder / "run"
    shutil.rmtree(run_dir, ignore_errors=True)
    command = [sys.executable, "-m", "runner", *settings, f"dataset.root={clips}", "device.strict=true"]
    command += ["weights=random", "tracking=none", "profile=off", f"output.dir={run_dir}"]
    command += [f"paths.models={folder / 'models'}"]
    start = time.perf_counter()
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    whole = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    result = json.loads((run_dir / "result.json").read_text())
    speed, steady = (result["metrics"][key] for key in ("realtime_factor", "steady_s"))
    pinned = float(result["resolved"].get("memory.pinned", False))
    return {"realtime_factor": speed, "whole_s": whole, "start_s": whole - steady, "pinned": pinned}


def _difference(run_dir: Path, reference: Path) -> float:
    """The largest difference of an embedding from the reference's, over the largest value there; 0 where it is made."""
    own = run_dir / "embeddings"
    if not reference.exists():
        own.rename(reference)
        return 0.0
    worst = largest = 0.0
    for path in sorted(reference.iterdir()):
        tables = [
            pq.read_table(folder / path.name, columns=["clip", "example", "embedding"]) for folder in (reference, own)
        ]
        if not tables[0].drop_columns("embedding").equals(tables[1].drop_columns("embedding")):
            raise SystemExit(f"{path.name} has other rows")
        one, other = (pc.list_flatten(table["embedding"]).to_numpy() for table in tables)
        worst, largest = max(worst, float(np.abs(one - other).max())), max(largest, float(np.abs(one).max()))
    return worst / largest


if __name__ == "__main__":
    main()
