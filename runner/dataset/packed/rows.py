"""Reads audio out of a Parquet file's column: a row group from its beginning on, some rows at a time.

Rows that are taken in their order are read once.  pyarrow is imported here, and so only where such a data set is read.
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
from runner.dataset.packed.parquet import footer_check, leaf_of
from runner.storage.filesystem import stamp_of, store_of
from runner.storage.prefetch import is_remote
from runner.storage.ranges import RangeFile, read_range
from runner.storage.retry import with_retries

if TYPE_CHECKING:
    from runner.dataset.packed.address import ParquetRow

_BATCH_BYTES = 8 << 20

_MOST_BATCH = 256

_BUFFER = 1 << 20
"""Bytes of a column that pyarrow reads at once: it would take all of a row group."""


class RowReader:
    """The rows of one Parquet file at a time.

    Args:
        timeout_s: as in ``runner.storage.prefetch.fetch``.
        executor: reads of files in object stores ahead; None: nothing does.
    """

    def __init__(self, timeout_s: float, executor: Executor | None) -> None:
        self._timeout_s = timeout_s
        self._executor = executor
        self._open: tuple[bytes, int] | None = None
        self._file: IO[bytes] | RangeFile | None = None
        self._parquet: pq.ParquetFile | None = None
        self._at: tuple[str, int] | None = None
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._rows: pa.Array = pa.nulls(0)
        self._first = 0
        """The row of the group that is the first of ``_rows``."""
        self._fault: ClipError | None = None
        """Why the group can't be read behind ``_rows``."""

    def take(self, place: ParquetRow) -> memoryview:
        """A row's bytes, which stay as they are.

        Raises:
            ClipError: it has none, or can't be read.
        """
        try:
            self._open_file(place)
            row = self._row(place)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise ClipError("unreadable", f"{os.fsdecode(place.container)}: {error}") from error
        if not row.is_valid:
            raise ClipError("empty", "the row has no bytes; where its audio is a file of its own, use dataset=manifest")
        if not len(row.as_buffer()):
            raise ClipError("empty", "0 bytes")
        return memoryview(row.as_buffer())

    def close(self) -> None:
        """Let go of the file."""
        self._open = self._at = None
        self._batches, self._rows = iter(()), pa.nulls(0)
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open_file(self, place: ParquetRow) -> None:
        if self._open == (place.container, place.check):
            return
        self.close()
        if is_remote(place.container):
            url = os.fsdecode(place.container)
            size, _ = stamp_of(with_retries(lambda: store_of(url).info(url), self._timeout_s))
            self._file = RangeFile(partial(read_range, url, self._timeout_s), size, self._executor)
        else:
            self._file = open(open_container(place.container), "rb", buffering=0)  # noqa: SIM115
            size = os.fstat(self._file.fileno()).st_size
        if footer_check(self._file, size) != place.check:  # type: ignore[arg-type]
            raise ClipError(
                "unreadable",
                f"{os.fsdecode(place.container)} is another file than when it was listed: rerun the same command",
            )
        self._parquet = pq.ParquetFile(self._file, pre_buffer=False, buffer_size=_BUFFER)
        self._open = place.container, place.check

    def _row(self, place: ParquetRow) -> Any:
        if self._at != (place.column, place.group) or place.row < self._first:
            self._begin(place.column, place.group)
        while place.row >= self._first + len(self._rows):
            self._advance()
        return self._rows[place.row - self._first]

    def _begin(self, column: str, group: int) -> None:
        assert self._parquet is not None
        leaf = leaf_of(column, self._parquet.schema_arrow)
        about = self._parquet.metadata.row_group(group)
        chunk = next(each for each in map(about.column, range(about.num_columns)) if each.path_in_schema == leaf)
        average = max(1, chunk.total_uncompressed_size // max(1, about.num_rows))
        count = max(1, min(_MOST_BATCH, _BATCH_BYTES // average))
        if isinstance(self._file, RangeFile):
            first = min(place for place in (chunk.dictionary_page_offset, chunk.data_page_offset) if place)
            self._file.read_ahead_to(first + chunk.total_compressed_size)
        self._batches = self._parquet.iter_batches(count, row_groups=[group], columns=[leaf], use_threads=False)
        self._at, self._rows, self._first, self._fault = (column, group), pa.nulls(0), 0, None

    def _advance(self) -> None:
        """Read the next rows; once that has failed, it has for all that come after."""
        if self._fault is not None:
            raise self._fault
        self._first += len(self._rows)
        self._rows = pa.nulls(0)
        try:
            batch = next(self._batches)
        except ClipError as error:
            self._fault = error
            raise
        except (StopIteration, pa.ArrowException, OSError, ValueError) as error:
            self._fault = ClipError("unreadable", f"row {self._first} of its row group and those behind: {error}")
            raise self._fault from error
        column = batch.column(0)
        if pa.types.is_struct(column.type):
            column = column.flatten()[column.type.get_field_index("bytes")]
        self._rows = column
