"""Full batches from partly filled slots, and the queue that replicas take them from."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from runner.pipeline.messages import Segment

if TYPE_CHECKING:
    from runner.pipeline.messages import FilledSlot
    from runner.vggish.framing import Windows

_WAIT_S = 0.25
"""Longest time that a partly filled slot waits for rows of others while a replica is idle."""


class BatchFiller:
    """Fills partly filled slots up from one another, so that hardly a batch has empty rows.

    Args:
        rows: windows of a full slot.
        windows: function from a filled slot to its windows.
        release: function that returns an emptied slot to the pool.
    """

    def __init__(self, rows: int, windows: Callable[[FilledSlot], Windows], release: Callable[[int], None]) -> None:
        self._rows = rows
        self._windows = windows
        self._release = release
        self._held: dict[str, tuple[FilledSlot, float]] = {}

    def add(self, filled: FilledSlot) -> Iterator[FilledSlot]:
        """Add a slot; yield the slots that are full."""
        if filled.rows == self._rows:
            yield filled
            return
        held, _ = self._held.pop(filled.dtype, (None, 0.0))
        if held is None:
            self._hold(filled)
            return
        if held.rows < filled.rows:  # copy the fewer
            held, filled = filled, held
        moved = min(self._rows - held.rows, filled.rows)
        joined = held._replace(rows=held.rows + moved, segments=held.segments + _first(filled.segments, moved))
        source = self._windows(filled)
        self._windows(joined)[held.rows :] = source[:moved]
        if moved == filled.rows:
            self._release(filled.slot)
        else:
            remaining = filled._replace(rows=filled.rows - moved, segments=_without_first(filled.segments, moved))
            source[: remaining.rows] = source[moved:].copy()
            self._hold(remaining)
        if joined.rows == self._rows:
            yield joined
        else:
            self._hold(joined)

    def expired(self) -> Iterator[FilledSlot]:
        """Yield the slots that have waited for ``_WAIT_S``."""
        now = time.monotonic()
        for dtype, (filled, since) in list(self._held.items()):
            if now - since > _WAIT_S:
                del self._held[dtype]
                yield filled

    def flush(self) -> Iterator[FilledSlot]:
        """Yield all slots that wait."""
        while self._held:
            yield self._held.popitem()[1][0]

    def _hold(self, filled: FilledSlot) -> None:
        self._held[filled.dtype] = filled, time.monotonic()


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
