"""Runs in folders and below URLs, read alike: small files, folders, and embeddings block by block."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from runner.output.run_blocks import read_blocks
from runner.statistics.moments import Rows


@dataclass(frozen=True)
class RowBlock:
    """Embeddings in their order.

    ``clips`` are the names of the clips in the block; ``ends`` int64 [clips] is one past the last row of each, and
    ``rows`` are float32 [n, size].  A clip that begins in one block may go on in the next.
    """

    clips: list[str]
    ends: NDArray[np.int64]
    rows: Rows


class Location(Protocol):
    """Where a run, a sweep or several of them lie.  Names are relative to it."""

    name: str
    """What a person is told of it."""

    def read(self, name: str) -> bytes | None:
        """Return a small file's content; None where there is none."""
        ...

    def folders(self) -> list[str]:
        """Return the names of the folders right below it."""
        ...

    def below(self, folder: str) -> Location:
        """Return the location of a folder below it."""
        ...


class FolderLocation:
    """A folder.

    Args:
        folder: its path.
    """

    def __init__(self, folder: Path) -> None:
        self.name = str(folder)
        self.folder = folder

    def read(self, name: str) -> bytes | None:
        """See ``Location``, as of all below."""
        path = self.folder / name
        return path.read_bytes() if path.is_file() else None

    def folders(self) -> list[str]:
        """By a listing, hidden ones left out."""
        return sorted(path.name for path in self.folder.iterdir() if path.is_dir() and not path.name.startswith("."))

    def below(self, folder: str) -> FolderLocation:
        """The folder's own."""
        return FolderLocation(self.folder / folder)


class UrlLocation:
    """A folder of an object store.

    Args:
        url: its address.
        timeout_s: how long an object may take, with all attempts.
    """

    def __init__(self, url: str, timeout_s: float) -> None:
        from runner.storage.object_store import ObjectStore

        self._store, self._timeout_s = ObjectStore(url, timeout_s, "the address"), timeout_s
        self.name = self._store.url

    def read(self, name: str) -> bytes | None:
        """See ``Location``, as of all below."""
        return self._store.read(name)

    def folders(self) -> list[str]:
        """By a listing."""
        return sorted(
            name for name, size in self._store.list_folder().items() if size is None and not name.startswith(".")
        )

    def below(self, folder: str) -> UrlLocation:
        """The folder's own."""
        return UrlLocation(f"{self.name}/{folder}", self._timeout_s)


def run_rows(location: Location, output: str | None = None) -> Iterator[RowBlock]:
    """Read a run's embeddings, of Parquet or npz; ``output`` is the model's, None for the first.

    Raises:
        RunnerError: the model has no such output, or a file is not what a run writes.
    """
    for block in read_blocks(location.name, ("clip",), output):
        yield RowBlock(*block.clip_ends(), block.embeddings)
