"""Atomic files: complete or absent, and on disk (fsync) once written.

A file survives a loss of power once its bytes and its folder are flushed, and every folder above that was made for it.
``make_folder`` therefore makes all folders whose files have to survive.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeGuard

_FOLDER_FLUSH_UNSUPPORTED = (errno.EACCES, errno.EPERM, errno.EINVAL, errno.EBADF)
"""Errors by which systems refuse to flush a folder; PostgreSQL ignores the same ones."""

_MAX_FLUSHED = 10_000

_HASH_BLOCK = 1 << 20

_flushed: set[Path] = set()
"""Folders whose entries in their parents this process has flushed."""

_folders_lock = threading.Lock()


class FileDigest(NamedTuple):
    """Size and content of a file: bytes, and SHA-256 in hexadecimal; in JSON it is a list of the two."""

    bytes: int
    sha256: str


def digest_file(path: Path) -> FileDigest:
    """Return a file's size and SHA-256.

    Raises:
        OSError: the file can't be read.
    """
    sha256, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(_HASH_BLOCK):
            sha256.update(block)
            size += len(block)
    return FileDigest(size, sha256.hexdigest())


def is_disk_full(error: BaseException) -> TypeGuard[OSError]:
    """Return whether a disk of this machine is full, or the user's quota on it."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))


@contextmanager
def atomic(path: Path, *, shared: bool = False) -> Iterator[Path]:
    """Yield a temporary path to write to; it replaces ``path`` on success and is removed after an error.

    Args:
        path: of the file.
        shared: whether other processes may be writing the file too: the last one's stays.
    """
    temporary = path.with_name(f".{path.name}{f'.{os.getpid()}' if shared else ''}.tmp")
    try:
        yield temporary
        commit(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def commit(temporary: Path, path: Path) -> None:
    """Flush a complete temporary file and rename it to ``path``."""
    flush(temporary)
    temporary.replace(path)
    flush_folder(path.parent)


def write_atomic(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_shared(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically that other processes may be writing too: the last one's stays."""
    with atomic(path, shared=True) as temporary:
        temporary.write_text(text, encoding="utf-8")


def make_folder(path: Path) -> None:
    """Make a folder with its missing parents, and flush all their names.

    An existing folder is flushed as well, once per process: the process that made it may have been killed before that.
    """
    with _folders_lock:  # another thread must not return before the flush
        _make_folder(path.absolute())


def _make_folder(path: Path) -> None:
    if path == path.parent or (path in _flushed and path.is_dir()):
        return
    _make_folder(path.parent)
    path.mkdir(exist_ok=True)
    flush_folder(path.parent)
    if len(_flushed) >= _MAX_FLUSHED:
        _flushed.clear()
    _flushed.add(path)


def remove(path: Path) -> None:
    """Remove a file, if it exists, and flush its folder."""
    path.unlink(missing_ok=True)
    flush_folder(path.parent)


def commit_folder(temporary: Path, folder: Path) -> None:
    """Flush a folder with everything in it and rename it to ``folder``, which must be absent or empty."""
    for parent, _, names in os.walk(temporary):
        for name in names:
            flush(Path(parent, name))
        flush_folder(Path(parent))
    temporary.replace(folder)
    flush_folder(folder.parent)


def flush(path: Path) -> None:
    """Flush a file's bytes to disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """Flush a folder's entries to disk, on systems that can."""
    if os.name == "nt":  # Windows cannot open a folder to flush it
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _FOLDER_FLUSH_UNSUPPORTED:
            raise
