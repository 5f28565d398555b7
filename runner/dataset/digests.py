"""Digests of rows of the data set: of all of it, and of each shard's, which its line of the journal is believed by."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

_DATA = ("clip", "start", "end", "label", "bytes")

_ROWS = ("clip", "path", "start", "end", "label", "bytes", "mtime_ns")

_BLOCK_ROWS = 65_536
"""Rows whose columns are laid out at once, for all shards that they are of."""


def digest_of(table: pa.Table) -> str:
    """A digest of what the clips are (names, parts, labels, sizes), the same on another machine.

    Each column is hashed by itself: the bytes of its values, their lengths, and which are missing.
    """
    hashes = []
    for name in _DATA:
        values, lengths, missing = hashlib.sha256(), hashlib.sha256(), hashlib.sha256()
        for chunk in table[name].chunks:
            column = _Column.of(chunk)
            values.update(column.values(0, len(chunk)))
            missing.update(column.missing.data)
            if column.lengths is not None:
                lengths.update(column.lengths.data)
        hashes += [values.digest(), lengths.digest(), missing.digest()]
    return hashlib.sha256(b"".join(hashes)).hexdigest()[:32]


def row_digests(table: pa.Table, shards: Sequence[tuple[int, int]]) -> list[str]:
    """A digest of each shard's rows: all that is known of their clips, labels and the state of their files too.

    Args:
        table: with the columns of ``runner.dataset.table.SCHEMA``.
        shards: (first row, one past the last), one after the other; the digests don't depend on the others.
    """
    found = []
    for block in _blocks(shards):
        start = block[0][0]
        rows = table.slice(start, block[-1][1] - start).combine_chunks()
        columns = [_Column.of(rows[name].chunk(0)) for name in _ROWS] if rows.num_rows else []
        for first, end in block:
            digest = hashlib.sha256(str(end - first).encode())
            for column in columns:
                digest.update(column.values(first - start, end - start))
                digest.update(column.missing[first - start : end - start].data)
                if column.lengths is not None:
                    digest.update(column.lengths[first - start : end - start].data)
            found.append(digest.hexdigest()[:16])
    return found


def _blocks(shards: Sequence[tuple[int, int]]) -> Iterator[Sequence[tuple[int, int]]]:
    """The shards in runs of about ``_BLOCK_ROWS`` rows."""
    begun = 0
    for number in range(1, len(shards) + 1):
        if number == len(shards) or shards[number][1] - shards[begun][0] > _BLOCK_ROWS:
            yield shards[begun:number]
            begun = number


@dataclass(frozen=True)
class _Column:
    """An array as bytes: its values, which are missing (bool [n]) and, of text, how long each is (int32 [n]).

    ``places`` is where the values of text begin in ``data`` (and the last ends), int32 [n + 1].
    """

    data: Any
    missing: NDArray[np.bool_]
    places: NDArray[np.int32] | None = None
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
        places = np.frombuffer(offsets, np.int32)[binary.offset : binary.offset + len(chunk) + 1]
        return _Column(memoryview(data) if data is not None else b"", missing, places, np.diff(places))

    def values(self, first: int, end: int) -> Any:
        """The bytes of these rows' values, one after the other."""
        if self.places is None:
            return self.data[first:end]
        return self.data[self.places[first] : self.places[end]]
