"""Reads audio from a column of a Parquet file: a row group from its start, some rows at a time.

Rows that are requested in order are read once.  pyarrow is imported here, and therefore only for such data sets.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Executor
from functools import partial
from typing import IO, TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from runner.core.errors import ClipError
from runner.dataset.packed.address import open_container
from runner.dataset.packed.parquet import footer_crc32, leaf_of
from runner.storage.filesystem import object_stats, store_of
from runner.storage.prefetch import is_remote
from runner.storage.ranges import RangeFile, read_range
from runner.storage.retry import with_retries

if TYPE_CHECKING:
    from runner.dataset.packed.address import ParquetRow

_BATCH_BYTES = 8 << 20

_MAX_BATCH_ROWS = 256

_BUFFER_BYTES = 1 << 20
"""Bytes of a column that pyarrow reads at once; by default it reads a complete row group."""


class RowReader:
    """Reads rows, of one Parquet file at a time.

    Args:
        timeout_s: as in ``runner.storage.prefetch.fetch``.
        executor: reads ahead in object stores; None for no reading ahead.
    """

    def __init__(self, timeout_s: float, executor: Executor | None) -> None:
        self._timeout_s = timeout_s
        self._executor = executor
        self._open: tuple[bytes, int] | None = None
        self._file: IO[bytes] | RangeFile | None = None
        self._parquet: pq.ParquetFile | None = None
        self._group: tuple[str, int] | None = None
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._rows: pa.Array = pa.nulls(0)
        self._first_row = 0  # of `_rows`, in the group
        self._error: ClipError | None = None  # why the group can't be read after `_rows`

    def read(self, location: ParquetRow) -> memoryview:
        """Return a row's bytes, which remain valid.

        Raises:
            ClipError: it has none, or can't be read.
        """
        try:
            self._open_file(location)
            row = self._row(location)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise ClipError("unreadable", f"{os.fsdecode(location.container)}: {error}") from error
        if not row.is_valid:
            raise ClipError("empty", "the row has no bytes; if its audio is a separate file, use dataset=manifest")
        if not len(row.as_buffer()):
            raise ClipError("empty", "0 bytes")
        return memoryview(row.as_buffer())

    def close(self) -> None:
        """Close the file."""
        self._open = self._group = None
        self._batches, self._rows = iter(()), pa.nulls(0)
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open_file(self, location: ParquetRow) -> None:
        if self._open == (location.container, location.crc32):
            return
        self.close()
        if is_remote(location.container):
            url = os.fsdecode(location.container)
            size, _ = object_stats(with_retries(lambda: store_of(url).info(url), self._timeout_s))
            self._file = RangeFile(partial(read_range, url, self._timeout_s), size, self._executor)
        else:
            self._file = open(open_container(location.container), "rb", buffering=0)  # noqa: SIM115
            size = os.fstat(self._file.fileno()).st_size
        if footer_crc32(self._file, size) != location.crc32:  # type: ignore[arg-type]
            raise ClipError(
                "unreadable",
                f"{os.fsdecode(location.container)} was replaced since it was listed: rerun the same command",
            )
        self._parquet = pq.ParquetFile(self._file, pre_buffer=False, buffer_size=_BUFFER_BYTES)
        self._open = location.container, location.crc32

    def _row(self, location: ParquetRow) -> Any:
        if self._group != (location.column, location.group) or location.row < self._first_row:
            self._begin_group(location.column, location.group)
        while location.row >= self._first_row + len(self._rows):
            self._read_batch()
        return self._rows[location.row - self._first_row]

    def _begin_group(self, column: str, group: int) -> None:
        assert self._parquet is not None
        leaf = leaf_of(column, self._parquet.schema_arrow)
        info = self._parquet.metadata.row_group(group)
        columns = map(info.column, range(info.num_columns))
        chunk = next(chunk for chunk in columns if chunk.path_in_schema == leaf)
        row_bytes = max(1, chunk.total_uncompressed_size // max(1, info.num_rows))
        batch_rows = max(1, min(_MAX_BATCH_ROWS, _BATCH_BYTES // row_bytes))
        if isinstance(self._file, RangeFile):
            start = min(offset for offset in (chunk.dictionary_page_offset, chunk.data_page_offset) if offset)
            self._file.read_ahead_to(start + chunk.total_compressed_size)
        self._batches = self._parquet.iter_batches(batch_rows, row_groups=[group], columns=[leaf], use_threads=False)
        self._group, self._rows, self._first_row, self._error = (column, group), pa.nulls(0), 0, None

    def _read_batch(self) -> None:
        """Read the group's next rows; after an error all later rows fail alike."""
        if self._error is not None:
            raise self._error
        self._first_row += len(self._rows)
        self._rows = pa.nulls(0)
        try:
            batch = next(self._batches)
        except ClipError as error:
            self._error = error
            raise
        except (StopIteration, pa.ArrowException, OSError, ValueError) as error:
            self._error = ClipError("unreadable", f"row {self._first_row} of its row group and later ones: {error}")
            raise self._error from error
        column = batch.column(0)
        if pa.types.is_struct(column.type):
            column = column.flatten()[column.type.get_field_index("bytes")]
        self._rows = column
