"""Digests of a data set's rows: of all of them, and of each shard's, which its journal entry must match."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from runner.core.span import Span

_CONTENT_COLUMNS = ("clip", "start", "end", "label", "bytes")

_ALL_COLUMNS = ("clip", "path", "start", "end", "label", "bytes", "mtime_ns")

_BLOCK_ROWS = 65_536
"""Rows that are converted to bytes at once."""


def digest_of(table: pa.Table) -> str:
    """Return a digest of the clips' names, times, labels and sizes, the same on all machines.

    Each column is hashed on its own: the bytes of its values, their lengths, and which are missing.
    """
    hashes = []
    for name in _CONTENT_COLUMNS:
        values, lengths, missing = hashlib.sha256(), hashlib.sha256(), hashlib.sha256()
        for chunk in table[name].chunks:
            column = _Column.of(chunk)
            values.update(column.values(0, len(chunk)))
            missing.update(column.missing.data)
            if column.lengths is not None:
                lengths.update(column.lengths.data)
        hashes += [values.digest(), lengths.digest(), missing.digest()]
    return hashlib.sha256(b"".join(hashes)).hexdigest()[:32]


def row_digests(table: pa.Table, shards: Sequence[Span]) -> list[str]:
    """Return a digest of each shard's rows: of all columns, sizes and times of modification included.

    Args:
        table: with the columns of ``runner.dataset.table.SCHEMA``.
        shards: consecutive spans of its rows; a digest does not depend on the other shards.
    """
    digests = []
    for block in _blocks(shards):
        start = block[0].first
        rows = table.slice(start, block[-1].end - start).combine_chunks()
        columns = [_Column.of(rows[name].chunk(0)) for name in _ALL_COLUMNS] if rows.num_rows else []
        for first, end in block:
            digest = hashlib.sha256(str(end - first).encode())
            for column in columns:
                digest.update(column.values(first - start, end - start))
                digest.update(column.missing[first - start : end - start].data)
                if column.lengths is not None:
                    digest.update(column.lengths[first - start : end - start].data)
            digests.append(digest.hexdigest()[:16])
    return digests


def _blocks(shards: Sequence[Span]) -> Iterator[Sequence[Span]]:
    """Yield the shards in blocks of about ``_BLOCK_ROWS`` rows."""
    first = 0
    for number in range(1, len(shards) + 1):
        if number == len(shards) or shards[number].end - shards[first].first > _BLOCK_ROWS:
            yield shards[first:number]
            first = number


@dataclass(frozen=True)
class _Column:
    """An array as bytes.

    Attributes:
        data: the bytes of all values.
        missing: bool [n].
        offsets: of the values of text in ``data``, int32 [n + 1]; None for numbers.
        lengths: of the values of text, int32 [n]; None for numbers.
    """

    data: Any
    missing: NDArray[np.bool_]
    offsets: NDArray[np.int32] | None = None
    lengths: NDArray[np.int32] | None = None

    @staticmethod
    def of(chunk: pa.Array) -> _Column:
        missing = np.ascontiguousarray(pc.is_null(chunk).to_numpy(zero_copy_only=False))
        if not (pa.types.is_string(chunk.type) or pa.types.is_binary(chunk.type)):
            filled = pc.fill_null(chunk, pa.scalar(0, chunk.type)) if chunk.null_count else chunk
            return _Column(np.ascontiguousarray(filled.to_numpy(zero_copy_only=False)), missing)
        binary = chunk.cast(pa.binary())
        if chunk.null_count:
            binary = pc.fill_null(binary, b"")
        _, offsets, data = binary.buffers()
        if not len(chunk):
            return _Column(b"", missing, np.zeros(1, np.int32), np.zeros(0, np.int32))
        starts = np.frombuffer(offsets, np.int32)[binary.offset : binary.offset + len(chunk) + 1]
        return _Column(memoryview(data) if data is not None else b"", missing, starts, np.diff(starts))

    def values(self, first: int, end: int) -> Any:
        """Return the bytes of these rows' values."""
        if self.offsets is None:
            return self.data[first:end]
        return self.data[self.offsets[first] : self.offsets[end]]
