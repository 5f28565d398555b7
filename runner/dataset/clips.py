"""Reads the clips of a manifest in batches."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import pyarrow as pa

    from runner.core.span import Span


class Clip(NamedTuple):
    """A row of the manifest and its number; ``bytes`` is the file's size, −1 if unknown."""

    number: int
    name: str
    path: bytes
    start: float | None
    end: float | None
    label: str | None
    bytes: int


_BATCH_ROWS = 4096

_COLUMNS = ("clip", "path", "start", "end", "label", "bytes")
"""Columns of the manifest, in the order of ``Clip``'s fields after ``number``."""


def read_clips(path: Path, spans: Sequence[Span]) -> Iterator[Clip]:
    """Yield the clips of a manifest in these spans, in order; other row groups are not read."""
    reader = ClipReader(path)
    for first, end in spans:
        yield from reader.clips(first, end)


def find_clips(path: Path, names: Collection[str]) -> dict[str, Clip]:
    """Return the clips of a manifest that have these names, by name; row groups without any cost their names alone."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    clips: dict[str, Clip] = {}
    wanted, first = pa.array(sorted(names), pa.string()), 0
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            own = pc.is_in(file.read_row_group(group, columns=["clip"])["clip"], wanted).to_numpy().nonzero()[0]
            if len(own):
                rows = file.read_row_group(group, columns=list(_COLUMNS)).take(own)
                values = ((first + own).tolist(), *(rows.column(name).to_pylist() for name in _COLUMNS))
                clips |= {clip.name: clip for clip in map(Clip, *values)}
            first += file.metadata.row_group(group).num_rows
    return clips


class ClipReader:
    """Reads clips of a manifest; keeps the last row group, which usually holds the next clips too.

    Args:
        path: of the manifest.
    """

    def __init__(self, path: Path) -> None:
        import pyarrow.parquet as pq

        self._file = pq.ParquetFile(path)
        groups = range(self._file.num_row_groups)
        self._ends = list(itertools.accumulate(self._file.metadata.row_group(group).num_rows for group in groups))
        self._group: int | None = None
        self._rows: pa.Table = None

    def clips(self, first: int, end: int) -> Iterator[Clip]:
        """Yield the clips from ``first`` up to, not including, ``end``."""
        while first < end:
            group = bisect_right(self._ends, first)
            group_start = self._ends[group - 1] if group else 0
            stop = min(end, self._ends[group], first + _BATCH_ROWS)
            if group != self._group:
                self._rows = self._file.read_row_group(group, columns=list(_COLUMNS))
                self._group = group
            rows = self._rows.slice(first - group_start, stop - first)
            columns = (rows.column(name).to_pylist() for name in _COLUMNS)
            yield from itertools.starmap(Clip, zip(range(first, stop), *columns, strict=True))
            first = stop


def labels_of(path: Path) -> list[str]:
    """Return the distinct labels in a manifest."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:  # read_table would import pandas
        labels: list[str] = file.read(columns=["label"])["label"].unique().drop_null().to_pylist()
    return labels
