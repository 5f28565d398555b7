"""Full batches from partly filled slots, and the queue that replicas take them from."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from runner.pipeline.messages import Segment

if TYPE_CHECKING:
    from runner.audio.source_windows import WindowKind
    from runner.pipeline.messages import FilledSlot
    from runner.pipeline.slots import SlotMemory

_WAIT_S = 0.25
"""Longest time that a partly filled slot waits for rows of others while a replica is idle."""


_MOST_KINDS = 2
"""Kinds of windows of which a slot may wait to be filled up: slots that wait are missing elsewhere."""


class BatchFiller:
    """Fills partly filled slots up from others of their kind, so that hardly a batch has empty rows.

    Args:
        memory: of the slots.
        release: function that returns an emptied slot to the pool.
    """

    def __init__(self, memory: SlotMemory, release: Callable[[int], None]) -> None:
        self._memory = memory
        self._release = release
        self._held: dict[WindowKind, tuple[FilledSlot, float]] = {}

    def add(self, filled: FilledSlot) -> Iterator[FilledSlot]:
        """Add a slot; yield the slots that are full, and the oldest where slots of too many kinds are held."""
        kind = filled.kind
        full = self._memory.rows_of(kind)
        if filled.rows == full:
            yield filled
            return
        held, _ = self._held.pop(kind, (None, 0.0))
        if held is None:
            self._hold(filled)
            if len(self._held) > _MOST_KINDS:
                yield self._held.pop(next(iter(self._held)))[0]
            return
        if held.rows < filled.rows:  # copy the fewer
            held, filled = filled, held
        moved = min(full - held.rows, filled.rows)
        joined = held._replace(rows=held.rows + moved, segments=held.segments + _first(filled.segments, moved))
        source = self._memory.windows(filled.slot, kind)
        self._memory.windows(joined.slot, kind)[held.rows : joined.rows] = source[:moved]
        if moved == filled.rows:
            self._release(filled.slot)
        else:
            remaining = filled._replace(rows=filled.rows - moved, segments=_without_first(filled.segments, moved))
            source[: remaining.rows] = source[moved : filled.rows].copy()
            self._hold(remaining)
        if joined.rows == full:
            yield joined
        else:
            self._hold(joined)

    def expired(self) -> Iterator[FilledSlot]:
        """Yield the slots that have waited for ``_WAIT_S``."""
        now = time.monotonic()
        for kind, (filled, since) in list(self._held.items()):
            if now - since > _WAIT_S:
                del self._held[kind]
                yield filled

    def flush(self) -> Iterator[FilledSlot]:
        """Yield all slots that wait."""
        while self._held:
            yield self._held.popitem()[1][0]

    def _hold(self, filled: FilledSlot) -> None:
        self._held[filled.kind] = filled, time.monotonic()


def _first(segments: list[Segment], rows: int) -> list[Segment]:
    """Cut the segments off after the first rows."""
    first_segments = []
    for job, first, windows in segments:
        if rows <= 0:
            break
        first_segments.append(Segment(job, first, min(windows, rows)))
        rows -= windows
    return first_segments


def _without_first(segments: list[Segment], rows: int) -> list[Segment]:
    """Cut the first rows off the segments."""
    remaining = []
    for job, first, windows in segments:
        skipped = min(rows, windows)
        rows -= skipped
        if skipped < windows:
            remaining.append(Segment(job, first + skipped, windows - skipped))
    return remaining


class BatchQueue:
    """Batches that wait for a replica; as they lie in slots, there are never more of them than slots."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[FilledSlot] = deque()
        self._in_replicas = 0
        self._waiting_threads = 0
        self._closed = False
        self._aborted = False

    def put(self, batch: FilledSlot) -> None:
        """Add a batch."""
        with self._changed:
            self._waiting.append(batch)
            self._changed.notify()

    def get(self) -> FilledSlot | None:
        """Wait for a batch and take it; None when there will be no more."""
        with self._changed:
            self._waiting_threads += 1
            while not self._waiting and not self._aborted and not (self._closed and not self._in_replicas):
                self._changed.wait()
            self._waiting_threads -= 1
            if self._aborted or not self._waiting:
                return None
            self._in_replicas += 1
            return self._waiting.popleft()

    def done(self) -> None:
        """Count a batch from ``get`` as embedded."""
        with self._changed:
            self._in_replicas -= 1
            if not self._in_replicas:
                self._changed.notify_all()

    def requeue(self, batch: FilledSlot) -> None:
        """Return a batch from ``get``, for another replica."""
        with self._changed:
            self._in_replicas -= 1
            self._waiting.appendleft(batch)
            self._changed.notify_all()

    def close(self) -> None:
        """Promise that no more batches come, except returned ones."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def abort(self) -> None:
        """End all waiting and later ``get`` without a batch."""
        with self._changed:
            self._aborted = True
            self._changed.notify_all()

    @property
    def has_idle_replica(self) -> bool:
        """Whether a replica waits while there is no batch."""
        with self._changed:
            return self._waiting_threads > 0 and not self._waiting
