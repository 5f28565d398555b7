"""Read the embeddings of a run in either of its float32 formats: Parquet, else npz; a folder or a URL."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from runner.core.errors import RunnerError
from runner.core.layout import RunLayout
from runner.core.paths import as_path, is_url
from runner.output.reader import Block, EmbeddingReader
from runner.storage.filesystem import open_store
from runner.storage.retry import with_retries

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_TIMEOUT_S = 60.0


def has_embeddings(location: str) -> bool:
    """Whether a run has float32 embeddings (TFRecords have 8-bit ones)."""
    files, root = _open(location)
    return any(
        _list(files, f"{root}/{folder}", suffix)
        for folder, suffix in ((RunLayout.embeddings, ".parquet"), (RunLayout.npz, ".npz"))
    )


def read_blocks(location: str, columns: Sequence[str] = ("clip", "start_s", "label")) -> Iterator[Block]:
    """Yield the embeddings of a run in blocks: a row group of Parquet, or a clip's npz file.

    Args:
        location: the run's folder or URL.
        columns: of ``clip``, ``start_s`` and ``label``, those that each block has.

    Raises:
        RunnerError: the run has neither format, or a file is not as a run writes it.
    """
    files, root = _open(location)
    archives = _list(files, f"{root}/{RunLayout.npz}", ".npz")
    if not archives or _list(files, f"{root}/{RunLayout.embeddings}", ".parquet"):
        yield from EmbeddingReader(location).blocks(columns)
        return
    first = 0
    for path in archives:
        block = _read_archive(files, path, columns, first)
        first += len(block)
        yield block


def frontend_speed(location: str) -> float:
    """Return a run's ``frontend.speed``: seconds in a file for each second of audio that the model heard.

    Raises:
        RunnerError: the run can't be read.
    """
    files, root = _open(location)
    try:
        metadata = json.loads(with_retries(lambda: files.cat_file(f"{root}/{RunLayout.npz_metadata}"), _TIMEOUT_S))
    except FileNotFoundError:
        return EmbeddingReader(location).speed
    return float(metadata.get("frontend.speed", 1))


def _read_archive(files: AbstractFileSystem, path: str, columns: Sequence[str], first: int) -> Block:
    try:
        content = with_retries(lambda: files.cat_file(path), _TIMEOUT_S)
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            embeddings = archive["embedding"]
            arrays = {column: archive[column] for column in columns}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise RunnerError(f"{path} can't be read ({error}): rerun the run's command, which makes it again") from error
    count = len(embeddings)
    values = {
        name: pa.array(array) if array.ndim else pa.repeat(pa.scalar(str(array) or None, pa.string()), count)
        for name, array in arrays.items()
    }
    return Block(first, pa.table(values), embeddings)


def _open(location: str) -> tuple[AbstractFileSystem, str]:
    if is_url(location):
        return open_store("RUN", location.rstrip("/"))
    import fsspec

    return fsspec.filesystem("file"), as_path(location).rstrip("/")


def _list(files: AbstractFileSystem, folder: str, suffix: str) -> list[str]:
    """Return the sorted paths of the files below a folder; none if there is no such folder."""
    try:
        paths: list[str] = with_retries(lambda: files.find(folder), _TIMEOUT_S)
    except FileNotFoundError:
        return []
    return sorted(path for path in paths if path.endswith(suffix))
