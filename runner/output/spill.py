"""Embeddings that wait for the rest of their shard: in memory up to a limit, beyond it in unnamed temporary files.

A shard is written once its last clip has ended, and clips have any length.  The limit keeps memory independent of both;
the files vanish with the process.
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

Array = NDArray[np.float32]

BLOCK_ROWS = 4096
"""Rows of one clip that are read at a time, at most; see ``block_rows``."""

_BLOCK_BYTES = 2 << 20

_SEGMENT_BYTES = 256 << 20
"""Size of a temporary file; it is freed when none of its rows are waited for."""


def block_rows(width: int) -> int:
    """Return how many rows of one clip to read at a time, for rows of ``width`` values: 2 MiB at most."""
    return max(1, min(BLOCK_ROWS, _BLOCK_BYTES // (4 * width)))


class _Segment:
    """A temporary file without a name, open as long as anything refers to it."""

    def __init__(self, folder: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=folder, prefix=".spill-", suffix=".tmp", buffering=0)  # noqa: SIM115
        self.size = 0

    def append(self, rows: Array) -> int:
        """Append rows; return their offset in bytes."""
        offset, data = self.size, np.ascontiguousarray(rows).data.cast("B")
        done = 0
        while done < len(data):
            done += os.pwrite(self._file.fileno(), data[done:], offset + done)
        self.size = offset + len(data)
        return offset

    def read(self, offset: int, rows: int, width: int) -> Array:
        """Read float32 [rows, width] from an offset in bytes; from any thread."""
        array = np.empty((rows, width), np.float32)
        data = array.data.cast("B")
        done = 0
        while done < len(data):
            block = os.pread(self._file.fileno(), len(data) - done, offset + done)
            if not block:
                raise OSError(f"a temporary file of embeddings ends {len(data) - done} bytes early")
            data[done : done + len(block)] = block
            done += len(block)
        return array


class SpilledRows:
    """Embeddings [n, width] in a temporary file; sliced like an array, and read when they are needed."""

    __slots__ = ("_offset", "_rows", "_segment", "_width")

    def __init__(self, segment: _Segment, offset: int, rows: int, width: int) -> None:
        self._segment, self._offset, self._rows, self._width = segment, offset, rows, width

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, rows: slice) -> SpilledRows:
        first, end, _ = rows.indices(self._rows)
        return SpilledRows(self._segment, self._offset + first * 4 * self._width, max(0, end - first), self._width)

    def read(self) -> Array:
        """Read them, float32 [n, width]."""
        return self._segment.read(self._offset, self._rows, self._width)


Batch = Array | SpilledRows
"""A batch's embeddings, [n, width], in memory or in a file."""


class BatchRows:
    """The embeddings of a batch from ``first`` to before ``end``; sliced when they are read.

    The parts of a shard are many, and neighbors mostly: see ``joined``.
    """

    __slots__ = ("batch", "end", "first")

    def __init__(self, batch: Batch, first: int, end: int) -> None:
        self.batch, self.first, self.end = batch, first, end

    def __len__(self) -> int:
        return self.end - self.first

    def read(self) -> Array:
        """Return them, float32 [n, width]."""
        return read(self.batch[self.first : self.end])


Chunk = Batch | BatchRows
"""Some of a clip's embeddings, [n, width]."""

Embeddings = Chunk | Sequence[Chunk]
"""A clip's embeddings, in the order of their examples: usually one chunk, otherwise several, or none."""


class Spill:
    """Holds embeddings until their shard is written.

    Args:
        folder: for the temporary files, on a disk with room for a shard.
        limit_mib: memory that the embeddings may take.

    Attributes:
        in_memory: bytes in memory.
        spilled: bytes written to files so far.
    """

    def __init__(self, folder: Path, limit_mib: float) -> None:
        self.in_memory = 0
        self.spilled = 0
        self._folder = folder
        self._limit = int(limit_mib * (1 << 20))
        self._lock = threading.RLock()  # `hold` may free an array, whose finalizer takes the lock again
        self._segment: _Segment | None = None

    def hold(self, embeddings: Array) -> Batch:
        """Hold a batch's embeddings, float32 [n, width]: return the same array, or where they were written."""
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

    def _write(self, embeddings: Array) -> SpilledRows:
        if self._segment is None or self._segment.size >= _SEGMENT_BYTES:
            self._segment = _Segment(self._folder)
        self.spilled += embeddings.nbytes
        return SpilledRows(self._segment, self._segment.append(embeddings), *embeddings.shape)


def _owner(array: Array) -> Array:
    """Return the array that lives as long as any slice of ``array``: NumPy's slices of slices refer to it alone."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def read(chunk: Chunk) -> Array:
    """Return a chunk's embeddings, float32 [n, width]."""
    return chunk if isinstance(chunk, np.ndarray) else chunk.read()


def chunks_of(embeddings: Embeddings) -> Sequence[Chunk]:
    """Return the chunks of a clip's embeddings."""
    return (embeddings,) if isinstance(embeddings, (BatchRows, np.ndarray, SpilledRows)) else embeddings


def joined(chunks: Iterable[Chunk]) -> Iterator[Chunk]:
    """Join chunks that are neighbors in a batch.

    A shard's thousand clips come in tens of batches.  NumPy lets go of the interpreter for each array that it copies,
    and a busy worker's threads wait long until they have it again.
    """
    batch: Batch | None = None
    first = end = 0
    for chunk in chunks:
        if isinstance(chunk, BatchRows) and chunk.batch is batch and chunk.first == end:
            end = chunk.end
            continue
        if batch is not None:
            yield BatchRows(batch, first, end)
        if isinstance(chunk, BatchRows):
            batch, first, end = chunk.batch, chunk.first, chunk.end
        else:
            batch = None
            yield chunk
    if batch is not None:
        yield BatchRows(batch, first, end)


def concatenate(chunks: Iterable[Chunk]) -> Array:
    """Return the embeddings of chunks, one after the other, float32 [n, width]."""
    arrays = [read(chunk) for chunk in joined(chunks)]
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def blocks(embeddings: Embeddings, rows: int = BLOCK_ROWS) -> Iterator[Array]:
    """Yield embeddings in blocks of ``rows``, the last one shorter, whatever the chunks are."""
    return map(read, unread_blocks(embeddings, rows))


def unread_blocks(embeddings: Embeddings, rows: int = BLOCK_ROWS) -> Iterable[Chunk]:
    """Yield the same blocks, and those that are a chunk without reading it."""
    if isinstance(embeddings, BatchRows) and embeddings.end - embeddings.first <= rows:  # nearly every clip
        return (embeddings,)
    chunks = chunks_of(embeddings)
    return chunks if len(chunks) == 1 and 0 < len(chunks[0]) <= rows else _blocks(chunks, rows)


def _blocks(chunks: Sequence[Chunk], rows: int) -> Iterator[Array]:
    pending: list[Array] = []
    count = 0
    for chunk in joined(chunks):
        array = read(chunk)
        while count + len(array) > rows:
            head = array[: rows - count]
            yield concatenate([*pending, head])
            pending, count, array = [], 0, array[len(head) :]
        if len(array):
            pending.append(array)
            count += len(array)
    if pending:
        yield concatenate(pending)
