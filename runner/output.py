"""The files of a run: one Parquet file of embeddings per shard, and clips.parquet with every clip's end.

A file is written to a temporary name, flushed to disk, then renamed: it is there whole or not at all.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from runner.vggish.constants import EMBEDDING_SIZE

EMBEDDINGS = "embeddings"
CLIPS = "clips.parquet"

EMBEDDING_SCHEMA = pa.schema(
    [
        ("clip", pa.string()),
        ("example", pa.int32()),
        ("start_s", pa.float64()),
        ("padded", pa.bool_()),
        ("label", pa.string()),
        ("embedding", pa.list_(pa.float32(), EMBEDDING_SIZE)),
    ]
)
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


@dataclass(frozen=True)
class ClipRow:
    """A clip's end: embedded (``examples`` rows) or skipped (a ``reason``), with what was seen of its file.

    ``start_s`` is where in its file the clip starts; ``embeddings`` is float32 [examples, 128].
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


class RunWriter:
    """Writes a run's shards as they become complete, and clips.parquet in manifest order.

    Args:
        folder: the run's folder.
        metadata: what every file says of itself (model, weights, precision, device, versions).
        hop_s: seconds between examples.
        compression: Parquet codec, or ``none``.
    """

    def __init__(self, folder: Path, metadata: Mapping[str, str], hop_s: float, compression: str) -> None:
        self._folder = folder
        self._metadata = {f"vggish_runner.{key}".encode(): value.encode() for key, value in metadata.items()}
        self._hop_s = hop_s
        self._compression = compression
        self._next_shard = 0
        self._early: dict[int, pa.Table] = {}
        self._clips_temporary = folder / f".{CLIPS}.tmp"
        self._clips = pq.ParquetWriter(
            self._clips_temporary, CLIP_SCHEMA.with_metadata(self._metadata), compression=compression
        )
        (folder / EMBEDDINGS).mkdir(exist_ok=True)

    def write_shard(self, shard: int, rows: Sequence[ClipRow]) -> Path:
        """Write a complete shard, its clips in manifest order."""
        path = self._folder / EMBEDDINGS / f"part-{shard:05d}.parquet"
        table = embedding_table(rows, self._hop_s).replace_schema_metadata(self._metadata)
        with _atomic(path) as temporary:
            pq.write_table(table, temporary, compression=self._compression, use_dictionary=["clip", "label"])
        self._early[shard] = clip_table(rows)
        while (table := self._early.pop(self._next_shard, None)) is not None:
            self._clips.write_table(table)
            self._next_shard += 1
        return path

    def close(self) -> None:
        """Finish clips.parquet with the complete shards, those after a gap included."""
        for shard in sorted(self._early):
            self._clips.write_table(self._early[shard])
        self._clips.close()
        _flush(self._clips_temporary)
        self._clips_temporary.replace(self._folder / CLIPS)
        _flush_folder(self._folder)


class OpenShards:
    """The rows of shards that are not complete yet."""

    def __init__(self, shards: Sequence[tuple[int, int]]) -> None:
        self._starts = np.array([first for first, _ in shards], np.int64)
        self._shards = shards
        self._rows: dict[int, dict[int, ClipRow]] = {}

    def of(self, index: int) -> int:
        """The shard that a clip belongs to."""
        return int(np.searchsorted(self._starts, index, side="right")) - 1

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


def embedding_table(rows: Sequence[ClipRow], hop_s: float) -> pa.Table:
    """The embeddings of clips as a table of ``EMBEDDING_SCHEMA``, a row an example."""
    embedded = [row for row in rows if row.examples]
    counts = np.array([row.examples for row in embedded], np.int64)
    total = int(counts.sum())
    which = np.repeat(np.arange(len(embedded)), counts)
    example = np.arange(total) - np.repeat(np.cumsum(counts) - counts, counts)
    starts = np.repeat(np.array([row.start_s for row in embedded]), counts) + example * hop_s
    padded = np.zeros(total, bool)
    padded[np.cumsum(counts) - 1] = [row.padded for row in embedded]
    values = np.concatenate([row.embeddings for row in embedded]) if embedded else np.empty((0, EMBEDDING_SIZE))
    columns = [
        pa.array([row.clip for row in embedded], pa.string()).take(pa.array(which)),
        pa.array(example.astype(np.int32)),
        pa.array(starts.astype(np.float64)),
        pa.array(padded),
        pa.array([row.label for row in embedded], pa.string()).take(pa.array(which)),
        pa.FixedSizeListArray.from_arrays(pa.array(values.astype(np.float32).reshape(-1)), EMBEDDING_SIZE),
    ]
    return pa.Table.from_arrays(columns, schema=EMBEDDING_SCHEMA)


def clip_table(rows: Sequence[ClipRow]) -> pa.Table:
    """The ends of clips as a table of ``CLIP_SCHEMA``."""
    return pa.Table.from_pydict(
        {name: [getattr(row, name) for row in rows] for name in CLIP_SCHEMA.names}, schema=CLIP_SCHEMA
    )


@contextmanager
def _atomic(path: Path) -> Iterator[Path]:
    temporary = path.with_name(f".{path.name}.tmp")
    yield temporary
    _flush(temporary)
    temporary.replace(path)
    _flush_folder(path.parent)


def write_atomic(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with _atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _flush(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    if os.name == "nt":  # Windows cannot open a folder to flush it
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
