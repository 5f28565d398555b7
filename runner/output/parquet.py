"""Embeddings in Parquet files, one row an example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from runner.core.files import atomic, make_folder
from runner.core.layout import RunLayout, shard_name
from runner.output.rows import row_groups
from runner.vggish.constants import EMBEDDING_SIZE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from runner.output.rows import ClipRow, PostprocessedColumn, RowGroup

POSTPROCESSED_TYPES: dict[str, np.dtype[Any]] = {
    "embedding_pca": np.dtype(np.float32),
    "embedding_u8": np.dtype(np.uint8),
}
"""The post-processed columns and their types."""

_FLOAT_VECTORS = ("embedding", "embedding_pca")
"""Columns whose values are stored byte by byte: the first bytes of all values, then the second ones."""


class ParquetShards:
    """Writes ``embeddings/part-NNNNN.parquet``, one row an example.

    Vectors of float32 have Parquet's encoding BYTE_STREAM_SPLIT: signs and exponents, which are alike, lie next to each
    other, so that a file is smaller (a tenth with random values) and faster to decompress.

    Args:
        folder: the run's folder.
        metadata: of the run, for each file.
        hop_s: seconds between examples.
        compression: Parquet codec, or ``none``.
        extra: the post-processed column; None for none.
    """

    def __init__(
        self,
        folder: Path,
        metadata: Mapping[str, str],
        hop_s: float,
        compression: str,
        extra: PostprocessedColumn | None = None,
    ) -> None:
        self._folder = RunLayout(folder).embeddings
        make_folder(self._folder)
        self._schema = embedding_schema(extra and extra.column).with_metadata(parquet_metadata(metadata))
        self._split = [f"{name}.list.element" for name in _FLOAT_VECTORS if name in self._schema.names]
        self._hop_s = hop_s
        self._compression = compression
        self._extra = extra

    def write(self, shard: int, rows: Sequence[ClipRow]) -> list[Path]:
        """Write a shard's file; see ``ShardFormat``."""
        path = self._folder / shard_name(shard, ".parquet")
        with (
            atomic(path) as temporary,
            pq.ParquetWriter(
                temporary,
                self._schema,
                compression=self._compression,
                use_dictionary=["clip", "label"],
                use_byte_stream_split=self._split,
            ) as file,
        ):
            for group in row_groups(rows):
                file.write_table(embedding_table(group, self._hop_s, self._extra))
                del group  # before the next one is read
        return [path]


def embedding_schema(extra: str | None = None) -> pa.Schema:
    """Return the columns of an embeddings file; ``extra`` is the post-processed one (embedding_pca, embedding_u8)."""
    fields = [
        ("clip", pa.string()),
        ("example", pa.int32()),
        ("start_s", pa.float64()),
        ("padded", pa.bool_()),
        ("label", pa.string()),
        ("embedding", pa.list_(pa.float32(), EMBEDDING_SIZE)),
    ]
    if extra:
        fields.append((extra, pa.list_(pa.from_numpy_dtype(POSTPROCESSED_TYPES[extra]), EMBEDDING_SIZE)))
    return pa.schema(fields)


def embedding_table(group: RowGroup, hop_s: float, extra: PostprocessedColumn | None = None) -> pa.Table:
    """Return embeddings of clips as a table of ``embedding_schema``, one row an example."""
    rows, firsts, counts, embeddings = group
    total, ends = int(counts.sum()), np.cumsum(counts)
    row_of_example = pa.array(np.repeat(np.arange(len(rows)), counts))
    example = np.arange(total) - np.repeat(ends - counts - firsts, counts)
    starts = np.repeat(np.array([row.start_s for row in rows]), counts) + example * hop_s
    padded = np.zeros(total, bool)
    is_last = firsts + counts == [row.examples for row in rows]
    padded[ends - 1] = is_last & [row.padded for row in rows]
    columns = [
        pa.array([row.clip for row in rows], pa.string()).take(row_of_example),
        pa.array(example.astype(np.int32)),
        pa.array(starts.astype(np.float64)),
        pa.array(padded),
        pa.array([row.label for row in rows], pa.string()).take(row_of_example),
        vectors(embeddings),
    ]
    if extra:
        processed = [extra.process(block) for block in np.split(embeddings, ends[:-1])]
        columns.append(vectors(np.concatenate(processed).astype(POSTPROCESSED_TYPES[extra.column], copy=False)))
    return pa.Table.from_arrays(columns, schema=embedding_schema(extra and extra.column))


def parquet_metadata(metadata: Mapping[str, str]) -> dict[bytes, bytes]:
    """Return a run's metadata as the key-value metadata of a Parquet file."""
    return {f"vggish_runner.{key}".encode(): value.encode() for key, value in metadata.items()}


def vectors(values: NDArray[Any]) -> pa.Array:
    """Return an array [n, 128] as a column of vectors."""
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), EMBEDDING_SIZE)
