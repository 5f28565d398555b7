"""Files that are there whole or not at all: written to a temporary name, flushed to disk, renamed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """The temporary name to write to; at the end it is flushed and becomes ``path``."""
    temporary = path.with_name(f".{path.name}.tmp")
    yield temporary
    commit(temporary, path)


def commit(temporary: Path, path: Path) -> None:
    """Flush what was written to ``temporary`` and give it its name."""
    flush(temporary)
    temporary.replace(path)
    flush_folder(path.parent)


def write_atomic(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def flush(path: Path) -> None:
    """Have a file's bytes on disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """Have a folder's names on disk."""
    if os.name == "nt":  # Windows cannot open a folder to flush it
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
