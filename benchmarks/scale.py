"""Planning and taking up a run of very many clips: ``python -m benchmarks.scale --clips 10000000``.

The files are simulated (a folder is listed without one), the shards written are empty; all else is the runner's own:
manifest, digest, plan, journal, and what resuming checks.  Each step runs in a process of its own, whose time and peak
memory are printed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Empty
from typing import Any

ROOT = "/data/clips"
_A_FOLDER = 1000
_DONE = 0.99


def listing(clips: int) -> Callable[[Path, Counter[str]], Iterator[tuple[str, int, int]]]:
    """In the place of a walk through a folder: a thousand clips a subfolder, ten seconds each."""

    def walk(root: Path, ignored: Counter[str]) -> Iterator[tuple[str, int, int]]:
        for folder in range(-(-clips // _A_FOLDER)):
            for number in range(folder * _A_FOLDER, min((folder + 1) * _A_FOLDER, clips)):
                yield f"{folder:06d}/{number:09d}.wav", 320_044, 1_700_000_000_000_000_000 + number

    return walk


def _plan(clips: int, folder: Path) -> dict[str, Any]:
    from runner.config.composition import compose_config
    from runner.config.schema import FolderDataset
    from runner.dataset import folder as listed_folder
    from runner.dataset import manifest
    from runner.output.state.plan import make_plan

    listed_folder.walk = listing(clips)
    config = compose_config(["dataset=folder", "weights=random"])
    dataset = FolderDataset(root=ROOT, extensions=["wav"])
    start = time.perf_counter()
    listed = manifest.build_manifest(dataset, folder)
    built = time.perf_counter()
    plan = make_plan(folder, config, listed)
    return {"manifest_s": built - start, "plan_s": time.perf_counter() - built, "shards": len(plan.shards),
            "left": len(plan.shards) - len(plan.done), "notes": plan.notes}  # fmt: skip


def _journal(clips: int, folder: Path) -> dict[str, Any]:
    """Ninety-nine per cent of the shards, done by a writer that is given no embeddings."""
    from runner.core.files import digest_file
    from runner.core.layout import RunLayout
    from runner.output.state.journal import Journal, ShardCounts, ShardEntry

    plan = json.loads((folder / RunLayout.state / "plan.json").read_text())
    shards, rows = plan["shards"], plan["row_digests"]
    (folder / RunLayout.clip_shards).mkdir(parents=True)
    (folder / "embeddings").mkdir()
    journal = Journal(folder / RunLayout.journal)
    start = time.perf_counter()
    done = int(_DONE * len(shards))
    for number in range(done):
        first, end = shards[number]
        files = {}
        for name in (f"embeddings/part-{number:05d}.parquet", f"{RunLayout.clip_shards}/part-{number:05d}.parquet"):
            (folder / name).write_bytes(os.urandom(4096))
            files[name] = digest_file(folder / name)
        counts = ShardCounts(embedded=end - first, audio_s=10.0 * (end - first))
        journal.append(ShardEntry(number, end - first, 10 * (end - first), files, counts, row_digest=rows[number]))
    journal.close()
    return {"journal_s": time.perf_counter() - start, "shards": done}


def _take_up(clips: int, folder: Path) -> dict[str, Any]:
    from runner.config.composition import compose_config
    from runner.core.layout import RunLayout
    from runner.core.span import Span
    from runner.dataset.clips import read_clips
    from runner.output.verify import load_committed_shards
    from runner.output.writer import totals

    start = time.perf_counter()
    found = _plan(clips, folder)
    planned = time.perf_counter()
    config = compose_config(["dataset=folder", "weights=random"])
    plan = json.loads((folder / RunLayout.state / "plan.json").read_text())
    done = load_committed_shards(folder, config.output.formats, plan["row_digests"])
    totals(done)
    shards = plan["shards"]
    spans = [Span(*span) for number, span in enumerate(shards) if number not in done]
    first = next(read_clips(folder / RunLayout.manifest, spans))
    return {**found, "check_s": time.perf_counter() - planned, "total_s": time.perf_counter() - start,
            "done": len(done), "first_clip_left": first.name}  # fmt: skip


def measured(step: Callable[[int, Path], dict[str, Any]], count: int, folder: Path) -> dict[str, Any]:
    """Call a step in a process of its own; return its values with its seconds and peak memory, and print them."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_measure, args=(step, count, folder, queue))
    process.start()
    while True:
        try:
            values: dict[str, Any] = queue.get(timeout=1)
            break
        except Empty:
            if not process.is_alive():
                raise SystemExit(f"{step.__name__} ended with status {process.exitcode}") from None
    process.join()
    shown = {key: round(value, 2) if isinstance(value, float) else value for key, value in values.items()}
    print(f"{step.__name__.strip('_')}: {shown}", flush=True)
    return values


def _measure(step: Callable[[int, Path], dict[str, Any]], count: int, folder: Path, queue: Any) -> None:
    start, core_start = time.perf_counter(), time.process_time()
    values = step(count, folder)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    core_s = time.process_time() - core_start
    queue.put({**values, "seconds": time.perf_counter() - start, "core_s": core_s, "peak_mib": peak})


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=10_000_000)
    parser.add_argument("--folder", type=Path, help="for the run's state (default: a temporary folder)")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="scale-"))
    found = {}
    try:
        for name, step in (("plan", _plan), ("journal", _journal), ("resume", _take_up)):
            found[name] = measured(step, options.clips, folder)
        size = sum(path.stat().st_size for path in (folder / ".runner").glob("*") if path.is_file())
        print(f"state on disk: {size / 1e6:,.0f} MB")
    finally:
        if options.folder is None:
            shutil.rmtree(folder)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
