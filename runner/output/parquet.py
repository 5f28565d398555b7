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
from runner.output.run_model import METADATA_PREFIX

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from runner.core.model_spec import Output
    from runner.output.rows import ClipRow, EmbeddingInfo, PostprocessedColumn, RowGroup

POSTPROCESSED_TYPES: dict[str, np.dtype[Any]] = {
    "embedding_pca": np.dtype(np.float32),
    "embedding_u8": np.dtype(np.uint8),
}
"""The post-processed columns and their types."""


class ParquetShards:
    """Writes ``embeddings/part-NNNNN.parquet``, one row an example, with a column for each output.

    Vectors of float32 have Parquet's encoding BYTE_STREAM_SPLIT: signs and exponents, which are alike, lie next to each
    other, so that a file is smaller (a tenth with random values) and faster to decompress.

    Args:
        folder: the run's folder.
        info: on its embeddings.
        compression: Parquet codec, or ``none``.
        extra: the post-processed column; None for none.
    """

    def __init__(
        self, folder: Path, info: EmbeddingInfo, compression: str, extra: PostprocessedColumn | None = None
    ) -> None:
        self._folder = RunLayout(folder).embeddings
        make_folder(self._folder)
        schema = embedding_schema(info.outputs, extra and extra.column)
        self._schema = schema.with_metadata(parquet_metadata(info.metadata))
        self._split = [f"{field.name}.list.element" for field in schema if _is_float_vector(field.type)]
        self._info = info
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
            for group in row_groups(rows, self._info.group_examples, self._info.block_rows):
                file.write_table(embedding_table(group, self._info, self._extra))
                del group  # before the next one is read
        return [path]


def embedding_schema(outputs: Sequence[Output], extra: str | None = None) -> pa.Schema:
    """Return the columns of an embeddings file: of each clip, of each output, and of the post-processed embeddings.

    Args:
        outputs: of the model.
        extra: name of the post-processed column (embedding_pca, embedding_u8), as wide as the first output.
    """
    fields = [
        ("clip", pa.string()),
        ("example", pa.int32()),
        ("start_s", pa.float64()),
        ("padded", pa.bool_()),
        ("label", pa.string()),
        *((output.name, pa.list_(pa.float32(), output.width)) for output in outputs),
    ]
    if extra:
        fields.append((extra, pa.list_(pa.from_numpy_dtype(POSTPROCESSED_TYPES[extra]), outputs[0].width)))
    return pa.schema(fields)


def embedding_table(group: RowGroup, info: EmbeddingInfo, extra: PostprocessedColumn | None = None) -> pa.Table:
    """Return embeddings of clips as a table of ``embedding_schema``, one row an example."""
    rows, firsts, counts, embeddings = group
    total, ends = int(counts.sum()), np.cumsum(counts)
    row_of_example = pa.array(np.repeat(np.arange(len(rows)), counts))
    example = np.arange(total) - np.repeat(ends - counts - firsts, counts)
    starts = np.repeat(np.array([row.start_s for row in rows]), counts) + example * info.hop_s
    padded = np.zeros(total, bool)
    is_last = firsts + counts == [row.examples for row in rows]
    padded[ends - 1] = is_last & [row.padded for row in rows]
    columns = [
        pa.array([row.clip for row in rows], pa.string()).take(row_of_example),
        pa.array(example.astype(np.int32)),
        pa.array(starts.astype(np.float64)),
        pa.array(padded),
        pa.array([row.label for row in rows], pa.string()).take(row_of_example),
        *(vectors(embeddings[:, columns]) for columns in info.slices),
    ]
    if extra:
        processed = [extra.process(block) for block in np.split(info.first(embeddings), ends[:-1])]
        columns.append(vectors(np.concatenate(processed).astype(POSTPROCESSED_TYPES[extra.column], copy=False)))
    return pa.Table.from_arrays(columns, schema=embedding_schema(info.outputs, extra and extra.column))


def parquet_metadata(metadata: Mapping[str, str]) -> dict[bytes, bytes]:
    """Return a run's metadata as the key-value metadata of a Parquet file."""
    return {f"{METADATA_PREFIX}{key}".encode(): value.encode() for key, value in metadata.items()}


def vectors(values: NDArray[Any]) -> pa.Array:
    """Return an array [n, d] as a column of vectors."""
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])


def _is_float_vector(of: pa.DataType) -> bool:
    """Return whether values are stored byte by byte: the first bytes of all values, then the second ones."""
    return bool(pa.types.is_fixed_size_list(of) and pa.types.is_floating(of.value_type))
