"""The interface of audio decoders: blocks of samples from any frame on.

Files without reliable seeks are read from their beginning.  So that many clips of one long file don't cost the square
of its length, a process caches the file that it read last, and continues where it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple, Protocol

from numpy.typing import NDArray

Array = NDArray[Any]
"""float32, or int16 samples."""

BLOCK_S = 10
"""Longest block, in seconds."""


class SourceFault(Exception):
    """The file's content is broken from here on; blocks before it are valid."""


class Stamp(NamedTuple):
    """Identity of a file's content."""

    path: str | bytes
    device: int
    inode: int
    size: int
    changed_ns: int


class Source(Protocol):
    """A file that is being decoded.

    Attributes:
        sample_rate: Hz.
        channels: channels of the file.
        dtype: of the blocks: float32 or int16.
        exact_frames: frames of the file, where they are known before it is read.
        can_seek: whether ``blocks`` reaches any frame without decoding those before it.
    """

    sample_rate: int
    channels: int
    dtype: str
    exact_frames: int | None = None
    can_seek: bool = False

    def blocks(self, first: int) -> Iterator[Array]:
        """Yield blocks, float32 or int16 [n, channels], from frame ``first`` to the end.

        Raises:
            SourceFault: the content is broken; the blocks before reach up to the fault.
            ClipError: ``unreadable``: reading failed.
        """
        ...

    def shortfall(self, frames: int) -> str | None:
        """Describe the audio that the container states beyond ``frames``, all that was decoded; None if there is
        none."""
        ...

    def close(self) -> None:
        """Close the file, or cache it."""
        ...


class SequentialSource(Source):
    """A source that is read in order, and cached for a later clip of the same file.

    Blocks begin where the decoder's do, whichever frame is requested, so that a cached file gives the same bits as one
    that was just opened.

    Args:
        stamp: of the file; None for one that is not to be cached.
    """

    _cached: ClassVar[list[SequentialSource]] = []
    """At most one source; shared by threads."""

    def __init__(self, stamp: Stamp | None) -> None:
        self._stamp = stamp
        self._decoding: Iterator[Array] | None = None
        self._block: Array | None = None
        self._block_first = 0

    @classmethod
    def take_cached(cls, stamp: Stamp) -> SequentialSource | None:
        """Take the cached source if it is of this file; close one of another file."""
        try:
            source = cls._cached.pop()
        except IndexError:
            return None
        if source._stamp == stamp:
            return source
        source._release()
        return None

    def blocks(self, first: int) -> Iterator[Array]:
        if self._decoding is None or first < self._block_first:
            self._restart()
            self._decoding, self._block, self._block_first = self._decode(), None, 0
        while True:
            if self._block is None or first >= self._block_first + len(self._block):
                if not self._advance():
                    return
                continue
            block = self._block[first - self._block_first :]
            first += len(block)
            yield block

    def _advance(self) -> bool:
        """Decode the next block; return whether there is one."""
        assert self._decoding is not None
        self._block_first += 0 if self._block is None else len(self._block)
        self._block = None
        try:
            self._block = next(self._decoding, None)
        finally:
            if self._block is None:
                self._decoding = None
        return self._block is not None

    def close(self) -> None:
        if self._stamp is None or self._decoding is None:
            self._release()
            return
        self._cached.append(self)
        if len(self._cached) > 1:
            self._cached.pop(0)._release()

    def _restart(self) -> None:
        """Return to the file's beginning."""
        raise NotImplementedError

    def _decode(self) -> Iterator[Array]:
        """Yield blocks from the file's position to its end, each in memory of its own."""
        raise NotImplementedError

    def _release(self) -> None:
        """Close the file."""
        raise NotImplementedError
