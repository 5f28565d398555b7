"""What a clip costs the worker's threads beside the network: ``python -m benchmarks.interpreter``.

All threads of a worker share one interpreter, which on a fast GPU is the ceiling.  This runs the pipeline as it is,
from decode processes to committed shards, on ten-second clips of 16 kHz WAV in memory-backed storage, with a session
that returns at once, and prints the processor time of each thread for a clip.  Most of the writers' time compresses,
hashes and multiplies, which leaves the interpreter to others; with ``--writers`` all of that is in processes.
"""

from __future__ import annotations

import argparse
import functools
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path

import numpy as np

from benchmarks.data import make_clips
from runner.config.composition import compose_config
from runner.core.layout import RunLayout
from runner.core.span import Span
from runner.dataset.clips import Clip
from runner.dataset.recorded_at import recorded_at_reader
from runner.engines.common import tune_interpreter
from runner.output.formats import make_formats
from runner.output.rows import EmbeddingInfo
from runner.output.state.journal import Journal
from runner.output.writer import ShardFiles, ShardWriter, make_spill
from runner.pipeline.decode_pool import DecodePool, decode_options
from runner.pipeline.messages import Replica
from runner.pipeline.pipeline import EmbeddingPipeline, ShardedClips
from runner.pipeline.writer_processes import WriterProcesses
from runner.vggish.spec import VGGISH

SHARD_CLIPS = 469
"""Clips of a shard in a run of 120,000."""
BATCH, SPARE_SLOTS = 1024, 6


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--decoders", type=int, default=2)
    parser.add_argument("--writers", type=int, default=0, help="processes that write shards; 0: threads")
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm"))
    options = parser.parse_args()
    spent = _time_threads()
    tune_interpreter()
    taken: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        recordings = make_clips(folder, "wav16", min(200, options.clips))
        for number in range(options.rounds):
            spent.clear()
            print(f"round {number + 1}", file=sys.stderr, flush=True)
            spent["feeder"] = _embed(recordings, options, folder / "run")
            for thread, seconds in spent.items():
                taken[thread].append(1e6 * seconds / options.clips)
    print(f"µs of processor time a clip, medians of {options.rounds} rounds of {options.clips:,} clips")
    for thread, times in sorted(taken.items()):
        print(f"{thread:12s} {statistics.median(times):6.1f}")


def _embed(recordings: list[Path], options: argparse.Namespace, run_dir: Path) -> float:
    """Embed so many clips of the recordings as zeros; return this thread's processor time in seconds."""
    count, decoders = options.clips, options.decoders
    shutil.rmtree(run_dir, ignore_errors=True)
    RunLayout(run_dir).state.mkdir(parents=True)
    config = compose_config(["weights=random"])
    clips = (
        Clip(n, f"{n:07d}.wav", os.fsencode(recordings[n % len(recordings)]), None, None, "label", 320_044)
        for n in range(count)
    )
    shards = [Span(first, min(first + SHARD_CLIPS, count)) for first in range(0, count, SHARD_CLIPS)]
    journal = Journal(RunLayout(run_dir).journal)
    make_files = functools.partial(_make_files, run_dir)
    processes = WriterProcesses(make_files, options.writers) if options.writers else None
    writer = ShardWriter(processes or make_files(), journal)
    pool = DecodePool(decode_options(config), decoders)
    pool.open(decoders, SPARE_SLOTS, BATCH)
    pipeline = EmbeddingPipeline(
        ShardedClips(shards, clips), pool, writer, shutdown_timeout_s=10, spill=make_spill(run_dir, config)
    )
    replica = Replica("replica", lambda windows, copied: np.zeros((len(windows), 128), np.float32), threads=2)
    start = time.thread_time()
    pipeline.run([replica])
    seconds = time.thread_time() - start
    pool.close()
    if processes:
        processes.close()
    journal.close()
    return seconds


def _make_files(run_dir: Path) -> ShardFiles:
    info = EmbeddingInfo({}, 0.96, VGGISH.outputs)
    formats = make_formats(compose_config(["weights=random"]).output, run_dir, info, ["label"])
    return ShardFiles(run_dir, info, formats, recorded_at_reader("auto"))


def _time_threads() -> dict[str, float]:
    """Return a dictionary to which each thread adds its processor time in seconds, by its name, when it ends."""
    spent: dict[str, float] = defaultdict(float)
    lock, run = threading.Lock(), threading.Thread.run

    def timed(thread: threading.Thread) -> None:
        start = time.thread_time()
        try:
            run(thread)
        finally:
            with lock:
                spent[thread.name] += time.thread_time() - start

    threading.Thread.run = timed  # type: ignore[method-assign]
    return spent


if __name__ == "__main__":
    main()
