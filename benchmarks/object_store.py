"""What an object store costs, to read from and to write to: ``python -m benchmarks.object_store``.

The same clips from a folder and from a local S3 server (moto's), each answer of which is held up by ``--delay-ms``, as
a store's over a network is; with the default ``dataset.prefetch`` and with 1.  Then the output (Parquet, and npz: an
object a clip) in a folder and in that store, of clips in a folder.  A command each, several rounds interleaved.

Printed are medians.  × realtime is the run's own, up to the last embedding: the last shard's files are not in it.  They
are in the seconds, which are the command's less its cold start.  The server takes some of the same cores.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import statistics
import subprocess
import sys
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.data import SECONDS, make_clips
from runner.devices.host import host_facts
from tests.object_store import object_store

PROJECT = Path(__file__).resolve().parents[1]
BUCKET = "benchmark"
PACKED_IN = 4
FIXED = ("device=cpu", "weights=random", "tracking=none", "profile.plots=false")


@dataclass(frozen=True)
class Way:
    """A command to measure; ``base`` names the one that it is compared with."""

    name: str
    base: str
    settings: tuple[str, ...]
    stored: bool = False
    """Whether its output is in the store."""


def ways(clips: Path) -> list[Way]:
    """What is measured: reading and writing with Parquet, and writing with npz."""
    local, remote = f"dataset.root={clips}", f"dataset.root=s3://{BUCKET}/clips"
    parquet, npz = "all in folders", "all in folders, npz"
    return [
        Way(parquet, parquet, (local,)),
        Way("read from a store", parquet, (remote,)),
        Way("read, prefetch=1", parquet, (remote, "dataset.prefetch=1")),
        Way("tars in a store", parquet, ("dataset=webdataset", f"dataset.path=s3://{BUCKET}/tars")),
        Way("Parquet in a store", parquet, ("dataset=parquet", f"dataset.path=s3://{BUCKET}/parquet")),
        Way("written to a store", parquet, (local,), stored=True),
        Way(npz, npz, (local, "output.formats=[npz]")),
        Way("written to a store, npz", npz, (local, "output.formats=[npz]"), stored=True),
    ]


def packed(files: dict[str, bytes]) -> dict[str, bytes]:
    """The clips in tars and in Parquet files, by their keys."""
    found = {}
    for number in range(PACKED_IN):
        names = sorted(files)[number::PACKED_IN]
        tar_file, parquet_file = io.BytesIO(), io.BytesIO()
        with tarfile.open(fileobj=tar_file, mode="w") as tar:
            for name in names:
                about = tarfile.TarInfo(name)
                about.size = len(files[name])
                tar.addfile(about, io.BytesIO(files[name]))
        rows = pa.array([{"bytes": files[name], "path": name} for name in names])
        pq.write_table(pa.table({"audio": rows}), parquet_file, row_group_size=100, compression="none")
        found[f"tars/{number}.tar"], found[f"parquet/{number}.parquet"] = tar_file.getvalue(), parquet_file.getvalue()
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=600, help="of ten seconds")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--delay-ms", type=float, default=30.0)
    parser.add_argument("--only", nargs="+", default=[""], help="measure only what has one of these in its name")
    parser.add_argument("--folder", type=Path, default=PROJECT / "outputs" / "benchmark")
    options = parser.parse_args()
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    clips = make_clips(folder, "wav16", options.clips)[0].parent
    chosen = [way for way in ways(clips) if any(part in way.name for part in options.only)]
    measured = [way for way in ways(clips) if way in chosen or way.name in {each.base for each in chosen}]
    found: dict[str, list[tuple[float, float]]] = {way.name: [] for way in measured}
    with object_store() as store:
        files = {path.name: path.read_bytes() for path in sorted(clips.iterdir())}
        store.bucket(BUCKET, {f"clips/{name}": data for name, data in files.items()} | packed(files))

        def held_up(method: str, key: str) -> None:
            time.sleep(options.delay_ms / 1000)

        store.fault = held_up
        for number in range(options.rounds):
            for way in measured if number % 2 == 0 else measured[::-1]:
                speed, seconds = _run(way, folder, f"run-{measured.index(way)}-{number}")
                found[way.name].append((speed, seconds))
                print(f"round {number + 1} {way.name}: {speed:,.0f}, {seconds:.1f} s", file=sys.stderr, flush=True)
    facts = host_facts()
    print(
        f"{facts['cpu']}, {facts['cores']} cores; {options.clips} clips of {SECONDS} s (wav16), "
        f"{options.delay_ms:g} ms a request, precision=float32, medians of {options.rounds} rounds"
    )
    medians = {name: [statistics.median(column) for column in zip(*runs, strict=True)] for name, runs in found.items()}
    for way in measured:
        (speed, seconds), (base_speed, base_seconds) = medians[way.name], medians[way.base]
        print(
            f"{way.name:24s} {speed:8,.0f} × realtime {speed / base_speed:6.2f} of the folders'"
            f" {seconds:8.1f} s {seconds / base_seconds:6.2f} of theirs"
        )


def _run(way: Way, folder: Path, prefix: str) -> tuple[float, float]:
    """× realtime of one command, and the seconds that it took without the cold start."""
    outputs = folder / "object_store_run"
    shutil.rmtree(outputs, ignore_errors=True)
    out = f"s3://{BUCKET}/{prefix}" if way.stored else str(outputs / "run")
    command = [sys.executable, "-m", "runner", *FIXED, f"paths.outputs={outputs}", f"output.dir={out}", *way.settings]
    began = time.perf_counter()
    subprocess.run(command, cwd=PROJECT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    seconds = time.perf_counter() - began
    (result,) = outputs.glob("stores/*/result.json" if way.stored else "run/result.json")
    metrics = json.loads(result.read_text())["metrics"]
    return metrics["realtime_factor"], seconds - metrics["startup_s"]


if __name__ == "__main__":
    main()
