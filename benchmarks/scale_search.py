"""Statistics, FAD, search and duplicates at scale: ``python -m benchmarks.scale_search --rows 10000000``.

Makes a run of that many random embeddings in clips of ten with the runner's own writer, and one of a tenth of them to
compare with; only the first 20 shards of a run, a million rows, are written, the others are links to them.  Each step
runs in a process of its own, whose seconds, seconds of processor time and peak memory are printed.  The search is
interleaved with a peer that reads all embeddings into memory with pyarrow and multiplies them with NumPy, once with one
thread of BLAS and once with as many as it takes, and with the search command; their medians come last.  The peer and
the duplicates are left out above ``--most`` rows: the one needs 2 kB of memory a row, and the time of the others grows
with the square.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.scale import measured

PROJECT = Path(__file__).resolve().parents[1]
_SHARD_ROWS = 50_000
_SHARDS_WRITTEN = 20
_CLIP_ROWS = 10
_TOP = 20
_COLUMNS = ("clip", "start_s", "label")


def _write(rows: int, folder: Path) -> dict[str, Any]:
    from runner.config.composition import compose_config
    from runner.core.files import make_folder
    from runner.core.layout import RunLayout, shard_name
    from runner.output.formats import make_formats
    from runner.output.rows import ClipRow, EmbeddingInfo
    from runner.output.state.journal import Journal
    from runner.output.writer import ShardFiles, ShardWriter
    from runner.vggish.spec import VGGISH

    make_folder(RunLayout(folder).state)
    info = EmbeddingInfo({"model": "VGGish"}, 0.96, VGGISH.outputs)
    formats = make_formats(compose_config(["weights=random"]).output, folder, info, [])
    writer = ShardWriter(ShardFiles(folder, info, formats), Journal(RunLayout(folder).journal))
    shards = rows // _SHARD_ROWS
    start = time.perf_counter()
    for shard in range(min(shards, _SHARDS_WRITTEN)):
        values = np.random.default_rng((rows, shard)).standard_normal((_SHARD_ROWS, 128), dtype=np.float32)
        clips = [
            ClipRow(f"night/{shard:05d}/{first:07d}.wav", "embedded", None, None, _CLIP_ROWS, 9.6, 16_000, 1, False,
                    None, 0.0, values[first : first + _CLIP_ROWS])
            for first in range(0, _SHARD_ROWS, _CLIP_ROWS)
        ]  # fmt: skip
        writer.write_shard(shard, clips)
    written_s = time.perf_counter() - start
    for shard in range(_SHARDS_WRITTEN, shards):
        for name in writer.committed[shard % _SHARDS_WRITTEN].files:
            os.link(folder / name, folder / Path(name).with_name(shard_name(shard, ".parquet")))
    size = sum(path.stat().st_size for path in (folder / "embeddings").iterdir())
    return {"bytes_a_row": size / rows, "written_s": written_s}


def _statistics(rows: int, folder: Path) -> dict[str, Any]:
    """Merge the shards' statistics, as the end of a run does with clips.parquet."""
    from runner.output.state.journal import ShardEntry
    from runner.output.writer import write_clips_table

    write_clips_table(folder, {shard: ShardEntry(shard) for shard in range(rows // _SHARD_ROWS)}, {"model": "VGGish"})
    return {}


def _fad(rows: int, folder: Path) -> dict[str, Any]:
    from runner.evaluation.fad import FadOptions, Reference, measure
    from runner.evaluation.sources import find_sets

    (reference,), (run,) = find_sets(str(folder.with_name("tenth"))), find_sets(str(folder))
    return {"fad": measure(Reference(reference), run, FadOptions(interval=0)).fad, "examples": run.summary.n}


def _search(rows: int, folder: Path) -> dict[str, Any]:
    from runner.evaluation.search import search
    from runner.output.reader import EmbeddingReader

    with _clocks() as clocks:
        matches = search(_query(), EmbeddingReader(str(folder)), _TOP)
    return {**clocks, "best": _digest(match.clip for match in matches)}


def _peer_one_thread(rows: int, folder: Path) -> dict[str, Any]:
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, user_api="blas"):
        return _peer(rows, folder)


def _peer(rows: int, folder: Path) -> dict[str, Any]:
    import pyarrow.parquet as pq

    with _clocks() as clocks:
        table = pq.read_table(folder / "embeddings", columns=[*_COLUMNS, "embedding"])
        vectors = table["embedding"].combine_chunks().flatten().to_numpy().reshape(-1, 128)
        query = _query()[0]
        scores = vectors @ query / (np.linalg.norm(vectors, axis=1) * np.linalg.norm(query))
        best = np.argpartition(-scores, _TOP)[:_TOP]
        best = best[np.argsort(-scores[best])]
        clips = table["clip"].take(best).to_pylist()
    return {**clocks, "best": _digest(clips)}


@contextmanager
def _clocks() -> Iterator[dict[str, float]]:
    """Take the seconds and the processor time of a scan, apart from those of its imports."""
    clocks: dict[str, float] = {}
    start, core_start = time.perf_counter(), time.process_time()
    yield clocks
    clocks |= {"scan_s": time.perf_counter() - start, "scan_core_s": time.process_time() - core_start}


def _digest(clips: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(clips).encode()).hexdigest()[:8]


def _duplicates(rows: int, folder: Path) -> dict[str, Any]:
    from runner.evaluation.duplicates import clip_means, find_duplicates
    from runner.output.reader import EmbeddingReader

    means = clip_means(EmbeddingReader(str(folder)).blocks())
    start = time.perf_counter()
    groups = find_duplicates(means, 0.99)
    return {"compare_s": time.perf_counter() - start, "clips": len(means.clips), "groups": len(groups)}


def _query() -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(5).standard_normal((1, 128)).astype(np.float32)


def _command(folder: Path) -> dict[str, Any]:
    """Take the seconds and the processor time of the search command, with a clip of the run as the query."""
    command = [sys.executable, "-m", "runner", "search", str(folder), "--clip", "night/00000/0000000.wav"]
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, cwd=PROJECT, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    core_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": time.perf_counter() - start, "core_s": core_s}


def _compare_searches(rows: int, folder: Path, rounds: int, has_peer: bool) -> None:
    """Print the medians of interleaved rounds, each of which begins with another step."""
    steps = [_search, *((_peer_one_thread, _peer) if has_peer else ())]
    results: dict[str, list[dict[str, Any]]] = {}
    for _ in range(rounds):
        found = {step.__name__.strip("_"): measured(step, rows, folder) for step in steps}
        steps.append(steps.pop(0))
        if len({values.pop("best") for values in found.values()}) > 1:
            sys.exit("the search and its peer do not agree")
        for name, values in (found | {"command": _command(folder)}).items():
            results.setdefault(name, []).append(values)
    print(f"medians of {rounds} rounds")
    for name, each in results.items():
        medians = {key: round(median(values[key] for values in each), 2) for key in each[0]}
        print(f"{name}: {medians}", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000, help=f"a multiple of {10 * _SHARD_ROWS:,}")
    parser.add_argument("--most", type=int, default=2_000_000, help="rows that the peer and the duplicates still get")
    parser.add_argument("--rounds", type=int, default=3, help="of search and peer, interleaved")
    parser.add_argument("--folder", type=Path, help="for the two runs (default: a temporary folder)")
    options = parser.parse_args()
    if options.rows < 1 or options.rows % (10 * _SHARD_ROWS):
        parser.error(f"--rows {options.rows} is no multiple of {10 * _SHARD_ROWS:,}")
    root = Path(tempfile.mkdtemp(prefix="scale-", dir=options.folder))
    rows, folder, tenth = options.rows, root / "run", root / "tenth"
    try:
        for count, run in ((rows, folder), (rows // 10, tenth)):
            measured(_write, count, run)
            measured(_statistics, count, run)
        measured(_fad, rows, folder)
        _compare_searches(rows, folder, options.rounds, has_peer=rows <= options.most)
        if rows <= options.most:
            measured(_duplicates, rows, folder)
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
