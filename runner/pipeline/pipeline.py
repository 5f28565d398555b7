"""The pipeline from clips to shards: decode pool → batches → replicas → collector → writers.

The calling thread feeds the decode pool and passes full batches on; each replica embeds in as many threads as keep it
busy; the collector assembles clips and shards, and the writers write complete shards.  The pool's slots and the bounded
channels before collector and writers keep memory independent of the number and length of clips.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runner.core.errors import EngineError, ParityError
from runner.output.rows import OpenShards
from runner.pipeline.assembler import ClipAssembler
from runner.pipeline.batching import BatchFiller, BatchQueue
from runner.pipeline.collector import Collector
from runner.pipeline.feeder import Feeder
from runner.pipeline.messages import PipelineStats
from runner.pipeline.replica_pool import ReplicaPool
from runner.pipeline.shard_writers import ShardWriters
from runner.pipeline.shutdown import POLL_S, Shutdown

if TYPE_CHECKING:
    from runner.core.span import Span
    from runner.dataset.clips import Clip
    from runner.output.rows import ClipRow
    from runner.output.spill import Spill
    from runner.output.writer import Writer
    from runner.pipeline.decode_pool import DecodePool
    from runner.pipeline.messages import ClipResult, Replica

_RESULTS_EVERY_S = 0.05
"""Time between two messages of finished clips to the collector: each takes the interpreter from a thread at work."""


@dataclass(frozen=True)
class ShardedClips:
    """Clips to embed, and the shards they belong to.

    Attributes:
        shards: (first clip, one past the last clip) of each shard, in order.
        clips: the clips of all shards, in order; None where none is ready yet, and more may come.
        count: number of the clips; all of the shards' when None.
    """

    shards: Sequence[Span]
    clips: Iterator[Clip | None]
    count: int | None = None

    def __len__(self) -> int:
        if self.count is not None:
            return self.count
        return self.shards[-1][1] if self.shards else 0


class EmbeddingPipeline:
    """Embeds clips and writes them in shards.

    Args:
        work: the clips, and their shards.
        pool: the decode pool, open.
        writer: of complete shards.
        shutdown_timeout_s: seconds that the shards in progress may still take after ``stop``.
        on_skip: called with every clip that is skipped; its error ends the run.
        spill: store for embeddings until their shard is written; in memory when None.

    Attributes:
        stats: counts and times so far.
    """

    def __init__(
        self,
        work: ShardedClips,
        pool: DecodePool,
        writer: Writer,
        *,
        shutdown_timeout_s: float,
        on_skip: Callable[[ClipRow], None] = lambda row: None,
        spill: Spill | None = None,
    ) -> None:
        self.stats = PipelineStats()
        self._pool = pool
        self._writer = writer
        self._open_shards = OpenShards(work.shards)
        self._assembler = ClipAssembler(spill)
        self._feeder = Feeder(work.clips, pool, len(work), self._assembler.register, self._assembler.discard)
        self._batch_filler = BatchFiller(pool.memory, pool.release)
        self._batches = BatchQueue()
        self._shutdown = Shutdown(shutdown_timeout_s, self._batches.abort)
        self._writers = ShardWriters(writer, self.stats, self._shutdown)
        self._collector = Collector(
            self._assembler, self._open_shards, self._writers, self.stats.progress, on_skip, self._shutdown
        )

    def stop(self) -> None:
        """Ask for an early end: no new shard is begun, and those in progress may take ``shutdown_timeout_s``."""
        self._shutdown.request()

    def abort(self, error: Exception) -> None:
        """End with an error, whatever is in progress."""
        self._shutdown.fail(error)

    @property
    def stopped(self) -> bool:
        """Whether an early end was asked for."""
        return self._shutdown.requested

    def run(self, replicas: Sequence[Replica]) -> None:
        """Embed all clips and wait until they are written.

        Raises:
            EngineError: clips were lost on the way.
            Exception: the first error of any thread.
        """
        cpu_before = time.process_time()
        self.stats.started_at = self.stats.results_at = time.perf_counter()
        replica_pool = ReplicaPool(
            replicas, self._batches, self._pool, self._collector.results, self.stats, self._shutdown
        )
        replica_pool.start()
        self._collector.start()
        self._writers.start()
        self._shutdown.guard(self._feed)
        replica_pool.join()
        self._collector.join()
        self._writers.join()
        if isinstance(self._shutdown.error, ParityError):
            trusted = min(canary.trusted for canary in replica_pool.canaries)
            self._shutdown.guard(self._writer.revoke_from, trusted)
        self._check_complete()
        self.stats.cpu_s = time.process_time() - cpu_before

    def _check_complete(self) -> None:
        if self._shutdown.error is not None:
            raise self._shutdown.error
        clips, shards = len(self._assembler), len(self._open_shards)
        if (clips or shards) and not self.stopped:
            raise EngineError(
                f"{clips:,} clips and {shards:,} shards had no end when all else had: "
                "rerun the same command, and please report it with runner.log"
            )

    def _feed(self) -> None:
        """Feed the decode pool, and pass on the batches and results that come of it, until all clips are decoded."""
        finished: list[ClipResult] = []
        passed_on_at = time.monotonic()
        while not self._shutdown.has_failed:
            more = self._feeder.feed(self._may_start)
            if self._shutdown.is_overdue or not more:
                break
            for decoded in self._pool.receive(POLL_S):
                if decoded.filled is not None:
                    for batch in self._batch_filler.add(decoded.filled):
                        self._batches.put(batch)
                finished.extend(decoded.finished)
            if finished and time.monotonic() - passed_on_at > _RESULTS_EVERY_S:
                self._collector.results.put(finished)
                finished, passed_on_at = [], time.monotonic()
            if self._batches.has_idle_replica:
                for batch in self._batch_filler.expired():
                    self._batches.put(batch)
        self._collector.results.put(finished)
        if self._shutdown.is_overdue:
            self._batches.abort()
        for batch in self._batch_filler.flush():
            self._batches.put(batch)
        self._batches.close()

    def _may_start(self, clip: Clip, last_clip: int | None) -> bool:
        """Whether to begin a clip; once a stop was asked for, only to finish the shard of the last one."""
        if not self.stopped:
            return True
        shard_of = self._open_shards.shard_of
        return last_clip is not None and shard_of(clip.number) == shard_of(last_clip)
