"""Parts of an object: ranges of its bytes, and a file made of them that asks for little more than is read of it."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.storage.filesystem import stamp_of
from runner.storage.prefetch import fetch

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

    from runner.storage.prefetch import Fetched

PIECE = 16 << 20
"""Bytes that a request asks for at most."""

_LEAST_BLOCK, _FIRST_BLOCK, _MOST_BLOCK = 1 << 16, 1 << 21, 1 << 23

_WORTH_A_REQUEST = 1 << 21
"""Bytes that take as long to come as a request takes to be answered: fewer are read along with what is wanted."""

ReadRange = Callable[[int, int], bytes]
"""The bytes from a place up to another one; fewer where the file ends before."""


def fetch_range(url: str, first: int, end: int, timeout_s: float) -> Fetched:
    """The bytes of an object from ``first`` up to ``end`` in a file; see ``runner.storage.prefetch.fetch``.

    Raises:
        ClipError: as ``fetch`` does.
    """
    return fetch(url, timeout_s, partial(_get_range, first=first, end=end))


def read_range(url: str, timeout_s: float, first: int, end: int) -> bytes:
    """The bytes of an object from ``first`` up to ``end``; fewer where it ends before.

    Raises:
        ClipError: as ``fetch`` does.
    """
    with fetch_range(url, first, end, timeout_s) as fetched:
        return Path(fetched.path).read_bytes()


def _get_range(store: AbstractFileSystem, url: str, path: str, *, first: int, end: int) -> None:
    """Each request is answered in full or made again; several are of one object, or all are made again."""
    in_pieces = end - first > PIECE
    before = _identity(store, url) if in_pieces else None
    with open(path, "wb") as file:
        for start in range(first, end, PIECE):
            file.write(store.cat_file(url, start=start, end=min(start + PIECE, end)))
    if in_pieces and _identity(store, url) != before:
        raise OSError(f"{url} was replaced while it was read")


def _identity(store: AbstractFileSystem, url: str) -> tuple[object, ...]:
    """What tells an object from one that replaced it; times are of whole seconds on S3."""
    about = store.info(url)
    return *stamp_of(about), about.get("ETag"), about.get("etag"), about.get("generation")


class RangeFile(io.RawIOBase):
    """A file that is read in blocks, by requests: small ones where one jumps in it, large ones where one reads on.

    Args:
        read: gives a range of it.
        size: of the file, in bytes.
        executor: reads the next block ahead; None: nothing does.
    """

    def __init__(self, read: ReadRange, size: int, executor: Executor | None = None) -> None:
        super().__init__()
        self.size = size
        self._read = read
        self._executor = executor
        self._place = 0
        self._block, self._first, self._length = b"", 0, _FIRST_BLOCK // 2
        self._next: tuple[int, int, Future[bytes]] | None = None
        self._until = size

    def read_ahead_to(self, end: int) -> None:
        """Where what is going to be read ends: nothing is read ahead behind it."""
        self._until = min(end, self.size)

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        place = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self.size}[whence]
        if place < 0:
            raise OSError(f"{place} is before the file's beginning")
        self._place = place
        return place

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def read(self, size: int | None = -1) -> bytes:
        """Up to ``size`` bytes, fewer only at the end."""
        end = self.size if size is None or size < 0 else min(self._place + size, self.size)
        parts = []
        while self._place < end:
            inside = self._place - self._first
            if not 0 <= inside < len(self._block):
                self._load(self._place, end)
                inside = 0
                if not self._block:
                    break
            part = self._block[inside : inside + end - self._place]
            parts.append(part)
            self._place += len(part)
        return b"".join(parts)

    def _load(self, place: int, end: int) -> None:
        """Read the block at a place, as far as ``end`` and further."""
        is_near = 0 <= place - (self._first + len(self._block)) < _WORTH_A_REQUEST
        self._length = min(2 * self._length, _MOST_BLOCK) if is_near else _LEAST_BLOCK
        if self._next and self._next[0] <= place < self._next[1]:
            self._first, _, future = self._next
            self._next = None
            self._block = future.result()[place - self._first :]
        else:
            stop = min(max(end, place + self._length), place + _MOST_BLOCK, self.size)
            self._block = self._read(place, stop)
        self._first = place
        start = place + len(self._block)
        if self._executor and is_near and start < self._until:
            stop = min(start + _MOST_BLOCK, self._until)
            self._next = start, stop, self._executor.submit(self._read, start, stop)
