"""Rows of clips.parquet and of the shards."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa

if TYPE_CHECKING:
    from runner.output.spill import Embeddings

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
    ]
)


class ClipRow(NamedTuple):
    """A clip's end: embedded (``examples`` rows) or skipped (a ``reason``), with what was seen of its file.

    ``start_s`` is where in its file the clip starts; ``embeddings`` are float32 [examples, 128].
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


class OpenShards:
    """The rows of shards that are not complete yet."""

    def __init__(self, shards: Sequence[tuple[int, int]]) -> None:
        self._starts = [first for first, _ in shards]
        self._shards = shards
        self._rows: dict[int, dict[int, ClipRow]] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def of(self, index: int) -> int:
        """The shard that a clip belongs to."""
        return bisect_right(self._starts, index) - 1

    def add(self, index: int, row: ClipRow) -> tuple[int, list[ClipRow]] | None:
        """Take a clip's row; give the shard's number and rows, in manifest order, if that completes it."""
        shard = self.of(index)
        rows = self._rows.setdefault(shard, {})
        rows[index] = row
        first, end = self._shards[shard]
        if len(rows) < end - first:
            return None
        del self._rows[shard]
        return shard, [rows[clip] for clip in range(first, end)]


def clip_table(rows: Sequence[ClipRow]) -> pa.Table:
    """The ends of clips as a table of ``CLIP_SCHEMA``."""
    return pa.Table.from_pydict(
        {name: [getattr(row, name) for row in rows] for name in CLIP_SCHEMA.names}, schema=CLIP_SCHEMA
    )
