"""Runs in folders and below URLs, read alike: small files, listings, and embeddings block by block."""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from runner.core.errors import RunnerError
from runner.core.layout import RunLayout
from runner.output.reader import EmbeddingReader
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


class Place(Protocol):
    """Where a run, a sweep or several of them lie.  Names are relative to it."""

    name: str
    """What a person is told of it."""

    def read(self, name: str) -> bytes | None:
        """Return a small file's content; None where there is none."""
        ...

    def folders(self) -> list[str]:
        """Return the names of the folders right below it."""
        ...

    def files(self, folder: str) -> list[str]:
        """Return the names of all files below a folder, in order."""
        ...

    def below(self, folder: str) -> Place:
        """Return the place of a folder below it."""
        ...

    def local(self, name: str) -> AbstractContextManager[Path]:
        """Have a file on this machine while it is read."""
        ...


class FolderPlace:
    """A folder.

    Args:
        folder: its path.
    """

    def __init__(self, folder: Path) -> None:
        self.name = str(folder)
        self.folder = folder

    def read(self, name: str) -> bytes | None:
        """See ``Place``, as of all below."""
        path = self.folder / name
        return path.read_bytes() if path.is_file() else None

    def folders(self) -> list[str]:
        """By a listing, hidden ones left out."""
        return sorted(path.name for path in self.folder.iterdir() if path.is_dir() and not path.name.startswith("."))

    def files(self, folder: str) -> list[str]:
        """By a listing."""
        paths = (path for path in (self.folder / folder).rglob("*") if path.is_file())
        return sorted(path.relative_to(self.folder).as_posix() for path in paths)

    def below(self, folder: str) -> FolderPlace:
        """The folder's own."""
        return FolderPlace(self.folder / folder)

    @contextmanager
    def local(self, name: str) -> Iterator[Path]:
        """The file itself."""
        yield self.folder / name


class UrlPlace:
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
        """See ``Place``, as of all below."""
        return self._store.read(name)

    def folders(self) -> list[str]:
        """By a listing."""
        return sorted(
            name for name, size in self._store.list_folder().items() if size is None and not name.startswith(".")
        )

    def files(self, folder: str) -> list[str]:
        """By a listing."""
        return sorted(self._store.list_recursive(folder))

    def below(self, folder: str) -> UrlPlace:
        """The folder's own."""
        return UrlPlace(f"{self.name}/{folder}", self._timeout_s)

    @contextmanager
    def local(self, name: str) -> Iterator[Path]:
        """A copy, which is removed afterwards."""
        with tempfile.TemporaryDirectory(prefix="vggish-read-") as scratch:
            path = Path(scratch) / Path(name).name
            self._store.get(name, path)
            yield path


def has_rows(place: Place) -> bool:
    """Whether a run has its embeddings as float32 (TFRecords have 8-bit ones)."""
    return bool(_files(place, RunLayout.embeddings, ".parquet") or _files(place, RunLayout.npz, ".npz"))


def run_rows(place: Place) -> Iterator[RowBlock]:
    """Read a run's embeddings, of Parquet or npz.

    Raises:
        RunnerError: a file is not what a run writes.
    """
    if _files(place, RunLayout.embeddings, ".parquet"):
        for block in EmbeddingReader(place.name).blocks(("clip",)):
            names = block.columns["clip"].to_numpy()
            ends = np.flatnonzero(np.append(names[1:] != names[:-1], True)) + 1
            yield RowBlock(names[ends - 1].tolist(), ends, block.embeddings)
        return
    for name in _files(place, RunLayout.npz, ".npz"):
        with place.local(name) as path:
            try:
                with np.load(path, allow_pickle=False) as file:
                    rows, clip = file["embedding"], str(file["clip"])
            except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
                raise RunnerError(
                    f"{place.name}/{name} can't be read ({error}): rerun the run's command, which makes it again"
                ) from error
        yield RowBlock([clip], np.array([len(rows)]), rows)


def _files(place: Place, folder: str, suffix: str) -> list[str]:
    return [name for name in place.files(folder) if name.endswith(suffix)]
