"""Files that are there whole or not at all: written to a temporary name, flushed to disk, renamed.

A name is on disk once its folder was flushed, and that folder's name once the folder above was, and so on up: what is
to survive a loss of power goes into folders that ``make_folder`` made.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NO_FOLDERS = (errno.EACCES, errno.EPERM, errno.EINVAL, errno.EBADF)
"""How systems say that a folder can't be flushed, or not by us: PostgreSQL goes on with these, too."""

_MOST_KNOWN = 10_000

_on_disk: set[Path] = set()
"""Folders whose names this process has flushed."""

_making = threading.Lock()


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """The temporary name to write to; at the end it is flushed and becomes ``path``, after an error it is removed."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        commit(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def commit(temporary: Path, path: Path) -> None:
    """Flush what was written to ``temporary`` and give it its name."""
    flush(temporary)
    temporary.replace(path)
    flush_folder(path.parent)


def write_atomic(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def make_folder(path: Path) -> None:
    """Make a folder, and those above it that are missing, and have all their names on disk.

    A folder that is there already is flushed as well, once a process: who made it may have been killed before that.
    """
    with _making:  # who finds a folder must find it on disk
        _make_folder(path.absolute())


def _make_folder(path: Path) -> None:
    if path == path.parent or (path in _on_disk and path.is_dir()):
        return
    _make_folder(path.parent)
    path.mkdir(exist_ok=True)
    flush_folder(path.parent)
    if len(_on_disk) >= _MOST_KNOWN:
        _on_disk.clear()
    _on_disk.add(path)


def remove(path: Path) -> None:
    """Remove a file, if it is there, for good."""
    path.unlink(missing_ok=True)
    flush_folder(path.parent)


def commit_folder(building: Path, folder: Path) -> None:
    """Flush a folder with all that is in it, and give it its name, which must be free or an empty folder's."""
    for above, _, names in os.walk(building):
        for name in names:
            flush(Path(above, name))
        flush_folder(Path(above))
    building.replace(folder)
    flush_folder(folder.parent)


def flush(path: Path) -> None:
    """Have a file's bytes on disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """Have a folder's names on disk, where the system can do that for folders."""
    if os.name == "nt":  # Windows cannot open a folder to flush it
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDERS:
            raise
