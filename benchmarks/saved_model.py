"""Our own export by ``model=savedmodel`` beside ``model=vggish``: ``python -m benchmarks.saved_model``.

Ten-second 16 kHz clips and the same seeded weights; interleaved rounds, medians.  Speeds are × realtime from a ready
model to the last file; the difference is the largest of all embeddings over the largest value.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from benchmarks.data import make_clips

PROJECT = Path(__file__).resolve().parents[1]
EXPORTED = ("model=savedmodel", "model.signature=windows", "model.window_s=0.975", "model.hop_s=0.96")
PLAIN = ("model=vggish", "model.conv=direct", "weights=random")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clips", type=int, default=60)
    parser.add_argument("--folder", type=Path, default=Path("outputs/benchmark-saved-model"))
    parser.add_argument("runner", nargs="*", default=["device=cpu"], help="further settings of both")
    options = parser.parse_args()
    folder: Path = options.folder.absolute()
    make_clips(folder, "wav16", options.clips)
    shutil.rmtree(folder / "exported", ignore_errors=True)
    device = [setting for setting in options.runner if setting.startswith(("device", "precision"))]
    _call("export", "weights=random", f"output.dir={folder / 'exported'}", f"paths.models={folder}", *device)
    contestants = {"vggish": PLAIN, "savedmodel": (*EXPORTED, f"model.path={folder / 'exported'}")}
    speeds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(options.rounds):
        for name, settings in contestants.items():
            print(f"round {number + 1} {name}", file=sys.stderr, flush=True)
            speeds[name].append(_run(folder, name, (*settings, *options.runner)))
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    for name, values in speeds.items():
        print(f"{name:12s} {medians[name]:10,.1f} × realtime  ({', '.join(f'{value:,.1f}' for value in values)})")
    plain, exported = (_rows(folder, name) for name in contestants)
    difference = float(np.abs(plain - exported).max() / np.abs(plain).max())
    print(f"savedmodel / vggish: {medians['savedmodel'] / medians['vggish']:.3f}; difference {difference:.1e}")


def _run(folder: Path, name: str, settings: tuple[str, ...]) -> float:
    run_dir = folder / name
    shutil.rmtree(run_dir, ignore_errors=True)
    common = (f"dataset.root={folder / 'wav16'}", "tracking=none", "profile=off", f"paths.models={folder}")
    _call(*common, *settings, f"output.dir={run_dir}")
    return float(json.loads((run_dir / "result.json").read_text())["metrics"]["realtime_factor"])


def _call(*arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "runner", *arguments], cwd=PROJECT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"the runner failed:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")


def _rows(folder: Path, name: str) -> np.ndarray:
    table = pq.read_table(folder / name / "embeddings").sort_by([("clip", "ascending"), ("example", "ascending")])
    return np.stack(table[table.schema.names[-1]].to_numpy())


if __name__ == "__main__":
    main()
