"""Threads that embed batches on the replicas."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from runner.core.errors import ParityError
from runner.pipeline.messages import BatchTiming, EmbeddedBatch

if TYPE_CHECKING:
    from runner.inference.canary import Canary
    from runner.pipeline.batching import BatchQueue
    from runner.pipeline.collector import Results
    from runner.pipeline.decode_pool import DecodePool
    from runner.pipeline.messages import FilledSlot, PipelineStats, Replica
    from runner.pipeline.shutdown import Shutdown

log = logging.getLogger(__name__)


class ReplicaPool:
    """Replicas, each in as many threads as keep it busy, that take batches from one queue.

    A replica that fails is retired, and its batch goes to another one; the error of the last one ends the run.

    Args:
        replicas: a model on each device.
        batches: queue of full slots.
        pool: the decode pool, whose slots they are.
        results: channel for the embeddings.
        stats: the pipeline's.
        shutdown: the pipeline's.
    """

    def __init__(
        self,
        replicas: Sequence[Replica],
        batches: BatchQueue,
        pool: DecodePool,
        results: Results,
        stats: PipelineStats,
        shutdown: Shutdown,
    ) -> None:
        self._replicas = replicas
        self._batches = batches
        self._pool = pool
        self._results = results
        self._stats = stats
        self._shutdown = shutdown
        self._retired: set[int] = set()
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=shutdown.guard, args=(self._embed_batches, number), name=replica.name, daemon=True)
            for number, replica in enumerate(replicas)
            for _ in range(replica.threads)
        ]

    @property
    def canaries(self) -> list[Canary]:
        """The replicas' canaries."""
        return [replica.canary for replica in self._replicas if replica.canary]

    def start(self) -> None:
        """Start embedding."""
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        """Wait until all batches are embedded, or the run ends early; then run the last canaries."""
        for thread in self._threads:
            thread.join()
        for canary in self.canaries if not self._shutdown.has_failed else ():
            self._shutdown.guard(canary.finish)

    def _embed_batches(self, number: int) -> None:
        replica, stats = self._replicas[number], self._stats
        while (batch := self._next_batch(number)) is not None:
            if number in self._retired:
                self._batches.requeue(batch)
                return
            if self._shutdown.is_overdue:
                self._batches.abort()
                return
            copied = _Stopwatch()
            start = time.perf_counter()
            try:
                embeddings = replica.embed(self._pool.windows(batch), copied)
            except ParityError as error:  # its earlier embeddings are suspect too: no other replica can make up for it
                self._shutdown.fail(error)
                return
            except Exception as error:
                self._retire(number, batch, error)
                return
            end = stats.results_at = time.perf_counter()
            since = stats.started_at
            copied_s = None if copied.stopped_at is None else copied.stopped_at - since
            stats.timings.append(BatchTiming(number, start - since, copied_s, end - since, batch.rows))
            self._pool.release(batch.slot)
            self._results.put(EmbeddedBatch(batch.segments, embeddings))
            with self._lock:
                stats.examples_done += batch.rows
            self._batches.done()

    def _next_batch(self, number: int) -> FilledSlot | None:
        start = time.perf_counter()
        batch = self._batches.get()
        waited = time.perf_counter() - start
        if batch is not None:
            with self._lock:
                self._stats.input_wait_s[number] = self._stats.input_wait_s.get(number, 0.0) + waited
        return batch

    def _retire(self, number: int, batch: FilledSlot, error: Exception) -> None:
        """Stop using a replica that failed; its batch goes to another one, if there is any."""
        with self._lock:
            if number not in self._retired:
                self._retired.add(number)
                self._stats.replica_failures.append(f"{self._replicas[number].name}: {type(error).__name__}: {error}")
                log.warning("disabled replica %s after an error", self._replicas[number].name, exc_info=error)
            if len(self._retired) == len(self._replicas):
                self._shutdown.fail(error)
                return
        self._batches.requeue(batch)


class _Stopwatch:
    """A callback that notes when it is called."""

    stopped_at: float | None = None

    def __call__(self) -> None:
        self.stopped_at = time.perf_counter()
