"""The thread that assembles clips from results, and shards from clips."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from runner.pipeline.messages import ClipResult, EmbeddedBatch
from runner.pipeline.shutdown import Channel

if TYPE_CHECKING:
    from typing import TypeAlias

    from runner.output.rows import ClipRow, OpenShards
    from runner.pipeline.assembler import ClipAssembler
    from runner.pipeline.messages import Progress
    from runner.pipeline.shard_writers import ShardWriters
    from runner.pipeline.shutdown import Shutdown

    Results: TypeAlias = Channel[EmbeddedBatch | Sequence[ClipResult]]

_RESULTS_AHEAD = 64
"""Batches that may wait for the collector before replicas wait for it."""


class Collector:
    """Assembles clips in a thread of its own, counts them, and hands complete shards to the writers.

    Args:
        assembler: the clips in progress.
        shards: the shards in progress.
        writers: of complete shards.
        progress: counts, updated for every clip.
        on_skip: called with every clip that is skipped; its error ends the run.
        shutdown: the pipeline's.

    Attributes:
        results: channel for embeddings and ends of clips.
    """

    def __init__(
        self,
        assembler: ClipAssembler,
        shards: OpenShards,
        writers: ShardWriters,
        progress: Progress,
        on_skip: Callable[[ClipRow], None],
        shutdown: Shutdown,
    ) -> None:
        self._assembler = assembler
        self._shards = shards
        self._writers = writers
        self._progress = progress
        self._on_skip = on_skip
        self.results: Results = Channel(_RESULTS_AHEAD, shutdown)
        self._thread = threading.Thread(target=shutdown.guard, args=(self._collect,), name="collector", daemon=True)

    def start(self) -> None:
        """Start collecting."""
        self._thread.start()

    def join(self) -> None:
        """Wait until all results that were put are collected; no more may be put."""
        self.results.put(None)
        self._thread.join()

    def _collect(self) -> None:
        while (message := self.results.get()) is not None:
            if isinstance(message, EmbeddedBatch):
                ended = self._assembler.add_embeddings(message.segments, message.embeddings)
            else:
                ended = self._assembler.add_results(message)
            self._count([row for row, _ in ended])
            for row, clip in ended:
                if shard := self._shards.add(clip.number, row):
                    self._writers.put(*shard)

    def _count(self, rows: Sequence[ClipRow]) -> None:
        progress = self._progress
        progress.clips += len(rows)
        embedded = [row for row in rows if row.status == "embedded"]
        progress.embedded += len(embedded)
        progress.examples += sum([row.examples for row in embedded])
        progress.audio_s += sum([row.seconds for row in embedded])
        progress.padded += sum([row.padded for row in embedded])
        for row in embedded:
            if row.reason:
                progress.noted[row.reason] = progress.noted.get(row.reason, 0) + 1
        for row in rows if len(embedded) < len(rows) else ():
            if row.status == "skipped":
                reason = row.reason or "unknown"
                progress.skipped[reason] = progress.skipped.get(reason, 0) + 1
                self._on_skip(row)
