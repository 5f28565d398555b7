"""Read the embeddings of a run in either of its float32 formats: Parquet, else npz; a folder or a URL."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from runner.core.errors import RunnerError
from runner.core.layout import RunLayout
from runner.core.paths import as_path, is_url
from runner.core.readable import json_object
from runner.output.reader import Block, EmbeddingReader
from runner.output.run_model import METADATA_PREFIX, RunModel
from runner.storage.filesystem import open_store
from runner.storage.retry import with_retries

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_TIMEOUT_S = 60.0


def has_embeddings(location: str) -> bool:
    """Whether a run has embeddings in either format (TFRecords are not read)."""
    files, root = _open(location)
    return any(
        _list(files, f"{root}/{folder}", suffix)
        for folder, suffix in ((RunLayout.embeddings, ".parquet"), (RunLayout.npz, ".npz"))
    )


def read_blocks(
    location: str, columns: Sequence[str] = ("clip", "start_s", "label"), output: str | None = None
) -> Iterator[Block]:
    """Yield the embeddings of a run in blocks: a row group of Parquet, or a clip's npz file.

    Args:
        location: the run's folder or URL.
        columns: of ``clip``, ``start_s`` and ``label``, those that each block has.
        output: of the run's model; None for the first.

    Raises:
        RunnerError: the run has neither format, its model no such output, or a file is not as a run writes it.
    """
    files, root = _open(location)
    archives = _list(files, f"{root}/{RunLayout.npz}", ".npz")
    if not archives or _list(files, f"{root}/{RunLayout.embeddings}", ".parquet"):
        yield from EmbeddingReader(location, output).blocks(columns)
        return
    name, first = RunModel.from_metadata(read_metadata(location)).output(output, location).name, 0
    for path in archives:
        block = _read_archive(files, path, (name, *columns), first)
        first += len(block)
        yield block


def read_metadata(location: str) -> dict[str, str]:
    """Return the metadata of a run's files, without the prefix of their keys; empty of npz files by themselves.

    Raises:
        RunnerError: the run can't be read.
    """
    files, root = _open(location)
    if _list(files, f"{root}/{RunLayout.embeddings}", ".parquet"):
        return {key.removeprefix(METADATA_PREFIX): value for key, value in EmbeddingReader(location).metadata.items()}
    try:
        content = with_retries(lambda: files.cat_file(f"{root}/{RunLayout.npz_metadata}"), _TIMEOUT_S)
    except FileNotFoundError:
        return {}
    try:
        return {key: str(value) for key, value in json_object(content).items()}
    except ValueError as error:
        raise RunnerError(
            f"{location}/{RunLayout.npz_metadata} can't be read ({error}): rerun the run's command"
        ) from error


def _read_archive(files: AbstractFileSystem, path: str, names: Sequence[str], first: int) -> Block:
    """Read an array of embeddings, the first of ``names``, and columns."""
    try:
        content = with_retries(lambda: files.cat_file(path), _TIMEOUT_S)
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            embeddings, *columns = (archive[name] for name in names)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise RunnerError(f"{path} can't be read ({error}): rerun the run's command, which makes it again") from error
    count = len(embeddings)
    values = {
        name: pa.array(array) if array.ndim else pa.repeat(pa.scalar(str(array) or None, pa.string()), count)
        for name, array in zip(names[1:], columns, strict=True)
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
