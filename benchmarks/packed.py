"""What packing saves, reading alone: ``python -m benchmarks.packed``.

The same clips as objects, in a tar and in a Parquet file of a local S3 server (moto's), each answer of which is held up
by ``--delay-ms``: seconds and requests to list them, and to have the bytes of all in one process.  Then the processor
time that a clip takes from its file to its samples, where all of it lies in a folder.
"""

from __future__ import annotations

import argparse
import io
import os
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

from benchmarks.data import recording
from runner.audio.preparation import Preparation
from runner.audio.reader import read_clip
from runner.config.schema import DatasetConfig, FolderDataset, ParquetDataset, WebDataset
from runner.dataset.manifest import build_manifest
from runner.dataset.packed.clips import PackedClips
from runner.devices.host import host_facts
from runner.storage.prefetch import Prefetcher
from tests.object_store import object_store

RATE = 16_000
GROUP_ROWS = 100
AHEAD = 8
MESSAGE = 128
"""Clips that a decode process knows of at a time, at most."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=600)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each clip in the store")
    parser.add_argument("--delay-ms", type=float, default=30.0)
    options = parser.parse_args()
    print(f"{host_facts()['cpu']}; {options.clips} clips")
    with object_store() as store:
        store.bucket("packed", _files(options.clips, options.seconds))
        store.fault = lambda method, key: time.sleep(options.delay_ms / 1000)
        for name, dataset in _datasets("s3://packed").items():
            store.requests.clear()
            began = time.perf_counter()
            paths = _paths(dataset)
            listed, listing = time.perf_counter() - began, len(store.requests)
            _read(paths, lambda path: None)
            seconds = time.perf_counter() - began - listed
            print(
                f"store, {name:8s} listed in {listed:6.2f} s, {listing:5d} requests; "
                f"read in {seconds:6.2f} s, {len(store.requests) - listing:5d} requests"
            )
    with tempfile.TemporaryDirectory() as folder:
        for key, data in _files(options.clips, 10.0).items():
            path = Path(folder, key)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
        for name, dataset in _datasets(folder).items():
            paths = _paths(dataset)
            _read(paths, _decode)
            before = time.process_time()
            _read(paths, _decode)
            print(f"folder, {name:8s} {(time.process_time() - before) / len(paths) * 1e6:6.0f} us a clip of 10 s")


def _datasets(root: str) -> dict[str, DatasetConfig]:
    return {
        "files": FolderDataset(root=f"{root}/clips", extensions=["wav"]),
        "tar": WebDataset(path=f"{root}/a.tar", extensions=["wav"]),
        "Parquet": ParquetDataset(path=f"{root}/a.parquet"),
    }


def _files(clips: int, seconds: float) -> dict[str, bytes]:
    """The clips as files, in a tar and in a Parquet file, by their keys."""
    encoded = io.BytesIO()
    soundfile.write(encoded, recording(0, RATE, 1)[: round(seconds * RATE)], RATE, format="WAV")
    data = encoded.getvalue()
    names = [f"{number:05d}.wav" for number in range(clips)]
    tar_file, parquet_file = io.BytesIO(), io.BytesIO()
    with tarfile.open(fileobj=tar_file, mode="w") as tar:
        for name in names:
            about = tarfile.TarInfo(name)
            about.size = len(data)
            tar.addfile(about, io.BytesIO(data))
    rows = pa.array([{"bytes": data, "path": name} for name in names])
    table = pa.table({"audio": rows})
    pq.write_table(table, parquet_file, row_group_size=GROUP_ROWS, compression="none", use_dictionary=False)
    packed = {"a.tar": tar_file.getvalue(), "a.parquet": parquet_file.getvalue()}
    return {f"clips/{name}": data for name in names} | packed


def _paths(dataset: DatasetConfig) -> list[bytes]:
    paths: list[bytes] = build_manifest(dataset, Path(os.devnull)).table["path"].to_pylist()
    return paths


def _read(paths: list[bytes], use: Callable[[str | bytes], None]) -> None:
    """Have the bytes of each clip as a decode process has them."""
    clips, objects = PackedClips(AHEAD, 60), Prefetcher(AHEAD, 60)
    for job, path in enumerate(paths):
        behind = list(enumerate(paths[job + 1 : job + MESSAGE], job + 1))
        if b"\0" in path:
            with clips.take(job, path, behind, lambda: None) as file:
                use(file.path)
        elif path.startswith(b"/"):
            use(path)
        else:
            objects.begin(job, path)
            any(not objects.begin(*each) for each in behind)
            with objects.take(job, path, lambda: None) as file:
                use(file.path)
    clips.close()


def _decode(path: str | bytes) -> None:
    with read_clip(path, suffix=".wav", preparation=Preparation(16_000)) as clip:
        for _ in clip:
            pass


if __name__ == "__main__":
    main()
