"""The local engine: decode pool → batches filled across clips → lane → shards.

Three threads, each with one thing to wait for: the feeder drives the decode pool and fills batches, the lane runs the
session, the collector puts embeddings back to their clips and writes shards.  Bounded queues between them carry the
back-pressure, so that memory does not grow with the number or length of clips.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from runner.decode import ClipResult, ClipTask, Segment
from runner.output import ClipRow, OpenShards, RunWriter
from runner.pool import DecodePool
from runner.vggish.checkpoint import aligned_empty
from runner.vggish.constants import EMBEDDING_SIZE, EXAMPLE_SAMPLES

Array = NDArray[np.float32]
Embed = Callable[[Array], Array]
_POLL_S = 0.1


@dataclass(frozen=True)
class Clip:
    """A row of the manifest; ``bytes`` is the file's size, -1 if unknown."""

    index: int
    name: str
    path: bytes
    start: float | None
    end: float | None
    label: str | None
    bytes: int


@dataclass(frozen=True)
class BatchTiming:
    """One call of the session: when its result was on the host (seconds since the start), how long, how much."""

    at_s: float
    duration_s: float
    examples: int


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


@dataclass
class _Batch:
    rows: Array
    segments: list[Segment] = field(default_factory=list)
    filled: int = 0


@dataclass
class _Pending:
    clip: Clip
    job: int
    parts: dict[int, Array] = field(default_factory=dict)
    examples: int = 0
    result: ClipResult | None = None


class Engine:
    """Embeds the clips of the shards given, through one session.

    Args:
        shards: (first clip, one past the last clip) of each shard, in order.
        clips: the clips of all shards, in order.
        pool: the decode pool.
        writer: takes complete shards.
        batch_size: examples a batch.
        queue_depth: batches that wait ahead of the lane.
        stop_grace_s: how long after ``stop`` the shards under way may still take.
    """

    def __init__(
        self,
        shards: Sequence[tuple[int, int]],
        clips: Iterator[Clip],
        pool: DecodePool,
        writer: RunWriter,
        *,
        batch_size: int,
        queue_depth: int,
        stop_grace_s: float,
    ) -> None:
        self._open_shards = OpenShards(shards)
        self._clips = clips
        self._pool = pool
        self._writer = writer
        self._batch_size = batch_size
        self._stop_grace_s = stop_grace_s
        self._batches: queue.Queue[_Batch | None] = queue.Queue(queue_depth)
        self._results: queue.Queue[tuple[list[Segment], Array] | list[ClipResult] | None] = queue.Queue()
        self._stop_at: float | None = None
        self._failure: BaseException | None = None
        self._failed = threading.Event()
        self._lock = threading.Lock()
        self._pending: dict[int, _Pending] = {}
        self._next_job = 0
        self.progress = Progress()
        self.timings: list[BatchTiming] = []
        self.started_at = 0.0
        self.results_at = 0.0
        """``time.perf_counter`` when the last result was on the host."""
        self.cpu_s = 0.0
        """This process's processor time while the engine ran."""

    def stop(self) -> None:
        """Ask for an early end: the shards under way are finished within the grace, no new one is begun."""
        if self._stop_at is None:
            self._stop_at = time.monotonic() + self._stop_grace_s

    @property
    def stopped(self) -> bool:
        """Whether an early end was asked for."""
        return self._stop_at is not None

    def run(self, embed: Embed) -> None:
        """Embed everything; returns when all results are on disk, raises what a thread raised."""
        self.started_at = self.results_at = time.perf_counter()
        cpu_before = time.process_time()
        threads = [
            threading.Thread(target=self._guard, args=(body, *arguments), name=name, daemon=True)
            for name, body, *arguments in (
                ("lane", self._lane, embed),
                ("collector", self._collect),
            )
        ]
        for thread in threads:
            thread.start()
        self._guard(self._feed)
        for thread in threads:
            thread.join()
        self.cpu_s = time.process_time() - cpu_before
        if self._failure is not None:
            raise self._failure

    def _guard(self, body: Callable[..., None], *arguments: object) -> None:
        try:
            body(*arguments)
        except BaseException as error:
            if self._failure is None:
                self._failure = error
            self._failed.set()

    # The feeder

    def _feed(self) -> None:
        batch = self._new_batch()
        last_clip: int | None = None
        waiting: Clip | None = next(self._clips, None)
        while not self._failed.is_set():
            for task, size in self._pool.retries():
                self._submit_again(task, size)
            while waiting is not None and self._pool.has_room and self._may_start(waiting, last_clip):
                self._submit(waiting)
                last_clip, waiting = waiting.index, next(self._clips, None)
            if self._out_of_grace():
                break
            if not self._pool.outstanding and (waiting is None or not self._may_start(waiting, last_clip)):
                break
            for decoded in self._pool.receive(_POLL_S):
                batch = self._fill(batch, decoded.windows, decoded.segments)
                if decoded.finished:
                    self._results.put(list(decoded.finished))
        if batch.filled and not self._out_of_grace():
            self._put_batch(batch)
        self._put_batch(None)

    def _may_start(self, clip: Clip, last_clip: int | None) -> bool:
        """Always, unless stopping: then only to finish a shard that was begun."""
        if not self.stopped:
            return True
        return last_clip is not None and self._open_shards.of(clip.index) == self._open_shards.of(last_clip)

    def _out_of_grace(self) -> bool:
        return self._stop_at is not None and time.monotonic() > self._stop_at

    def _submit(self, clip: Clip) -> None:
        job = self._register(clip)
        self._pool.submit(ClipTask(job, clip.path, clip.start, clip.end), clip.bytes)

    def _submit_again(self, task: ClipTask, size: int) -> None:
        with self._lock:
            clip = self._pending.pop(task.job).clip
        self._pool.submit(task._replace(job=self._register(clip)), size)

    def _register(self, clip: Clip) -> int:
        with self._lock:
            job, self._next_job = self._next_job, self._next_job + 1
            self._pending[job] = _Pending(clip, job)
        return job

    def _new_batch(self) -> _Batch:
        return _Batch(aligned_empty((self._batch_size, EXAMPLE_SAMPLES)))

    def _fill(self, batch: _Batch, windows: Array, segments: Sequence[Segment]) -> _Batch:
        row = 0
        for segment in segments:
            first, left = segment.first, segment.windows
            while left:
                count = min(left, self._batch_size - batch.filled)
                batch.rows[batch.filled : batch.filled + count] = windows[row : row + count]
                batch.segments.append(Segment(segment.job, first, count))
                batch.filled += count
                first, left, row = first + count, left - count, row + count
                if batch.filled == self._batch_size:
                    self._put_batch(batch)
                    batch = self._new_batch()
        return batch

    def _put_batch(self, batch: _Batch | None) -> None:
        while not self._failed.is_set():
            try:
                self._batches.put(batch, timeout=_POLL_S)
                return
            except queue.Full:
                continue

    # The lane

    def _lane(self, embed: Embed) -> None:
        while not self._failed.is_set():
            try:
                batch = self._batches.get(timeout=_POLL_S)
            except queue.Empty:
                continue
            if batch is None or self._out_of_grace():
                break
            start = time.perf_counter()
            embeddings = embed(batch.rows[: batch.filled])
            self.results_at = time.perf_counter()
            self.timings.append(BatchTiming(self.results_at - self.started_at, self.results_at - start, batch.filled))
            self._results.put((batch.segments, embeddings))
        self._results.put(None)

    # The collector

    def _collect(self) -> None:
        while not self._failed.is_set():
            try:
                message = self._results.get(timeout=_POLL_S)
            except queue.Empty:
                continue
            if message is None:
                break
            ended = self._take_results(message) if isinstance(message, list) else self._take_rows(*message)
            for row, clip in ended:
                self._count(row)
                if complete := self._open_shards.add(clip.index, row):
                    self._writer.write_shard(*complete)
                    self.progress.shards += 1
        self._writer.close()

    def _take_results(self, results: list[ClipResult]) -> list[tuple[ClipRow, Clip]]:
        ended = []
        for result in results:
            with self._lock:
                pending = self._pending.get(result.job)
            if pending is not None:
                pending.result = result
                ended += self._end(pending)
        return ended

    def _take_rows(self, segments: list[Segment], embeddings: Array) -> list[tuple[ClipRow, Clip]]:
        ended = []
        row = 0
        for segment in segments:
            with self._lock:
                pending = self._pending.get(segment.job)
            if pending is not None:  # None: its decode process died and the clip is a new job, or it was skipped
                pending.parts[segment.first] = embeddings[row : row + segment.windows]
                pending.examples += segment.windows
                ended += self._end(pending)
            row += segment.windows
        return ended

    def _end(self, pending: _Pending) -> list[tuple[ClipRow, Clip]]:
        result, clip = pending.result, pending.clip
        if result is None or (result.embedded and pending.examples < result.examples):
            return []
        with self._lock:
            self._pending.pop(pending.job, None)
        parts = [pending.parts[first] for first in sorted(pending.parts)] if result.embedded else []
        row = ClipRow(
            clip=clip.name,
            status="embedded" if result.embedded else "skipped",
            reason=result.reason,
            detail=result.detail,
            examples=result.examples,
            seconds=result.seconds,
            sample_rate=result.sample_rate,
            channels=result.channels,
            padded=result.padded,
            label=clip.label,
            start_s=clip.start or 0.0,
            embeddings=np.concatenate(parts) if parts else np.empty((0, EMBEDDING_SIZE), np.float32),
        )
        return [(row, clip)]

    def _count(self, row: ClipRow) -> None:
        progress = self.progress
        progress.clips += 1
        if row.status == "skipped":
            reason = row.reason or "unknown"
            progress.skipped[reason] = progress.skipped.get(reason, 0) + 1
            return
        progress.embedded += 1
        progress.examples += row.examples
        progress.audio_s += row.seconds
        progress.padded += row.padded
        if row.reason:
            progress.noted[row.reason] = progress.noted.get(row.reason, 0) + 1
