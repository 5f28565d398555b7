"""What a Parquet file with audio in a column holds: rows of bytes, with names and labels from other columns.

Audio is a binary column, or a struct of ``bytes`` and ``path`` as Hugging Face's ``Audio`` has it.  Only the footer and
the columns of names and labels are read, so that a clip's size is the average of its row group.
"""

from __future__ import annotations

import json
import os
import zlib
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from runner.core.errors import ClipError
from runner.dataset.packed.address import ParquetRow, tail
from runner.dataset.packed.tar import Contents

_FOOTER_END = 8

_MAGIC = b"PAR1"

_MOST_FOOTER = 1 << 28


class _Unfit(Exception):
    """The file has not the columns that are asked for."""


def footer_check(file: IO[bytes], size: int) -> int:
    """The CRC-32 of a Parquet file's footer, which has the places and sizes of all that is in it.

    Raises:
        ValueError: it has none.
    """
    file.seek(max(0, size - _FOOTER_END))
    end = file.read(_FOOTER_END)
    length = int.from_bytes(end[:4], "little")
    if end[4:] != _MAGIC or not 0 < length <= min(size - _FOOTER_END, _MOST_FOOTER):
        raise ValueError("it has no footer: no Parquet file, or cut off")
    file.seek(size - _FOOTER_END - length)
    return zlib.crc32(file.read(length))


def leaf_of(column: str, schema: pa.Schema) -> str:
    """The leaf column that has a column's bytes."""
    return f"{column}.bytes" if pa.types.is_struct(schema.field(column).type) else column


def scan_parquet(
    file: IO[bytes], size: int, container: bytes, audio: str | None, name: str | None, label: str
) -> Contents:
    """List the rows of a Parquet file.

    Args:
        file: open.
        size: its bytes.
        container: what it is called in addresses.
        audio: the column; None: the only one that can be it.
        name: the column with the clips' names; None: the audio's own path, or the number of the row.
        label: the column with labels, if there is one.
    """
    found = Contents()
    try:
        check = footer_check(file, size)
        with pq.ParquetFile(file, pre_buffer=False) as parquet:
            _take(parquet, container, check, audio, name, label, found)
    except _Unfit as error:
        found.problem = "unsupported_format", str(error)
    except ClipError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        found.problem = "unsupported_format", f"it can't be read as Parquet ({error})"
    return found


def _take(
    parquet: pq.ParquetFile, container: bytes, check: int, audio: str | None, name: str | None, label: str, to: Contents
) -> None:
    schema = parquet.schema_arrow
    column = audio or _audio_column(schema)
    _check_columns(schema, column, name)
    leaf = leaf_of(column, schema)
    path = f"{column}.path" if leaf != column and schema.field(column).type.get_field_index("path") >= 0 else None
    has_label = schema.get_field_index(label) >= 0
    wanted = [each for each in (name or path, label if has_label else None) if each]
    classes = _class_names(schema, label)
    for group in range(parquet.num_row_groups):
        about = parquet.metadata.row_group(group)
        size = _leaf_size(about, leaf) // max(1, about.num_rows)
        table = parquet.read_row_group(group, columns=wanted, use_threads=False) if wanted else None
        names: list[Any] = [None] * about.num_rows
        labels: list[Any] = names
        if table is not None and name:
            names = _text(table[name], name)
        elif table is not None and path:
            names = table[column].combine_chunks().flatten()[0].cast(pa.string()).to_pylist() if about.num_rows else []
        if table is not None and has_label:
            labels = [_label(value, classes) for value in _text(table[label], label)]
        for row, (given, its_label) in enumerate(zip(names, labels, strict=True)):
            suffix = os.path.splitext(given or "")[1].lower()
            to.names.append(os.fsencode(given.replace("\0", "\\x00")) if given else None)
            to.tails.append(tail(ParquetRow(container, column, group, row, check, suffix)))
            to.sizes.append(size)
            to.labels.append(its_label)


def _audio_column(schema: pa.Schema) -> str:
    structs = [field.name for field in schema if pa.types.is_struct(field.type) and _is_audio(field.type)]
    binaries = [field.name for field in schema if _is_binary(field.type)]
    found = structs or binaries
    if len(found) != 1:
        which = (
            f"several columns may be audio ({', '.join(found)})" if found else "no column is binary, or bytes and path"
        )
        raise _Unfit(f"{which}: name one of {', '.join(schema.names)} as dataset.audio_column")
    return str(found[0])


def _check_columns(schema: pa.Schema, column: str, name: str | None) -> None:
    for each in (column, name):
        if each and schema.get_field_index(each) < 0:
            raise _Unfit(f"it has no column '{each}', or several (it has {', '.join(schema.names)})")
    kind = schema.field(column).type
    if not (_is_binary(kind) or _is_audio(kind)):
        raise _Unfit(
            f"column '{column}' is {kind}, not the bytes of audio files: name another one as dataset.audio_column"
        )
    if "\0" in column:
        raise _Unfit("the name of its audio column holds a NUL character")


def _is_audio(kind: pa.DataType) -> bool:
    return pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 and _is_binary(kind.field("bytes").type)


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _leaf_size(group: pq.RowGroupMetaData, leaf: str) -> int:
    columns = (group.column(number) for number in range(group.num_columns))
    return int(next((column.total_uncompressed_size for column in columns if column.path_in_schema == leaf), 0))


def _text(column: pa.ChunkedArray, name: str) -> list[str | None]:
    try:
        text: list[str | None] = column.cast(pa.string()).to_pylist()
    except pa.ArrowException as error:
        raise _Unfit(f"column '{name}' is no text or number but {column.type} ({error})") from error
    return text


def _class_names(schema: pa.Schema, label: str) -> list[str] | None:
    """What the numbers of a Hugging Face ``ClassLabel`` stand for."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features[label]["names"]
        return [str(name) for name in names] if isinstance(names, list) else None
    except (KeyError, ValueError, TypeError):
        return None


def _label(value: str | None, classes: list[str] | None) -> str | None:
    """A label; of a ``ClassLabel`` the name, and none for -1."""
    if value is None:
        return None
    if classes is None:
        return value.replace("\0", "\\x00")
    number = int(value) if value.lstrip("-").isdecimal() else -1
    return classes[number] if 0 <= number < len(classes) else None
