"""The local engine: decode pool → batches filled across clips → lanes → shards.

The feeder drives the decode pool and hands full slots to the lanes; each lane, one a device, runs its session in as
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
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from runner.batching import BatchQueue, Merger
from runner.decode import ClipResult, Segment
from runner.errors import EngineError, ParityError
from runner.feeding import Feeder
from runner.gathering import Clip, Gathering
from runner.hardware import usable_cores
from runner.output import ClipRow, OpenShards, RunWriter
from runner.pool import DecodePool, FilledSlot
from runner.slots import Windows
from runner.spill import Spill

if TYPE_CHECKING:
    from runner.canary import Canary
    from runner.vggish.session import VGGishSession

log = logging.getLogger("runner.worker")

Array = NDArray[np.float32]
_POLL_S = 0.1
_RESULTS_AHEAD = 64
"""Batches that may wait for the collector before lanes wait for it."""
_SHARDS_AHEAD = 4
"""Complete shards that may wait for a writer before the collector waits for one."""
_CORES_A_WRITER = 4
_WRITERS = 4
"""Threads that write shards, at most: one for every four cores.  Compressing, hashing and flushing run in parallel."""


@dataclass(frozen=True)
class Lane:
    """One compute device at work.

    ``embed`` takes windows, int16 or float32 [n, 15600], and a function that it may call once they are on the device;
    it gives float32 [n, 128].  ``threads`` batches are in flight at a time, so that copies and compute overlap.
    ``canary`` is told of the end, and knows which shards are to be trusted after a ``ParityError``.
    """

    name: str
    embed: Callable[[Windows, Callable[[], None]], Array]
    threads: int = 1
    canary: Canary | None = None

    @classmethod
    def watched(cls, session: VGGishSession, canary: Canary) -> Lane:
        """A session's lane, with canaries among its batches."""
        return cls(session.device_name[1:], canary.embed, session.in_flight, canary)


@dataclass(frozen=True)
class BatchTiming:
    """One batch in a lane: when it was taken, on the device and its result on the host, in seconds since the start.

    ``copied_s`` is None where the device reads host memory.
    """

    lane: int
    started_s: float
    copied_s: float | None
    at_s: float
    examples: int

    @property
    def duration_s(self) -> float:
        """Seconds from the batch's taking to its result on the host."""
        return self.at_s - self.started_s


@dataclass
class Progress:
    """Counts so far; written by the collector, read by anyone."""

    clips: int = 0
    embedded: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    noted: dict[str, int] = field(default_factory=dict)
    examples: int = 0
    audio_s: float = 0.0
    padded: int = 0
    shards: int = 0


class Engine:
    """Embeds the clips of the shards given.

    Args:
        shards: (first clip, one past the last clip) of each shard, in order.
        clips: the clips of all shards, in order; None where there is none for now, and more may come.
        pool: the decode pool, open.
        writer: takes complete shards.
        stop_grace_s: how long after ``stop`` the shards under way may still take.
        clips_left: how many clips those are; all of the shards' when None.
        on_skip: told of every clip that is skipped; what it raises ends the run.
        spill: keeps embeddings until their shard is written; they are all kept in memory when None.
    """

    def __init__(
        self,
        shards: Sequence[tuple[int, int]],
        clips: Iterator[Clip | None],
        pool: DecodePool,
        writer: RunWriter,
        *,
        stop_grace_s: float,
        clips_left: int | None = None,
        on_skip: Callable[[ClipRow], None] = lambda row: None,
        spill: Spill | None = None,
    ) -> None:
        self._on_skip = on_skip
        self._open_shards = OpenShards(shards)
        self._pool = pool
        self._writer = writer
        self._stop_grace_s = stop_grace_s
        if clips_left is None:
            clips_left = shards[-1][1] if shards else 0
        self._gathering = Gathering(spill)
        self._feeder = Feeder(clips, pool, clips_left, self._gathering.register, self._gathering.forget)
        self._batches = BatchQueue()
        self._merger = Merger(pool.memory.rows, pool.windows, pool.release)
        self._results: queue.Queue[tuple[list[Segment], Array] | Sequence[ClipResult] | None]
        self._results = queue.Queue(_RESULTS_AHEAD)
        self._complete: queue.Queue[tuple[int, list[ClipRow]] | None] = queue.Queue(_SHARDS_AHEAD)
        self._stop_at: float | None = None
        self._failure: BaseException | None = None
        self._failed = threading.Event()
        self._lanes: Sequence[Lane] = ()
        self._ends: list[threading.Thread] = []
        self._lost_lanes: set[int] = set()
        self._lanes_lock = threading.Lock()
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
        """Seconds that the threads of each lane waited for a batch, of all of them together."""
        self.lane_failures: list[str] = []
        """What became of lanes that were given up."""
        self.examples_done = 0
        """Examples that lanes have embedded, of clips that are under way or were given up too."""

    def stop(self) -> None:
        """Ask for an early end: the shards under way are finished within the grace, no new one is begun."""
        if self._stop_at is None:
            self._stop_at = time.monotonic() + self._stop_grace_s

    @property
    def stopped(self) -> bool:
        """Whether an early end was asked for."""
        return self._stop_at is not None

    def run(self, lanes: Sequence[Lane]) -> None:
        """Embed everything; returns when all results are on disk, raises what a thread raised.

        Raises:
            EngineError: something was lost on the way, and not all clips ended.
        """
        cpu_before = time.process_time()
        self._embed(lanes)
        self._finish()
        self.cpu_s = time.process_time() - cpu_before

    def _embed(self, lanes: Sequence[Lane]) -> None:
        self._lanes = lanes
        self.started_at = self.results_at = time.perf_counter()
        workers = [
            threading.Thread(target=self._guard, args=(self._lane, number), name=lane.name, daemon=True)
            for number, lane in enumerate(lanes)
            for _ in range(lane.threads)
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
            self._guard(self._writer.take_back, min(canary.trusted for canary in self._canaries()))
        self._guard(self._writer.close)
        if self._failure is not None:
            raise self._failure
        clips, shards = len(self._gathering), len(self._open_shards)
        if (clips or shards) and not self.stopped:
            raise EngineError(
                f"{clips:,} clips and {shards:,} shards had no end when all else had: "
                "run the same command again, and please report it with runner.log"
            )

    def _canaries(self) -> list[Canary]:
        return [lane.canary for lane in self._lanes if lane.canary]

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
            if self._batches.starving:
                for batch in self._merger.overdue():
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
        return last_clip is not None and self._open_shards.of(clip.number) == self._open_shards.of(last_clip)

    def _out_of_grace(self) -> bool:
        return self._stop_at is not None and time.monotonic() > self._stop_at

    # The lanes

    def _lane(self, number: int) -> None:
        lane = self._lanes[number]
        while (batch := self._next_batch(number)) is not None:
            if number in self._lost_lanes:
                self._batches.hand_back(batch)
                return
            if self._out_of_grace():
                self._batches.abort()
                return
            copied = _Stopwatch()
            start = time.perf_counter()
            try:
                embeddings = lane.embed(self._pool.windows(batch), copied)
            except ParityError as error:  # no other lane makes good what this one gave before
                self._fail(error)
                return
            except Exception as error:
                self._give_up(number, batch, error)
                return
            end = self.results_at = time.perf_counter()
            since = self.started_at
            on_device = None if copied.at is None else copied.at - since
            self.timings.append(BatchTiming(number, start - since, on_device, end - since, batch.rows))
            self._pool.release(batch.slot)
            self._put(self._results, (batch.segments, embeddings))
            with self._lanes_lock:
                self.examples_done += batch.rows
            self._batches.done()

    def _next_batch(self, number: int) -> FilledSlot | None:
        start = time.perf_counter()
        batch = self._batches.get()
        waited = time.perf_counter() - start
        if batch is not None:
            with self._lanes_lock:
                self.starved_s[number] = self.starved_s.get(number, 0.0) + waited
        return batch

    def _give_up(self, number: int, batch: FilledSlot, error: Exception) -> None:
        """A lane failed: its batch goes to another one, if there is any."""
        with self._lanes_lock:
            if number not in self._lost_lanes:
                self._lost_lanes.add(number)
                self.lane_failures.append(f"{self._lanes[number].name}: {type(error).__name__}: {error}")
                log.warning("lane %s is given up", self._lanes[number].name, exc_info=error)
            if len(self._lost_lanes) == len(self._lanes):
                self._fail(error)
                return
        self._batches.hand_back(batch)

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
            ended = gathering.take_rows(*message) if isinstance(message, tuple) else gathering.take_results(message)
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
