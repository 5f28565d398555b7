"""Pooled embeddings: mean and standard deviation over windows of time, and over complete clips."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from runner.core.files import atomic, make_folder
from runner.core.layout import RunLayout, shard_name
from runner.output.parquet import parquet_metadata, vectors
from runner.output.spill import blocks
from runner.vggish.constants import EMBEDDING_SIZE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from runner.output.rows import ClipRow
    from runner.output.spill import Embeddings

POOLED_SCHEMA = pa.schema(
    [
        ("clip", pa.string()),
        ("pool_s", pa.float64()),
        ("start_s", pa.float64()),
        ("n", pa.int64()),
        ("mean", pa.list_(pa.float32(), EMBEDDING_SIZE)),
        ("std", pa.list_(pa.float32(), EMBEDDING_SIZE)),
        ("label", pa.string()),
    ]
)
"""The columns of a file of pooled embeddings; ``pool_s`` is null in the row of a complete clip."""

_GROUP_ROWS = 8192
"""Rows of a Parquet row group."""


class PooledShards:
    """Writes ``pooled/part-NNNNN.parquet``: for each embedded clip a row a pooling window, and one of the clip.

    Window ``k`` of ``pool_s`` has the examples that start in ``[k · pool_s, (k + 1) · pool_s)`` from the clip's
    beginning, ``n`` of them; ``std`` is the population's (ddof 0).

    Args:
        folder: the run's folder.
        metadata: of the run, for each file.
        hop_s: seconds of the file between examples.
        pools_s: durations of pooling windows in seconds of the file, each at least ``hop_s``.
        compression: Parquet codec, or ``none``.
    """

    def __init__(
        self, folder: Path, metadata: Mapping[str, str], hop_s: float, pools_s: Sequence[float], compression: str
    ) -> None:
        self._folder = RunLayout(folder).pooled
        make_folder(self._folder)
        self._schema = POOLED_SCHEMA.with_metadata(parquet_metadata(metadata))
        self._compression = compression
        hop = Fraction(str(hop_s))
        self._pools: list[tuple[float | None, Fraction | None]] = [
            *((pool_s, Fraction(str(pool_s)) / hop) for pool_s in pools_s),
            (None, None),
        ]

    def write(self, shard: int, rows: Sequence[ClipRow]) -> list[Path]:
        """Write a shard's file; see ``ShardFormat``."""
        path = self._folder / shard_name(shard, ".parquet")
        with (
            atomic(path) as temporary,
            pq.ParquetWriter(
                temporary, self._schema, compression=self._compression, use_dictionary=["clip", "label"]
            ) as file,
        ):
            for group in _groups(self._windows(rows)):
                file.write_table(_table(group))
        return [path]

    def _windows(self, rows: Sequence[ClipRow]) -> Iterator[_ClipWindows]:
        for row in rows:
            for pool_s, hops in self._pools:
                for first, sums in pooled(row.embeddings, hops):
                    yield _ClipWindows(row, pool_s, first, sums)


class Sums(NamedTuple):
    """Sums over the examples of pooling windows.

    Attributes:
        n: examples in each window, int64 [m].
        origin: the first example of each, float64 [m, 128].
        deviations: sum of the differences from ``origin``, float64 [m, 128].
        squares: sum of their squares, float64 [m, 128].
    """

    n: NDArray[np.int64]
    origin: NDArray[np.float64]
    deviations: NDArray[np.float64]
    squares: NDArray[np.float64]

    def rows(self, rows: slice) -> Sums:
        """Return those of some of the windows."""
        return Sums(self.n[rows], self.origin[rows], self.deviations[rows], self.squares[rows])

    def mean(self) -> NDArray[np.float32]:
        """Return each window's mean, float32 [m, 128]."""
        return (self.origin + self.deviations / self.n[:, None]).astype(np.float32)

    def std(self) -> NDArray[np.float32]:
        """Return each window's standard deviation (ddof 0), float32 [m, 128]; exactly 0 of equal examples."""
        variance = self.squares / self.n[:, None] - (self.deviations / self.n[:, None]) ** 2
        return np.sqrt(np.maximum(variance, 0)).astype(np.float32)


def pooled(embeddings: Embeddings, hops: Fraction | None) -> Iterator[tuple[int, Sums]]:
    """Yield a clip's pooling windows in groups: the number of the first one, from 0, and their sums.

    The clip is read in blocks; the bits do not depend on its chunks.

    Args:
        embeddings: float32 [n, 128].
        hops: duration of a window in hops, at least 1; None for one window of all examples.
    """
    window, first = 0, 0
    begun: Sums | None = None
    for block in blocks(embeddings):
        end = first + len(block)
        later = itertools.takewhile(lambda start: start < end, _starts(window + 1, hops))  # noqa: B023
        sums = _sums(block, np.array([first, *later]) - first, begun)
        total = len(sums.n)
        is_last_complete = next(_starts(window + total, hops), None) == end
        complete = total if is_last_complete else total - 1
        yield window, sums.rows(slice(complete))
        begun = None if is_last_complete else sums.rows(slice(complete, None))
        window, first = window + complete, end
    if begun:
        yield window, begun


def _starts(window: int, hops: Fraction | None) -> Iterator[int]:
    """Yield the first example of this pooling window and of each later one."""
    if hops is not None:
        yield from (-(-number * hops.numerator // hops.denominator) for number in itertools.count(window))


def _sums(block: NDArray[np.float32], firsts: NDArray[np.int64], begun: Sums | None) -> Sums:
    """Sum up a block's windows, which begin at ``firsts``; ``begun`` is the first one's part in earlier blocks."""
    counts = np.diff(firsts, append=len(block))
    origin = block[firsts].astype(np.float64)
    if begun:
        origin[0] = begun.origin[0]
    deviations = block - np.repeat(origin, counts, axis=0)
    sums = Sums(
        counts, origin, np.add.reduceat(deviations, firsts, axis=0), np.add.reduceat(deviations**2, firsts, axis=0)
    )
    if begun:
        sums.n[0] += begun.n[0]
        sums.deviations[0] += begun.deviations[0]
        sums.squares[0] += begun.squares[0]
    return sums


class _ClipWindows(NamedTuple):
    """Consecutive pooling windows of a clip, and the number of the first one."""

    row: ClipRow
    pool_s: float | None
    first: int
    sums: Sums

    @property
    def starts_s(self) -> NDArray[np.float64]:
        """Where each starts in the file."""
        windows = np.arange(self.first, self.first + len(self.sums.n), dtype=np.float64)
        return windows * (self.pool_s or 0.0) + self.row.start_s


def _groups(windows: Iterable[_ClipWindows]) -> Iterator[list[_ClipWindows]]:
    """Yield windows in groups of about ``_GROUP_ROWS``."""
    group: list[_ClipWindows] = []
    count = 0
    for own in windows:
        group.append(own)
        count += len(own.sums.n)
        if count >= _GROUP_ROWS:
            yield group
            group, count = [], 0
    if group:
        yield group


def _table(group: Sequence[_ClipWindows]) -> pa.Table:
    """Return windows as a table of ``POOLED_SCHEMA``."""
    counts = [len(own.sums.n) for own in group]
    clip_of_row = pa.array(np.repeat(np.arange(len(group)), counts))
    columns = [
        pa.array([own.row.clip for own in group], pa.string()).take(clip_of_row),
        pa.array([own.pool_s for own in group], pa.float64()).take(clip_of_row),
        pa.array(np.concatenate([own.starts_s for own in group])),
        pa.array(np.concatenate([own.sums.n for own in group])),
        vectors([own.sums.mean() for own in group], np.dtype(np.float32)),
        vectors([own.sums.std() for own in group], np.dtype(np.float32)),
        pa.array([own.row.label for own in group], pa.string()).take(clip_of_row),
    ]
    return pa.Table.from_arrays(columns, schema=POOLED_SCHEMA)
