"""What reading from an object store costs: ``python -m tests.benchmarks.object_store``.

The same files from a folder and from a local S3 server (moto's), each answer of which is held up by ``--delay-ms``, as
a store's over a network is; with the default ``dataset.fetch_ahead`` and with 1, a command each, several rounds
interleaved.  Printed are medians; the server takes some of the same cores.
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
from tests.object_store import object_store

PROJECT = Path(__file__).resolve().parents[2]
BUCKET = "benchmark"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=600, help="of ten seconds")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--delay-ms", type=float, default=30.0)
    parser.add_argument("--folder", type=Path, default=PROJECT / "outputs" / "benchmark")
    options = parser.parse_args()
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    clips = make_clips(folder, "wav16", options.clips)[0].parent
    with object_store() as store:
        store.bucket(BUCKET, {f"clips/{path.name}": path.read_bytes() for path in sorted(clips.iterdir())})

        def held_up(method: str, key: str) -> None:
            time.sleep(options.delay_ms / 1000)

        store.fault = held_up
        ways = {
            "a folder": (f"dataset.root={clips}",),
            "a store": (f"dataset.root=s3://{BUCKET}/clips",),
            "a store, fetch_ahead=1": (f"dataset.root=s3://{BUCKET}/clips", "dataset.fetch_ahead=1"),
        }
        found: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(options.rounds):
            for name in list(ways) if number % 2 == 0 else list(ways)[::-1]:
                found[name].append(_run(ways[name], folder))
                print(f"round {number + 1} {name}: {found[name][-1]:,.0f}", file=sys.stderr, flush=True)
    facts = host_facts()
    print(
        f"{facts['cpu']}, {facts['cores']} cores; {options.clips} clips of {SECONDS} s (wav16), "
        f"{options.delay_ms:g} ms a request, precision=float32, medians of {options.rounds} rounds"
    )
    local = statistics.median(found["a folder"])
    for name, speeds in found.items():
        print(f"{name:26s} {statistics.median(speeds):8,.0f} × realtime {statistics.median(speeds) / local:6.2f} of it")


def _run(settings: tuple[str, ...], folder: Path) -> float:
    """× realtime of one command."""
    out = folder / "object_store_run"
    shutil.rmtree(out, ignore_errors=True)
    fixed = ("dataset=folder", "device=cpu", "weights=random", "tracking=none", "profile.pictures=false")
    command = [sys.executable, "-m", "runner", *fixed, f"output.dir={out}", *settings]
    subprocess.run(command, cwd=PROJECT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    speed: float = json.loads((out / "result.json").read_text())["metrics"]["audio_x_realtime"]
    return speed


if __name__ == "__main__":
    main()
