"""Lists a Parquet file with audio in a column: rows of bytes, with names and labels from other columns.

Audio is a binary column, or a struct of ``bytes`` and ``path`` as Hugging Face's ``Audio`` has it.  Only the footer and
the columns of names and labels are read, so that a clip's size is the average of its row group.
"""

from __future__ import annotations

import json
import os
import zlib
from typing import IO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from runner.core.errors import ClipError
from runner.dataset.packed.address import ParquetRow, address_tail
from runner.dataset.packed.tar import Contents

_FOOTER_END_BYTES = 8

_MAGIC = b"PAR1"

_MAX_FOOTER_BYTES = 1 << 28


class ColumnNames(NamedTuple):
    """The columns of ``dataset=parquet``.

    ``audio`` is None for the only column that can be it; ``name`` is None for the audio's own path, or the number of
    the row; ``label`` need not exist.
    """

    audio: str | None
    name: str | None
    label: str


class _ColumnError(Exception):
    """The file lacks a column, or its type is wrong."""


def footer_crc32(file: IO[bytes], size: int) -> int:
    """Return the CRC-32 of a Parquet file's footer, which has offset and size of every column chunk.

    Raises:
        ValueError: it has no footer.
    """
    file.seek(max(0, size - _FOOTER_END_BYTES))
    end = file.read(_FOOTER_END_BYTES)
    length = int.from_bytes(end[:4], "little")
    if end[4:] != _MAGIC or not 0 < length <= min(size - _FOOTER_END_BYTES, _MAX_FOOTER_BYTES):
        raise ValueError("it has no footer: not a Parquet file, or truncated")
    file.seek(size - _FOOTER_END_BYTES - length)
    return zlib.crc32(file.read(length))


def leaf_of(column: str, schema: pa.Schema) -> str:
    """Return the leaf column with the bytes of an audio column."""
    return f"{column}.bytes" if pa.types.is_struct(schema.field(column).type) else column


def scan_parquet(file: IO[bytes], size: int, container: bytes, columns: ColumnNames) -> Contents:
    """List the rows of a Parquet file.

    Args:
        file: the file, open.
        size: its bytes.
        container: its path or URL, for addresses.
        columns: names of its columns.

    Raises:
        ClipError: raised by ``file`` where it can't be read.
    """
    contents = Contents()
    try:
        crc32 = footer_crc32(file, size)
        with pq.ParquetFile(file, pre_buffer=False) as parquet:
            scan = _Scan(parquet, columns)
            for group in range(parquet.num_row_groups):
                scan.add_group(group, container, crc32, contents)
    except _ColumnError as error:
        contents.problem = "unsupported_format", str(error)
    except ClipError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        contents.problem = "unsupported_format", f"it can't be read as Parquet ({error})"
    return contents


class _Scan:
    """Reads the names and labels of a Parquet file.

    Args:
        parquet: the file.
        columns: names of its columns.

    Raises:
        _ColumnError: it lacks one of them.
    """

    def __init__(self, parquet: pq.ParquetFile, columns: ColumnNames) -> None:
        schema = parquet.schema_arrow
        self._parquet = parquet
        self._audio = columns.audio or _find_audio_column(schema)
        _check_columns(schema, self._audio, columns.name)
        self._leaf = leaf_of(self._audio, schema)
        self._name = columns.name
        self._label = columns.label if schema.get_field_index(columns.label) >= 0 else None
        self._classes = _class_names(schema, columns.label)
        is_struct = self._leaf != self._audio
        has_path = is_struct and schema.field(self._audio).type.get_field_index("path") >= 0
        self._path = f"{self._audio}.path" if has_path else None

    def add_group(self, group: int, container: bytes, crc32: int, contents: Contents) -> None:
        """Add the rows of a row group to the contents."""
        info = self._parquet.metadata.row_group(group)
        size = _leaf_bytes(info, self._leaf) // max(1, info.num_rows)
        for row, (name, label) in enumerate(self._names_and_labels(group, info.num_rows)):
            suffix = os.path.splitext(name or "")[1].lower()
            contents.names.append(os.fsencode(name.replace("\0", "\\x00")) if name else None)
            contents.tails.append(address_tail(ParquetRow(container, self._audio, group, row, crc32, suffix)))
            contents.sizes.append(size)
            contents.labels.append(label)

    def _names_and_labels(self, group: int, rows: int) -> list[tuple[str | None, str | None]]:
        names: list[str | None] = [None] * rows
        labels: list[str | None] = [None] * rows
        columns = [column for column in (self._name or self._path, self._label) if column]
        if columns and rows:
            table = self._parquet.read_row_group(group, columns=columns, use_threads=False)
            if self._name:
                names = _text(table[self._name], self._name)
            elif self._path:
                names = table[self._audio].combine_chunks().flatten()[0].cast(pa.string()).to_pylist()
            if self._label:
                labels = [_label(value, self._classes) for value in _text(table[self._label], self._label)]
        return list(zip(names, labels, strict=True))


def _find_audio_column(schema: pa.Schema) -> str:
    structs = [field.name for field in schema if pa.types.is_struct(field.type) and _is_audio(field.type)]
    candidates = structs or [field.name for field in schema if _is_binary(field.type)]
    if len(candidates) == 1:
        return str(candidates[0])
    if candidates:
        problem = f"several columns may be audio ({', '.join(candidates)})"
    else:
        problem = "no column is binary, or a struct of bytes and path"
    raise _ColumnError(f"{problem}: give one of {', '.join(schema.names)} as dataset.audio_column")


def _check_columns(schema: pa.Schema, audio: str, name: str | None) -> None:
    for column in (audio, name):
        if column and schema.get_field_index(column) < 0:
            raise _ColumnError(f"it has no column '{column}', or several (it has {', '.join(schema.names)})")
    dtype = schema.field(audio).type
    if not (_is_binary(dtype) or _is_audio(dtype)):
        raise _ColumnError(
            f"column '{audio}' is {dtype}, not the bytes of audio files: give another as dataset.audio_column"
        )
    if "\0" in audio:
        raise _ColumnError("the name of its audio column holds a NUL character")


def _is_audio(dtype: pa.DataType) -> bool:
    return pa.types.is_struct(dtype) and dtype.get_field_index("bytes") >= 0 and _is_binary(dtype.field("bytes").type)


def _is_binary(dtype: pa.DataType) -> bool:
    return bool(pa.types.is_binary(dtype) or pa.types.is_large_binary(dtype))


def _leaf_bytes(group: pq.RowGroupMetaData, leaf: str) -> int:
    """Return the uncompressed bytes of a leaf column in a row group."""
    columns = (group.column(number) for number in range(group.num_columns))
    return int(next((column.total_uncompressed_size for column in columns if column.path_in_schema == leaf), 0))


def _text(column: pa.ChunkedArray, name: str) -> list[str | None]:
    try:
        text: list[str | None] = column.cast(pa.string()).to_pylist()
    except pa.ArrowException as error:
        raise _ColumnError(f"column '{name}' is {column.type}, not text or numbers ({error})") from error
    return text


def _class_names(schema: pa.Schema, label: str) -> list[str] | None:
    """Return the names of a Hugging Face ``ClassLabel`` column; None for any other column."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features[label]["names"]
        return [str(name) for name in names] if isinstance(names, list) else None
    except (KeyError, ValueError, TypeError):
        return None


def _label(value: str | None, class_names: list[str] | None) -> str | None:
    """Return a label; the name of a ``ClassLabel``'s number, None for its −1."""
    if value is None:
        return None
    if class_names is None:
        return value.replace("\0", "\\x00")
    number = int(value) if value.lstrip("-").isdecimal() else -1
    return class_names[number] if 0 <= number < len(class_names) else None
