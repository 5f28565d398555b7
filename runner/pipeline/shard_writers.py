"""Threads that write complete shards."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from runner.pipeline.shutdown import Channel

if TYPE_CHECKING:
    from runner.output.rows import ClipRow
    from runner.output.writer import Writer
    from runner.pipeline.messages import PipelineStats
    from runner.pipeline.shutdown import Shutdown

_SHARDS_AHEAD = 4
"""Complete shards that may wait for a writer before the collector waits for one."""


class ShardWriters:
    """Writes shards in parallel: compressing, hashing and flushing leave the interpreter to others.

    Args:
        writer: of the run's files.
        stats: the pipeline's.
        shutdown: the pipeline's.
    """

    def __init__(self, writer: Writer, stats: PipelineStats, shutdown: Shutdown) -> None:
        self._writer = writer
        self._stats = stats
        self._shards: Channel[tuple[int, list[ClipRow]]] = Channel(_SHARDS_AHEAD, shutdown)
        self._lock = threading.Lock()
        stats.writers = writer.parallel
        self._threads = [
            threading.Thread(target=shutdown.guard, args=(self._write,), name="writer", daemon=True)
            for _ in range(stats.writers)
        ]

    def start(self) -> None:
        """Start writing."""
        for thread in self._threads:
            thread.start()

    def put(self, shard: int, rows: list[ClipRow]) -> None:
        """Add a complete shard, once there is room."""
        self._shards.put((shard, rows))

    def join(self) -> None:
        """Wait until all shards that were put are written; no more may be put."""
        for _ in self._threads:
            self._shards.put(None)
        for thread in self._threads:
            thread.join()

    def _write(self) -> None:
        while (shard := self._shards.get()) is not None:
            start = time.perf_counter()
            self._writer.write_shard(*shard)
            with self._lock:
                self._stats.progress.shards += 1
                self._stats.write_s += time.perf_counter() - start
