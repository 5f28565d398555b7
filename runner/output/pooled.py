"""Pooled embeddings: mean and standard deviation over windows of time, and over complete clips."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from runner.core.files import atomic, make_folder
from runner.core.layout import RunLayout, shard_name
from runner.output.parquet import parquet_metadata, vectors
from runner.output.rows import row_groups

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from runner.output.rows import ClipRow, EmbeddingInfo, RowGroup

_GROUP_ROWS = 8192
"""Least rows of a Parquet row group that is not the last."""


class PooledShards:
    """Writes ``pooled/part-NNNNN.parquet``, of the first output: for each duration a row a window, then a row a clip.

    Window ``k`` of ``pool_s`` has the examples that start in ``[k · pool_s, (k + 1) · pool_s)`` from the clip's
    beginning, ``n`` of them; ``std`` is the population's (ddof 0).

    Args:
        folder: the run's folder.
        info: on its embeddings.
        pools_s: durations of pooling windows in seconds of the file, each at least ``info.hop_s``.
        compression: Parquet codec, or ``none``.
    """

    def __init__(self, folder: Path, info: EmbeddingInfo, pools_s: Sequence[float], compression: str) -> None:
        self._folder = RunLayout(folder).pooled
        make_folder(self._folder)
        self._schema = pooled_schema(info.outputs[0].width).with_metadata(parquet_metadata(info.metadata))
        self._compression = compression
        self._info = info
        self._pools: tuple[float | None, ...] = (*pools_s, None)

    def write(self, shard: int, rows: Sequence[ClipRow]) -> list[Path]:
        """Write a shard's file; see ``ShardFormat``."""
        path = self._folder / shard_name(shard, ".parquet")
        with (
            atomic(path) as temporary,
            pq.ParquetWriter(
                temporary, self._schema, compression=self._compression, use_dictionary=["clip", "label"]
            ) as file,
        ):
            for pool_s in self._pools:
                for table in _in_groups(windows.to_table(pool_s) for windows in pooled(rows, pool_s, self._info)):
                    file.write_table(table)
        return [path]


def pooled_schema(width: int) -> pa.Schema:
    """Return the columns of a file of pooled embeddings; ``pool_s`` is null in the row of a complete clip."""
    return pa.schema(
        [
            ("clip", pa.string()),
            ("pool_s", pa.float64()),
            ("start_s", pa.float64()),
            ("n", pa.int64()),
            ("mean", pa.list_(pa.float32(), width)),
            ("std", pa.list_(pa.float32(), width)),
            ("label", pa.string()),
        ]
    )


@dataclass(frozen=True)
class Windows:
    """Pooling windows, in the order of clips and of time.

    Attributes:
        rows: the clips that they are of.
        clip: each window's clip as its place in ``rows``, int64 [m].
        number: each window's number in its clip, from 0, int64 [m].
        n: examples in each, int64 [m].
        mean: of the examples, float64 [m, d].
        squares: sum of the squares of their differences from ``mean``, float64 [m, d].
    """

    rows: Sequence[ClipRow]
    clip: NDArray[np.int64]
    number: NDArray[np.int64]
    n: NDArray[np.int64]
    mean: NDArray[np.float64]
    squares: NDArray[np.float64]

    def part(self, windows: slice) -> Windows:
        """Return some of the windows."""
        arrays = self.clip[windows], self.number[windows], self.n[windows], self.mean[windows], self.squares[windows]
        return Windows(self.rows, *arrays)

    def continue_first(self, begun: Windows) -> None:
        """Add the examples of ``begun``, one window's, to the first window.

        Source of the formula: Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample
        Variances", 1979.
        """
        n, other = int(begun.n[0]), int(self.n[0])
        difference = self.mean[0] - begun.mean[0]
        self.squares[0] += begun.squares[0] + difference**2 * (n * other / (n + other))
        self.mean[0] = begun.mean[0] + difference * (other / (n + other))
        self.n[0] += n

    def to_table(self, pool_s: float | None) -> pa.Table:
        """Return a table of ``pooled_schema``; ``pool_s`` is the windows' duration, None for complete clips."""
        clip = pa.array(self.clip)
        starts_s = np.array([row.start_s for row in self.rows])[self.clip] + self.number * (pool_s or 0.0)
        columns = [
            pa.array([row.clip for row in self.rows], pa.string()).take(clip),
            pa.array([pool_s] * len(self.n), pa.float64()),
            pa.array(starts_s),
            pa.array(self.n),
            vectors(self.mean.astype(np.float32)),
            vectors(np.sqrt(self.squares / self.n[:, None]).astype(np.float32)),
            pa.array([row.label for row in self.rows], pa.string()).take(clip),
        ]
        return pa.Table.from_arrays(columns, schema=pooled_schema(self.mean.shape[1]))


def pooled(rows: Sequence[ClipRow], pool_s: float | None, info: EmbeddingInfo) -> Iterator[Windows]:
    """Yield the pooling windows of clips, some at a time.

    Each clip is read in blocks of as many examples: the bits depend neither on its chunks nor on the other clips.

    Args:
        rows: clips.
        pool_s: duration of a window in seconds, at least the hop; None for one window of a complete clip.
        info: on the embeddings.
    """
    hops = None if pool_s is None else Fraction(str(pool_s)) / Fraction(str(info.hop_s))
    begun: Windows | None = None
    block = info.block_rows
    for group in row_groups(rows, block, block):  # of complete clips, and one block of a longer one at the end
        windows = _windows(group, info.first(group.embeddings), hops)
        if begun and begun.number[0] == windows.number[0]:
            windows.continue_first(begun)
        elif begun:
            yield begun
        continues = group.firsts[-1] + group.counts[-1] < group.rows[-1].examples
        begun = windows.part(slice(-1, None)) if continues else None
        yield windows.part(slice(-1)) if continues else windows


def _windows(group: RowGroup, examples: NDArray[np.float32], hops: Fraction | None) -> Windows:
    """Pool a group of blocks, each of another clip, whose embeddings are ``examples``."""
    clips, numbers, firsts = [], [], []
    offset = 0
    for clip, (first, count) in enumerate(zip(group.firsts.tolist(), group.counts.tolist(), strict=True)):
        for number, start in _starts(first, first + count, hops):
            clips.append(clip)
            numbers.append(number)
            firsts.append(offset + max(start - first, 0))
        offset += count
    n = np.diff(firsts, append=len(examples))
    origin = examples[firsts].astype(np.float64)  # differences from it are exactly 0 where all examples are equal
    differences: NDArray[np.float64] = np.subtract(examples, np.repeat(origin, n, axis=0))
    mean = _sums(differences, firsts) / n[:, None]
    squares = _sums(np.square(differences, out=differences), firsts) - mean**2 * n[:, None]
    return Windows(group.rows, np.array(clips), np.array(numbers), n, origin + mean, np.maximum(squares, 0))


def _sums(values: NDArray[np.float64], firsts: Sequence[int]) -> NDArray[np.float64]:
    """Sum up the rows from each of ``firsts`` to the next; ``np.add.reduceat`` goes along columns, which is slow."""
    return np.array([values[first:end].sum(axis=0) for first, end in itertools.pairwise([*firsts, len(values)])])


def _starts(first: int, end: int, hops: Fraction | None) -> Iterator[tuple[int, int]]:
    """Yield the windows with any of the examples from ``first`` to before ``end``: number, and first example."""
    if hops is None:
        yield 0, 0
        return
    for number in itertools.count(first * hops.denominator // hops.numerator):
        start = -(-number * hops.numerator // hops.denominator)
        if start >= end:
            return
        yield number, start


def _in_groups(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Join tables to ones of at least ``_GROUP_ROWS`` rows, the last one aside."""
    group: list[pa.Table] = []
    for table in tables:
        group.append(table)
        if sum(map(len, group)) >= _GROUP_ROWS:
            yield pa.concat_tables(group)
            group = []
    if group:
        yield pa.concat_tables(group)
