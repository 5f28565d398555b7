"""The files of a run: embeddings by shard in the formats asked for, and clips.parquet with every clip's end."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from runner.config import OutputConfig
from runner.files import commit
from runner.formats import NpzFiles, ParquetShards, ShardFormat, TfrecordShards, parquet_metadata
from runner.vggish.postprocess import COLUMNS

CLIPS = "clips.parquet"

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

    ``start_s`` is where in its file the clip starts; ``embeddings`` is float32 [examples, 128], ``processed`` their
    post-processed form if one is asked for.
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
    embeddings: NDArray[np.float32]
    processed: NDArray[Any] | None = None


class RunWriter:
    """Writes a run's shards as they become complete, and clips.parquet in manifest order.

    Args:
        folder: the run's folder.
        metadata: what every file says of itself (model, weights, precision, device, versions).
        formats: the writers of embeddings.
        postprocess: embeddings to their post-processed form; None for none.
    """

    def __init__(
        self,
        folder: Path,
        metadata: Mapping[str, str],
        formats: Sequence[ShardFormat],
        postprocess: Callable[[NDArray[np.float32]], NDArray[Any]] | None = None,
    ) -> None:
        self._folder = folder
        self._formats = formats
        self._postprocess = postprocess
        self._next_shard = 0
        self._early: dict[int, pa.Table] = {}
        self._clips_temporary = folder / f".{CLIPS}.tmp"
        schema = CLIP_SCHEMA.with_metadata(parquet_metadata(metadata))
        self._clips = pq.ParquetWriter(self._clips_temporary, schema, compression="zstd")

    def write_shard(self, shard: int, rows: Sequence[ClipRow]) -> None:
        """Write a complete shard, its clips in manifest order."""
        if self._postprocess:
            rows = [row._replace(processed=self._postprocess(row.embeddings)) for row in rows]
        for form in self._formats:
            form.write(shard, rows)
        self._early[shard] = clip_table(rows)
        while (table := self._early.pop(self._next_shard, None)) is not None:
            self._clips.write_table(table)
            self._next_shard += 1

    def close(self) -> None:
        """Finish clips.parquet with the complete shards, those after a gap included."""
        for shard in sorted(self._early):
            self._clips.write_table(self._early[shard])
        self._clips.close()
        commit(self._clips_temporary, self._folder / CLIPS)


def make_formats(
    output: OutputConfig, folder: Path, metadata: Mapping[str, str], hop_s: float, labels: Sequence[str]
) -> list[ShardFormat]:
    """The writers that ``output`` asks for; ``labels`` are the data set's distinct ones."""
    extra = COLUMNS.get(output.postprocess)
    make: dict[str, Callable[[], ShardFormat]] = {
        "parquet": lambda: ParquetShards(folder, metadata, hop_s, output.compression, extra),
        "npz": lambda: NpzFiles(folder, metadata, hop_s, extra),
        "tfrecord": lambda: TfrecordShards(folder, metadata, labels),
    }
    return [make[name]() for name in dict.fromkeys(output.formats)]


class OpenShards:
    """The rows of shards that are not complete yet."""

    def __init__(self, shards: Sequence[tuple[int, int]]) -> None:
        self._starts = [first for first, _ in shards]
        self._shards = shards
        self._rows: dict[int, dict[int, ClipRow]] = {}

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
