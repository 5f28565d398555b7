"""Between decoding and embedding: partly filled slots become full ones, and replicas take them from one queue."""

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
"""A slot that is partly filled waits so long for another to fill it up with, if replicas have nothing to do."""


class Merger:
    """Fills partly filled slots up from one another, so that hardly a batch goes out with empty rows.

    Args:
        rows: windows of a full slot.
        windows: all rows of a slot's memory, by slot and type.
        release: gives an emptied slot back.
    """

    def __init__(self, rows: int, windows: Callable[[FilledSlot], Windows], release: Callable[[int], None]) -> None:
        self._rows = rows
        self._windows = windows
        self._release = release
        self._held: dict[str, tuple[FilledSlot, float]] = {}

    def add(self, filled: FilledSlot) -> Iterator[FilledSlot]:
        """Take a slot; give those that are full."""
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
            left = filled._replace(rows=filled.rows - moved, segments=_without_first(filled.segments, moved))
            source[: left.rows] = source[moved:].copy()
            self._hold(left)
        if joined.rows == self._rows:
            yield joined
        else:
            self._hold(joined)

    def expired(self) -> Iterator[FilledSlot]:
        """Give what has waited for long."""
        now = time.monotonic()
        for dtype, (filled, since) in list(self._held.items()):
            if now - since > _WAIT_S:
                del self._held[dtype]
                yield filled

    def rest(self) -> Iterator[FilledSlot]:
        """Give all that is held."""
        while self._held:
            yield self._held.popitem()[1][0]

    def _hold(self, filled: FilledSlot) -> None:
        self._held[filled.dtype] = filled, time.monotonic()


def _first(segments: list[Segment], rows: int) -> list[Segment]:
    """The part of the segments that covers the first rows."""
    found = []
    for job, first, windows in segments:
        if rows <= 0:
            break
        found.append(Segment(job, first, min(windows, rows)))
        rows -= windows
    return found


def _without_first(segments: list[Segment], rows: int) -> list[Segment]:
    """The part of the segments that covers all but the first rows."""
    found = []
    for job, first, windows in segments:
        skipped = min(rows, windows)
        rows -= skipped
        if skipped < windows:
            found.append(Segment(job, first + skipped, windows - skipped))
    return found


class BatchQueue:
    """The batches that wait for a replica.  Bounded by the number of slots, which are what batches lie in."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[FilledSlot] = deque()
        self._in_replicas = 0
        self._takers = 0
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
            self._takers += 1
            while not self._waiting and not self._aborted and not (self._closed and not self._in_replicas):
                self._changed.wait()
            self._takers -= 1
            if self._aborted or not self._waiting:
                return None
            self._in_replicas += 1
            return self._waiting.popleft()

    def done(self) -> None:
        """A batch that was taken is embedded."""
        with self._changed:
            self._in_replicas -= 1
            if not self._in_replicas:
                self._changed.notify_all()

    def requeue(self, batch: FilledSlot) -> None:
        """A batch that was taken is for another replica."""
        with self._changed:
            self._in_replicas -= 1
            self._waiting.appendleft(batch)
            self._changed.notify_all()

    def close(self) -> None:
        """There will be no more batches, but for those handed back."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def abort(self) -> None:
        """No batch is given out any more."""
        with self._changed:
            self._aborted = True
            self._changed.notify_all()

    @property
    def has_idle_replica(self) -> bool:
        """Whether a replica waits and there is nothing for it."""
        with self._changed:
            return self._takers > 0 and not self._waiting
