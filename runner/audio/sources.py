"""What decodes an audio file, whatever by: blocks of samples from any frame on.

Files in which a seek can't be trusted are read from their beginning.  So that many parts of one long file don't cost
the square of its length, a process keeps the file that it read a part of last, and goes on reading where it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple, Protocol

from numpy.typing import NDArray

Array = NDArray[Any]
"""float32, or int16 samples."""

BLOCK_S = 10
"""Seconds that are decoded at once, at most."""


class SourceFault(Exception):
    """The decoder gave up on the file's content; what came before it stands."""


class Stamp(NamedTuple):
    """What tells whether a file is still the same."""

    path: str | bytes
    device: int
    inode: int
    size: int
    changed_ns: int


class Source(Protocol):
    """A file being decoded, whatever by."""

    sample_rate: int
    channels: int
    dtype: str
    """Of the blocks: float32 or int16."""
    exact_frames: int | None = None
    """What the file holds, where that is known before it is read."""

    def blocks(self, first: int) -> Iterator[Array]:
        """Float32 (or int16) [n, channels] blocks from frame ``first`` to the end.

        Raises:
            SourceFault: the content is broken; the blocks before reach up to the fault.
            ClipError: ``unreadable``: the system would not read.
        """
        ...

    def shortfall(self, frames: int) -> str | None:
        """What the container states beyond the ``frames`` that were decoded from the file's beginning to its end."""
        ...

    def close(self) -> None:
        """Let go of the file."""
        ...


class Forward(Source):
    """A source that is read from its beginning on, and kept for a later part of the same file.

    A block is what the decoder gives next whatever was asked for, so that a file that was kept gives the bits that one
    opened anew does.
    """

    _kept: ClassVar[list[Forward]] = []
    """At most one; threads may take it from each other."""

    def __init__(self, stamp: Stamp | None) -> None:
        self._stamp = stamp
        self._decoded: Iterator[Array] | None = None
        self._block: Array | None = None
        self._block_first = 0

    @classmethod
    def take_kept(cls, stamp: Stamp) -> Forward | None:
        """The source that was kept, if it is of this very file; one of another file is closed."""
        try:
            kept = cls._kept.pop()
        except IndexError:
            return None
        if kept._stamp == stamp:
            return kept
        kept._shut()
        return None

    def blocks(self, first: int) -> Iterator[Array]:
        if self._decoded is None or first < self._block_first:
            self._restart()
            self._decoded, self._block, self._block_first = self._decode(), None, 0
        while True:
            if self._block is None or first >= self._block_first + len(self._block):
                if not self._advance():
                    return
                continue
            part = self._block[first - self._block_first :]
            first += len(part)
            yield part

    def _advance(self) -> bool:
        """Decode the next block; whether there is one."""
        assert self._decoded is not None
        self._block_first += 0 if self._block is None else len(self._block)
        self._block = None
        try:
            self._block = next(self._decoded, None)
        finally:
            if self._block is None:
                self._decoded = None
        return self._block is not None

    def close(self) -> None:
        if self._stamp is None or self._decoded is None:
            self._shut()
            return
        self._kept.append(self)
        if len(self._kept) > 1:
            self._kept.pop(0)._shut()

    def _restart(self) -> None:
        """Be at the file's beginning."""
        raise NotImplementedError

    def _decode(self) -> Iterator[Array]:
        """Blocks from where the file is to its end, not changed by what is done to them."""
        raise NotImplementedError

    def _shut(self) -> None:
        raise NotImplementedError
