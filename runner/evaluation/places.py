"""Runs in folders and below URLs, read alike: small files, listings, and embeddings block by block."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from runner.core.errors import RunnerError
from runner.core.layout import RunLayout
from runner.output.state.journal import read_journal
from runner.statistics.moments import Rows

_BATCH_ROWS = 65_536
"""Embeddings that are read at a time: 32 MiB."""


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
        """Of shards that the journal has, where there is a journal: a killed run may have left others."""
        committed = self._committed
        paths = (path for path in (self.folder / folder).rglob("*") if path.is_file())
        names = sorted(path.relative_to(self.folder).as_posix() for path in paths)
        return [name for name in names if committed is None or name in committed or not _is_shard(name)]

    @cached_property
    def _committed(self) -> set[str] | None:
        journal = RunLayout(self.folder).journal
        if not journal.exists():
            return None
        return {name for entry in read_journal(journal)[0].values() for name in entry.files}

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
        from runner.storage.object_store import Store

        self._store, self._timeout_s = Store(url, timeout_s, "the address"), timeout_s
        self.name = self._store.url

    def read(self, name: str) -> bytes | None:
        """See ``Place``, as of all below."""
        return self._store.read(name)

    def folders(self) -> list[str]:
        """By a listing."""
        return sorted(name for name, size in self._store.top().items() if size is None and not name.startswith("."))

    def files(self, folder: str) -> list[str]:
        """By a listing."""
        return sorted(self._store.sizes(folder))

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
    return bool(_row_files(place))


def run_rows(place: Place) -> Iterator[RowBlock]:
    """Read a run's embeddings, Parquet or npz, a file at a time.

    Raises:
        RunnerError: a file is not what a run writes.
    """
    for name in _row_files(place):
        with place.local(name) as path:
            try:
                yield from parquet_rows(path) if name.endswith(".parquet") else npz_rows(path)
            except (OSError, ValueError, KeyError) as error:  # pyarrow's are among them
                raise RunnerError(
                    f"{place.name}/{name} can't be read ({error}): rerun the run's command, which makes damaged files "
                    "again"
                ) from error


def _row_files(place: Place) -> list[str]:
    for folder, suffix in ((RunLayout.embeddings, ".parquet"), (RunLayout.npz, ".npz")):
        if names := [name for name in place.files(folder) if name.endswith(suffix)]:
            return names
    return []


def _is_shard(name: str) -> bool:
    return name.startswith((f"{RunLayout.embeddings}/", f"{RunLayout.tfrecord}/"))


def parquet_rows(path: Path) -> Iterator[RowBlock]:
    """Read the embeddings of a Parquet file; raises pyarrow's errors."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(_BATCH_ROWS, columns=["clip", "embedding"]):
            if not batch.num_rows:
                continue
            column = batch.column("embedding")
            rows = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, column.type.list_size)
            names = batch.column("clip").to_numpy(zero_copy_only=False)
            ends = np.flatnonzero(np.append(names[1:] != names[:-1], True)) + 1
            yield RowBlock(names[ends - 1].tolist(), ends, rows)


def npz_rows(path: Path) -> Iterator[RowBlock]:
    """Read the embeddings of a clip's npz; raises numpy's errors."""
    with np.load(path, allow_pickle=False) as file:
        rows = file["embedding"]
        yield RowBlock([str(file["clip"])], np.array([len(rows)]), rows)
