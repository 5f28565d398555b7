"""Embeddings that wait for the rest of their shard: in memory up to a limit, beyond it in files without a name.

A shard is written once its last clip has ended, and clips are of any length: what waits is bounded here, so that memory
grows neither with the length of a clip nor with what a shard holds.  The files are gone with the process.
"""

from __future__ import annotations

import os
import tempfile
import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from runner.vggish.constants import EMBEDDING_SIZE

Array = NDArray[np.float32]

BLOCK_ROWS = 4096
"""Embeddings that a writer of files has at a time of one clip."""

_ROW_BYTES = 4 * EMBEDDING_SIZE

_SEGMENT_BYTES = 256 << 20
"""A file is freed when nothing in it is waited for any more: not too large, and not too many."""


class _Segment:
    """A file without a name, for as long as anything refers to it."""

    def __init__(self, folder: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=folder, prefix=".spill-", suffix=".tmp", buffering=0)  # noqa: SIM115
        self.size = 0

    def append(self, rows: Array) -> int:
        """Write rows at the end; the byte at which they begin."""
        offset, data = self.size, np.ascontiguousarray(rows).data.cast("B")
        done = 0
        while done < len(data):
            done += os.pwrite(self._file.fileno(), data[done:], offset + done)
        self.size = offset + len(data)
        return offset

    def read(self, offset: int, rows: int) -> Array:
        """The rows that begin at a byte, float32 [rows, 128]; from any thread."""
        found = np.empty((rows, EMBEDDING_SIZE), np.float32)
        data = found.data.cast("B")
        done = 0
        while done < len(data):
            got = os.pread(self._file.fileno(), len(data) - done, offset + done)
            if not got:
                raise OSError(f"a temporary file of embeddings ends {len(data) - done} bytes early")
            data[done : done + len(got)] = got
            done += len(got)
        return found


class Spilled:
    """Embeddings [n, 128] in a file; sliced like an array, and read when they are needed."""

    __slots__ = ("_offset", "_rows", "_segment")

    def __init__(self, segment: _Segment, offset: int, rows: int) -> None:
        self._segment, self._offset, self._rows = segment, offset, rows

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, rows: slice) -> Spilled:
        first, end, _ = rows.indices(self._rows)
        return Spilled(self._segment, self._offset + first * _ROW_BYTES, max(0, end - first))

    def read(self) -> Array:
        """Them, float32 [n, 128]."""
        return self._segment.read(self._offset, self._rows)


Part = Array | Spilled
"""Some of a clip's embeddings, [n, 128]."""

Embeddings = Array | tuple[Part, ...]
"""A clip's embeddings, in the order of their examples: all in one array, as nearly always, or in parts."""


class Spill:
    """Keeps embeddings until their shard is written.

    Args:
        folder: where files may be made, on a disk with room for a shard.
        limit_mib: what is kept in memory at most.
    """

    def __init__(self, folder: Path, limit_mib: float) -> None:
        self._folder = folder
        self._limit = int(limit_mib * (1 << 20))
        self._lock = threading.RLock()  # an array may be freed, and tell of it, in the middle of `keep`
        self._segment: _Segment | None = None
        self.in_memory = 0
        """Bytes that are kept in memory."""
        self.spilled = 0
        """Bytes that were written to files so far."""

    def keep(self, embeddings: Array) -> Part:
        """Take a batch's embeddings, float32 [n, 128]; they, or where they are."""
        size = embeddings.nbytes
        with self._lock:
            if self.in_memory + size > self._limit:
                return self._write(embeddings)
            self.in_memory += size
        weakref.finalize(_owner(embeddings), self._freed, size).atexit = False
        return embeddings

    def _freed(self, size: int) -> None:
        with self._lock:
            self.in_memory -= size

    def _write(self, embeddings: Array) -> Spilled:
        if self._segment is None or self._segment.size >= _SEGMENT_BYTES:
            self._segment = _Segment(self._folder)
        self.spilled += embeddings.nbytes
        return Spilled(self._segment, self._segment.append(embeddings), len(embeddings))


def _owner(array: Array) -> Array:
    """The array that lives for as long as any slice of ``array`` does: slices of slices refer to it alone."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def blocks(embeddings: Embeddings, rows: int = BLOCK_ROWS) -> Iterable[Array]:
    """A clip's embeddings in blocks of ``rows`` (the last one: what is left), however they came in parts."""
    if isinstance(embeddings, np.ndarray):
        if 0 < len(embeddings) <= rows:
            return (embeddings,)
        embeddings = (embeddings,)
    return _blocks(embeddings, rows)


def _blocks(parts: Sequence[Part], rows: int) -> Iterator[Array]:
    held: list[Array] = []
    count = 0
    for part in parts:
        array = part.read() if isinstance(part, Spilled) else part
        while count + len(array) > rows:
            head = array[: rows - count]
            yield _joined([*held, head])
            held, count, array = [], 0, array[len(head) :]
        if len(array):
            held.append(array)
            count += len(array)
    if held:
        yield _joined(held)


def _joined(arrays: Sequence[Array]) -> Array:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
