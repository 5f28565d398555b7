"""Ranges of an object's bytes, and a seekable file that requests little more than is read of it."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.storage.filesystem import object_stats
from runner.storage.prefetch import fetch

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

    from runner.storage.prefetch import FetchedFile

MAX_REQUEST_BYTES = 16 << 20
"""Bytes of one request at most."""

_MIN_BLOCK, _FIRST_BLOCK, _MAX_BLOCK = 1 << 16, 1 << 21, 1 << 23

_SEQUENTIAL_GAP = 1 << 21
"""Bytes that take as long to download as a request takes to be answered: a smaller gap is read through."""

ReadRange = Callable[[int, int], bytes]
"""Reads the bytes from one offset up to another; fewer where the file ends before."""


def fetch_range(url: str, first: int, end: int, timeout_s: float) -> FetchedFile:
    """Download the bytes of an object from ``first`` up to ``end``; see ``runner.storage.prefetch.fetch``.

    Raises:
        ClipError: as ``fetch``.
    """
    return fetch(url, timeout_s, partial(_read_range, first=first, end=end))


def read_range(url: str, timeout_s: float, first: int, end: int) -> bytes:
    """Return the bytes of an object from ``first`` up to ``end``; fewer where it ends before.

    Raises:
        ClipError: as ``fetch``.
    """
    with fetch_range(url, first, end, timeout_s) as fetched:
        return Path(fetched.path).read_bytes()


def _read_range(store: AbstractFileSystem, url: str, path: str, *, first: int, end: int) -> None:
    """Read a range in requests of limited size, all of one version of the object."""
    is_split = end - first > MAX_REQUEST_BYTES
    version = _version(store, url) if is_split else None
    with open(path, "wb") as file:
        for start in range(first, end, MAX_REQUEST_BYTES):
            file.write(store.cat_file(url, start=start, end=min(start + MAX_REQUEST_BYTES, end)))
    if is_split and _version(store, url) != version:
        raise OSError(f"{url} was replaced while it was read")


def _version(store: AbstractFileSystem, url: str) -> tuple[object, ...]:
    """Return marks of an object's version; times are of whole seconds on S3."""
    info = store.info(url)
    return *object_stats(info), info.get("ETag"), info.get("etag"), info.get("generation")


class RangeFile(io.RawIOBase):
    """A file that is read in blocks by requests: small ones after a seek, growing ones in sequence.

    Args:
        read: reads a range of it.
        size: of the file, in bytes.
        executor: reads the next block ahead; None for no reading ahead.

    Attributes:
        size: of the file, in bytes.
    """

    def __init__(self, read: ReadRange, size: int, executor: Executor | None = None) -> None:
        super().__init__()
        self.size = size
        self._read = read
        self._executor = executor
        self._offset = 0
        self._block, self._block_start, self._block_size = b"", 0, _FIRST_BLOCK // 2
        self._next: tuple[int, int, Future[bytes]] | None = None
        self._read_ahead_end = size

    def read_ahead_to(self, end: int) -> None:
        """Read no further ahead than ``end``."""
        self._read_ahead_end = min(end, self.size)

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._offset

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        offset += {os.SEEK_SET: 0, os.SEEK_CUR: self._offset, os.SEEK_END: self.size}[whence]
        if offset < 0:
            raise OSError(f"{offset} is before the start of the file")
        self._offset = offset
        return offset

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def read(self, size: int | None = -1) -> bytes:
        """Read up to ``size`` bytes, fewer only at the end."""
        end = self.size if size is None or size < 0 else min(self._offset + size, self.size)
        pieces = []
        while self._offset < end:
            inside = self._offset - self._block_start
            if not 0 <= inside < len(self._block):
                self._load(self._offset, end)
                inside = 0
                if not self._block:
                    break
            piece = self._block[inside : inside + end - self._offset]
            pieces.append(piece)
            self._offset += len(piece)
        return b"".join(pieces)

    def _load(self, start: int, end: int) -> None:
        """Read the block at ``start``, up to ``end`` or further, and the next one ahead."""
        is_sequential = 0 <= start - (self._block_start + len(self._block)) < _SEQUENTIAL_GAP
        self._block_size = min(2 * self._block_size, _MAX_BLOCK) if is_sequential else _MIN_BLOCK
        if self._next and self._next[0] <= start < self._next[1]:
            block_start, _, future = self._next
            self._next = None
            self._block = future.result()[start - block_start :]
        else:
            stop = min(max(end, start + self._block_size), start + _MAX_BLOCK, self.size)
            self._block = self._read(start, stop)
        self._block_start = start
        following = start + len(self._block)
        if self._executor and is_sequential and following < self._read_ahead_end:
            stop = min(following + _MAX_BLOCK, self._read_ahead_end)
            self._next = following, stop, self._executor.submit(self._read, following, stop)
