"""Addresses of clips in containers: a member of a tar, or a row of a Parquet file, as the ``path`` of a manifest.

An address is the container's path or URL, a NUL, which no path holds, and the clip's location in the container.  It
ends in the clip's own suffix, as a path does.  A checksum of the bytes that describe the clip (a member's header, a
Parquet file's footer) makes sure that nothing is read under a clip's name from a container that was replaced since it
was listed.
"""

from __future__ import annotations

import os
import stat
from typing import NamedTuple

from runner.core.errors import ClipError

_NUL = b"\0"

_TAR, _PARQUET, _UNREADABLE = b"tar", b"parquet", b"unread"


class TarMember(NamedTuple):
    """A member of a tar: ``offset`` and ``size`` of its bytes; ``crc32`` of its header, the 512 bytes before them."""

    container: bytes
    offset: int
    size: int
    crc32: int
    suffix: str


class ParquetRow(NamedTuple):
    """A row of a column: ``row`` in its row group, both from 0; ``crc32`` of the file's footer."""

    container: bytes
    column: str
    group: int
    row: int
    crc32: int
    suffix: str


class UnreadableClip(NamedTuple):
    """A clip that can't be read from its container, with the reason for which it is skipped."""

    container: bytes
    reason: str
    detail: str


ClipLocation = TarMember | ParquetRow | UnreadableClip


def is_packed(path: bytes) -> bool:
    """Return whether a clip's path is an address in a container."""
    return _NUL in path


def container_of(path: bytes) -> bytes:
    """Return the path or URL of a clip's container; of other clips their own."""
    return path.partition(_NUL)[0]


def group_of(path: bytes) -> bytes | None:
    """Return a key of a clip's row group in a Parquet file, which is read at once; None for other clips."""
    parts = path.split(_NUL, 4)
    return _NUL.join(parts[:4]) if len(parts) == 5 and parts[1] == _PARQUET else None


def to_address(location: ClipLocation) -> bytes:
    """Return a clip's path in the manifest."""
    return location.container + address_tail(location)


def address_tail(location: ClipLocation) -> bytes:
    """Return the part of an address after the container."""
    match location:
        case TarMember():
            kind = _TAR
            fields: tuple[object, ...] = (location.offset, location.size, location.crc32, location.suffix)
        case ParquetRow():
            kind = _PARQUET
            fields = (location.column, location.group, location.row, location.crc32, location.suffix)
        case UnreadableClip():
            kind, fields = _UNREADABLE, (location.reason, location.detail.replace("\0", " "))
    return _NUL + _NUL.join((kind, *(os.fsencode(str(field)) for field in fields)))


def parse_address(path: bytes) -> ClipLocation:
    """Return the location in a clip's address."""
    container, kind, *fields = path.split(_NUL)
    text = [os.fsdecode(field) for field in fields]
    if kind == _TAR:
        return TarMember(container, int(text[0]), int(text[1]), int(text[2]), text[3])
    if kind == _PARQUET:
        return ParquetRow(container, text[0], int(text[1]), int(text[2]), int(text[3]), text[4])
    return UnreadableClip(container, *text)


def open_container(path: bytes) -> int:
    """Open a container on a file system, without waiting for the writer of a pipe; return its descriptor.

    Raises:
        ClipError: it can't be opened, or is not a file.
    """
    flags = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags)
    except FileNotFoundError as error:
        raise ClipError("missing", f"no such file: {os.fsdecode(path)}") from error
    except OSError as error:
        raise ClipError("unreadable", str(error)) from error
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise ClipError("not_a_file", f"{os.fsdecode(path)}: {stat.filemode(mode)}")
    return descriptor
