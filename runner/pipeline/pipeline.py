"""The local engine: decode pool → batches filled across clips → replicas → shards.

The feeder drives the decode pool and hands full slots to the replicas; each replica, one a device, runs its session
in as
many threads as keep it busy; the collector puts embeddings back to their clips, and the writer writes complete shards.
What flows is bounded by the pool's slots and by the queues before collector and writer, so that memory does not grow
with the number or length of clips.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from runner.core.errors import EngineError, ParityError
from runner.devices.host import usable_cores
from runner.output.rows import OpenShards
from runner.pipeline.assembler import ClipAssembler
from runner.pipeline.batching import BatchQueue, Merger
from runner.pipeline.feeder import Feeder
from runner.pipeline.messages import BatchTiming, Progress

if TYPE_CHECKING:
    from runner.core.span import Span
    from runner.dataset.clips import Clip
    from runner.inference.canary import Canary
    from runner.output.rows import ClipRow
    from runner.output.spill import Spill
    from runner.output.writer import Writer
    from runner.pipeline.decode_pool import DecodePool
    from runner.pipeline.messages import ClipResult, FilledSlot, Replica, Segment

Array = NDArray[np.float32]

log = logging.getLogger("runner.engines.worker")

_POLL_S = 0.1

_RESULTS_AHEAD = 64
"""Batches that may wait for the collector before replicas wait for it."""

_SHARDS_AHEAD = 4
"""Complete shards that may wait for a writer before the collector waits for one."""

_CORES_A_WRITER = 4

_WRITERS = 4
"""Threads that write shards, at most: one for every four cores.  Compressing, hashing and flushing run in parallel."""


class EmbeddingPipeline:
    """Embeds the clips of the shards given.

    Args:
        shards: (first clip, one past the last clip) of each shard, in order.
        clips: the clips of all shards, in order; None where there is none for now, and more may come.
        pool: the decode pool, open.
        writer: takes complete shards.
        shutdown_timeout_s: how long after ``stop`` the shards under way may still take.
        clips_left: how many clips those are; all of the shards' when None.
        on_skip: told of every clip that is skipped; what it raises ends the run.
        spill: keeps embeddings until their shard is written; they are all kept in memory when None.
    """

    def __init__(
        self,
        shards: Sequence[Span],
        clips: Iterator[Clip | None],
        pool: DecodePool,
        writer: Writer,
        *,
        shutdown_timeout_s: float,
        clips_left: int | None = None,
        on_skip: Callable[[ClipRow], None] = lambda row: None,
        spill: Spill | None = None,
    ) -> None:
        self._on_skip = on_skip
        self._open_shards = OpenShards(shards)
        self._pool = pool
        self._writer = writer
        self._stop_grace_s = shutdown_timeout_s
        if clips_left is None:
            clips_left = shards[-1][1] if shards else 0
        self._gathering = ClipAssembler(spill)
        self._feeder = Feeder(clips, pool, clips_left, self._gathering.register, self._gathering.forget)
        self._batches = BatchQueue()
        self._merger = Merger(pool.memory.rows, pool.windows, pool.release)
        self._results: queue.Queue[tuple[list[Segment], Array] | Sequence[ClipResult] | None]
        self._results = queue.Queue(_RESULTS_AHEAD)
        self._complete: queue.Queue[tuple[int, list[ClipRow]] | None] = queue.Queue(_SHARDS_AHEAD)
        self._stop_at: float | None = None
        self._failure: BaseException | None = None
        self._failed = threading.Event()
        self._replicas: Sequence[Replica] = ()
        self._ends: list[threading.Thread] = []
        self._retired: set[int] = set()
        self._replicas_lock = threading.Lock()
        self.progress = Progress()
        self.timings: list[BatchTiming] = []
        self.started_at = 0.0
        self.results_at = 0.0
        """``time.perf_counter`` when the last result was on the host."""
        self.cpu_s = 0.0
        """This process's processor time while the engine ran."""
        self.write_s = 0.0
        """Seconds in which a writer wrote a shard, of all writers together."""
        self.writers = writer_threads()
        """Threads that write shards."""
        self._write_lock = threading.Lock()
        self.starved_s: dict[int, float] = {}
        """Seconds that the threads of each replica waited for a batch, of all of them together."""
        self.replica_failures: list[str] = []
        """What became of replicas that were given up."""
        self.examples_done = 0
        """Examples that replicas have embedded, of clips that are under way or were given up too."""

    def stop(self) -> None:
        """Ask for an early end: the shards under way are finished within the grace, no new one is begun."""
        if self._stop_at is None:
            self._stop_at = time.monotonic() + self._stop_grace_s

    @property
    def stopped(self) -> bool:
        """Whether an early end was asked for."""
        return self._stop_at is not None

    def run(self, replicas: Sequence[Replica]) -> None:
        """Embed everything; returns when all results are on disk, raises what a thread raised.

        Raises:
            EngineError: something was lost on the way, and not all clips ended.
        """
        cpu_before = time.process_time()
        self._embed(replicas)
        self._finish()
        self.cpu_s = time.process_time() - cpu_before

    def _embed(self, replicas: Sequence[Replica]) -> None:
        self._replicas = replicas
        self.started_at = self.results_at = time.perf_counter()
        workers = [
            threading.Thread(target=self._guard, args=(self._replica, number), name=replica.name, daemon=True)
            for number, replica in enumerate(replicas)
            for _ in range(replica.threads)
        ]
        self._ends = [
            threading.Thread(target=self._guard, args=(body,), name=name, daemon=True)
            for name, body in (("collector", self._collect), *[("writer", self._write)] * self.writers)
        ]
        for thread in (*workers, *self._ends):
            thread.start()
        self._guard(self._feed)
        for thread in workers:
            thread.join()
        for canary in self._canaries() if self._failure is None else ():
            self._guard(canary.finish)

    def _finish(self) -> None:
        self._put(self._results, None)
        for thread in self._ends:
            thread.join()
        if isinstance(self._failure, ParityError):
            self._guard(self._writer.revoke_from, min(canary.trusted for canary in self._canaries()))
        if self._failure is not None:
            raise self._failure
        clips, shards = len(self._gathering), len(self._open_shards)
        if (clips or shards) and not self.stopped:
            raise EngineError(
                f"{clips:,} clips and {shards:,} shards had no end when all else had: "
                "rerun the same command, and please report it with runner.log"
            )

    def _canaries(self) -> list[Canary]:
        return [replica.canary for replica in self._replicas if replica.canary]

    def _guard(self, body: Callable[..., None], *arguments: object) -> None:
        try:
            body(*arguments)
        except BaseException as error:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        if self._failure is None:
            self._failure = error
        self._failed.set()
        self._batches.abort()

    # The feeder

    def _feed(self) -> None:
        while not self._failed.is_set():
            more = self._feeder.feed(self._may_start)
            if self._out_of_grace() or not more:
                break
            for decoded in self._pool.receive(_POLL_S):
                if decoded.filled is not None:
                    for full in self._merger.add(decoded.filled):
                        self._batches.put(full)
                if decoded.finished:
                    self._put(self._results, decoded.finished)
            if self._batches.has_idle_replica:
                for batch in self._merger.expired():
                    self._batches.put(batch)
        if self._out_of_grace():
            self._batches.abort()
        for batch in self._merger.rest():
            self._batches.put(batch)
        self._batches.close()

    def _may_start(self, clip: Clip, last_clip: int | None) -> bool:
        """Always, unless stopping: then only to finish a shard that was begun."""
        if not self.stopped:
            return True
        shard_of = self._open_shards.shard_of
        return last_clip is not None and shard_of(clip.number) == shard_of(last_clip)

    def _out_of_grace(self) -> bool:
        return self._stop_at is not None and time.monotonic() > self._stop_at

    # The replicas

    def _replica(self, number: int) -> None:
        replica = self._replicas[number]
        while (batch := self._next_batch(number)) is not None:
            if number in self._retired:
                self._batches.requeue(batch)
                return
            if self._out_of_grace():
                self._batches.abort()
                return
            copied = _Stopwatch()
            start = time.perf_counter()
            try:
                embeddings = replica.embed(self._pool.windows(batch), copied)
            except ParityError as error:  # no other replica makes good what this one gave before
                self._fail(error)
                return
            except Exception as error:
                self._retire_replica(number, batch, error)
                return
            end = self.results_at = time.perf_counter()
            since = self.started_at
            on_device = None if copied.at is None else copied.at - since
            self.timings.append(BatchTiming(number, start - since, on_device, end - since, batch.rows))
            self._pool.release(batch.slot)
            self._put(self._results, (batch.segments, embeddings))
            with self._replicas_lock:
                self.examples_done += batch.rows
            self._batches.done()

    def _next_batch(self, number: int) -> FilledSlot | None:
        start = time.perf_counter()
        batch = self._batches.get()
        waited = time.perf_counter() - start
        if batch is not None:
            with self._replicas_lock:
                self.starved_s[number] = self.starved_s.get(number, 0.0) + waited
        return batch

    def _retire_replica(self, number: int, batch: FilledSlot, error: Exception) -> None:
        """A replica failed: its batch goes to another one, if there is any."""
        with self._replicas_lock:
            if number not in self._retired:
                self._retired.add(number)
                self.replica_failures.append(f"{self._replicas[number].name}: {type(error).__name__}: {error}")
                log.warning("replica %s is given up", self._replicas[number].name, exc_info=error)
            if len(self._retired) == len(self._replicas):
                self._fail(error)
                return
        self._batches.requeue(batch)

    # The collector and the writer

    def _put(self, target: queue.Queue[Any], message: Any) -> None:
        while not self._failed.is_set():
            try:
                target.put(message, timeout=_POLL_S)
                return
            except queue.Full:
                continue

    def _get(self, source: queue.Queue[Any]) -> Any:
        """What is next; None at the end, or when the run has failed."""
        while not self._failed.is_set():
            try:
                return source.get(timeout=_POLL_S)
            except queue.Empty:
                continue
        return None

    def _collect(self) -> None:
        while (message := self._get(self._results)) is not None:
            gathering = self._gathering
            ended = (
                gathering.add_embeddings(*message) if isinstance(message, tuple) else gathering.take_results(message)
            )
            for row, clip in ended:
                self._count(row)
                if complete := self._open_shards.add(clip.number, row):
                    self._put(self._complete, complete)
        for _ in range(self.writers):
            self._put(self._complete, None)

    def _write(self) -> None:
        while (complete := self._get(self._complete)) is not None:
            start = time.perf_counter()
            self._writer.write_shard(*complete)
            with self._write_lock:
                self.progress.shards += 1
                self.write_s += time.perf_counter() - start

    def _count(self, row: ClipRow) -> None:
        progress = self.progress
        progress.clips += 1
        if row.status == "skipped":
            reason = row.reason or "unknown"
            progress.skipped[reason] = progress.skipped.get(reason, 0) + 1
            self._on_skip(row)
            return
        progress.embedded += 1
        progress.examples += row.examples
        progress.audio_s += row.seconds
        progress.padded += row.padded
        if row.reason:
            progress.noted[row.reason] = progress.noted.get(row.reason, 0) + 1


def writer_threads() -> int:
    """Threads that write shards on this machine."""
    return max(1, min(_WRITERS, usable_cores() // _CORES_A_WRITER))


class _Stopwatch:
    """Called, it keeps the time."""

    at: float | None = None

    def __call__(self) -> None:
        self.at = time.perf_counter()
