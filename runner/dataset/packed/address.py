"""Clips that lie in containers: what the manifest's ``path`` says of a member of a tar, or a row of a Parquet file.

Such an address is the container's path or URL, a NUL, which no path holds, and where the clip lies in it.  It ends in
the clip's own suffix, as a path does.  ``check`` is of the bytes that say what lies there (a member's header, a Parquet
file's footer): of a container that was replaced since it was listed nothing is read under another clip's name.
"""

from __future__ import annotations

import os
import stat
from typing import NamedTuple

from runner.core.errors import ClipError

_NUL = b"\0"

_TAR, _PARQUET, _UNREAD = b"tar", b"parquet", b"unread"


class TarMember(NamedTuple):
    """The bytes of a member: ``offset`` is theirs, ``check`` the CRC-32 of the 512 bytes before them."""

    container: bytes
    offset: int
    size: int
    check: int
    suffix: str


class ParquetRow(NamedTuple):
    """A row of a column: ``group`` and ``row`` count from 0, ``row`` in its group; ``check`` is the footer's CRC-32."""

    container: bytes
    column: str
    group: int
    row: int
    check: int
    suffix: str


class Unread(NamedTuple):
    """What a container does not give, with the reason that its clip is skipped for."""

    container: bytes
    reason: str
    detail: str


Place = TarMember | ParquetRow | Unread


def is_packed(path: bytes) -> bool:
    """Whether a clip's path is an address in a container."""
    return _NUL in path


def container_of(path: bytes) -> bytes:
    """The path or URL of the file that a clip is in: the clip's own, where that is no container."""
    return path.partition(_NUL)[0]


def group_of(path: bytes) -> bytes | None:
    """What is the same for all rows of a Parquet file's row group, which is read at once; None for all else."""
    parts = path.split(_NUL, 4)
    return _NUL.join(parts[:4]) if len(parts) == 5 and parts[1] == _PARQUET else None


def address(place: Place) -> bytes:
    """A clip's path in the manifest."""
    return place.container + tail(place)


def tail(place: Place) -> bytes:
    """What of an address comes behind the container."""
    match place:
        case TarMember():
            fields: tuple[object, ...] = (place.offset, place.size, place.check, place.suffix)
            kind = _TAR
        case ParquetRow():
            fields = (place.column, place.group, place.row, place.check, place.suffix)
            kind = _PARQUET
        case Unread():
            fields, kind = (place.reason, place.detail.replace("\0", " ")), _UNREAD
    return _NUL + _NUL.join((kind, *(os.fsencode(str(field)) for field in fields)))


def place_of_clip(path: bytes) -> Place:
    """Where a clip lies, by its address."""
    container, kind, *fields = path.split(_NUL)
    text = [os.fsdecode(field) for field in fields]
    if kind == _TAR:
        return TarMember(container, int(text[0]), int(text[1]), int(text[2]), text[3])
    if kind == _PARQUET:
        return ParquetRow(container, text[0], int(text[1]), int(text[2]), int(text[3]), text[4])
    return Unread(container, *text)


def open_container(place: bytes) -> int:
    """A descriptor of a container on a file system; a pipe's writer is not waited for.

    Raises:
        ClipError: it can't be opened, or is no file.
    """
    flags = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(place, flags)
    except FileNotFoundError as error:
        raise ClipError("missing", f"no such file: {os.fsdecode(place)}") from error
    except OSError as error:
        raise ClipError("unreadable", str(error)) from error
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise ClipError("not_a_file", f"{os.fsdecode(place)}: {stat.filemode(mode)}")
    return descriptor
