"""The rows that formats write: how each clip ended, with its embeddings."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

import numpy as np
import pyarrow as pa

from runner.output.spill import BLOCK_ROWS, block_rows, concatenate, unread_blocks

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from runner.core.model_spec import Output
    from runner.core.span import Span
    from runner.output.spill import Chunk, Embeddings

CLIP_SCHEMA = pa.schema(
    [
        ("clip", pa.string()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("examples", pa.int64()),
        ("seconds", pa.float64()),
        ("sample_rate", pa.int64()),
        ("channels", pa.int64()),
        ("padded", pa.bool_()),
        ("label", pa.string()),
        ("recorded_at", pa.string()),
    ]
)
"""The columns of clips.parquet."""

GROUP_EXAMPLES = 65_536
"""Examples of a Parquet row group, and in memory while a shard is written, at most; see ``group_examples``."""

_GROUP_BYTES = 32 << 20


def group_examples(width: int) -> int:
    """Return the examples of a row group, for rows of ``width`` values: 32 MiB at most."""
    return max(1, min(GROUP_EXAMPLES, _GROUP_BYTES // (4 * width)))


class ClipRow(NamedTuple):
    """How a clip ended: ``status`` is embedded (``examples`` rows) or skipped (with a ``reason``).

    ``start_s`` is where in its file the clip starts; ``embeddings`` are float32 [examples, width], the
    model's outputs side by side.
    """

    clip: str
    status: str
    reason: str | None
    detail: str | None
    examples: int
    seconds: float
    sample_rate: int | None
    channels: int | None
    padded: bool
    label: str | None
    start_s: float
    embeddings: Embeddings


RecordedAt: TypeAlias = Callable[[pa.StringArray], pa.StringArray]
"""From clips' names to when the file of each begins, in ISO 8601; null where that is not known."""


def unknown_time(clips: pa.StringArray) -> pa.StringArray:
    """Return a column of nulls: ``RecordedAt`` of clips of unknown time."""
    return pa.nulls(len(clips), pa.string())


class ShardFormat(Protocol):
    """Writes embeddings in one format."""

    def write(self, shard: int, rows: Sequence[ClipRow]) -> list[Path]:
        """Write a complete shard, its clips in manifest order, and flush it to disk.

        Returns:
            The shard's own files, for its journal entry.
        """
        ...


@dataclass(frozen=True)
class EmbeddingInfo:
    """The embeddings of a run, for the writers of its files.

    Attributes:
        metadata: of the run, for each file.
        hop_s: seconds of the file between examples.
        outputs: of the model, side by side in each row.
    """

    metadata: Mapping[str, str]
    hop_s: float
    outputs: tuple[Output, ...]

    @cached_property
    def width(self) -> int:
        """Values of a row: those of all outputs."""
        return sum(output.width for output in self.outputs)

    @property
    def block_rows(self) -> int:
        """Rows of one clip to read at a time."""
        return block_rows(self.width)

    @property
    def group_examples(self) -> int:
        """Examples of a row group."""
        return group_examples(self.width)

    @cached_property
    def slices(self) -> tuple[slice, ...]:
        """The columns of each output in a row."""
        ends = list(itertools.accumulate((output.width for output in self.outputs), initial=0))
        return tuple(itertools.starmap(slice, itertools.pairwise(ends)))

    def first(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the first output of rows [n, width]."""
        return rows[:, self.slices[0]]


class PostprocessedColumn(NamedTuple):
    """The post-processed embeddings: their column, and the function from the first output [n, 128] to [n, 128]."""

    column: str
    process: Callable[[NDArray[np.float32]], NDArray[Any]]


class OpenShards:
    """The rows of shards that are not complete yet.

    Args:
        shards: the clips in each shard.
    """

    def __init__(self, shards: Sequence[Span]) -> None:
        self._starts = [first for first, _ in shards]
        self._shards = shards
        self._rows: dict[int, dict[int, ClipRow]] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def shard_of(self, clip: int) -> int:
        """Return the shard of a clip, by its number in the manifest."""
        return bisect_right(self._starts, clip) - 1

    def add(self, clip: int, row: ClipRow) -> tuple[int, list[ClipRow]] | None:
        """Add a clip's row; return its shard and the shard's rows, in manifest order, once these are complete."""
        shard = self.shard_of(clip)
        rows = self._rows.setdefault(shard, {})
        rows[clip] = row
        first, end = self._shards[shard]
        if len(rows) < end - first:
            return None
        del self._rows[shard]
        return shard, [rows[number] for number in range(first, end)]


def clip_table(rows: Sequence[ClipRow], recorded_at: RecordedAt = unknown_time) -> pa.Table:
    """Return rows as a table of ``CLIP_SCHEMA``; ``recorded_at`` is the function for that column."""
    values = dict(zip(ClipRow._fields, zip(*rows, strict=True), strict=True)) if rows else {}
    columns = {
        field.name: pa.array(values.get(field.name, ()), field.type)
        for field in CLIP_SCHEMA
        if field.name != "recorded_at"
    }
    columns["recorded_at"] = recorded_at(columns["clip"])
    return pa.table(columns, CLIP_SCHEMA)


class RowGroup(NamedTuple):
    """Blocks of clips' embeddings.

    Attributes:
        rows: the clip of each block.
        firsts: the block's first example in its clip, int64 [blocks].
        counts: the block's examples, int64 [blocks].
        embeddings: of all blocks, one after the other, float32 [n, width].
    """

    rows: list[ClipRow]
    firsts: NDArray[np.int64]
    counts: NDArray[np.int64]
    embeddings: NDArray[np.float32]

    @classmethod
    def of(cls, group: Sequence[tuple[ClipRow, int, Chunk]]) -> RowGroup:
        """Return the group of blocks, each (clip, first example in it, embeddings)."""
        rows, firsts, chunks = map(list, zip(*group, strict=True))
        counts = np.fromiter(map(len, chunks), np.int64, len(chunks))
        return cls(rows, np.array(firsts, np.int64), counts, concatenate(chunks))


def row_groups(rows: Iterable[ClipRow], examples: int = GROUP_EXAMPLES, block: int = BLOCK_ROWS) -> Iterator[RowGroup]:
    """Yield the embeddings of clips in groups of about ``examples``, of at most ``block`` examples of a clip each.

    The cuts do not depend on the clips' chunks.
    """
    group: list[tuple[ClipRow, int, Chunk]] = []
    count = 0
    for row in rows:
        first = 0
        for chunk in unread_blocks(row.embeddings, block):
            group.append((row, first, chunk))
            first += len(chunk)
            if count + first >= examples:
                yield RowGroup.of(group)
                group, count = [], -first
        count += first
    if group:
        yield RowGroup.of(group)
