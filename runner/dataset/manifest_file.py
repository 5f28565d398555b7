"""The manifest that a CSV or Parquet file states: reads and checks its rows."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from runner.core.errors import ClipError, DatasetError
from runner.core.paths import is_url
from runner.dataset.clip_names import join_range
from runner.dataset.digests import digest_of
from runner.dataset.table import SCHEMA, Manifest, file_stats
from runner.storage.prefetch import fetch

if TYPE_CHECKING:
    from runner.config.schema import ManifestDataset

Columns = Mapping[str, pa.ChunkedArray]
"""The columns ``path``, and where the file has them ``start``, ``end`` and ``label``, as text."""


@dataclass(frozen=True)
class _Files:
    """The clips' files: the data set's root, each file's name below it, its path or URL, and its size and time."""

    root: Path | str
    names: list[str]
    paths: list[str]
    stats: list[tuple[int, int]]


def read_manifest_file(dataset: ManifestDataset) -> Manifest:
    """Read the manifest that ``dataset.path`` states.

    Raises:
        DatasetError: the file can't be read, or has a bad row; the message names file and row.
    """
    try:
        return _read_rows(dataset)
    except UnicodeDecodeError as error:
        raise DatasetError(f"{dataset.path} holds text that is not UTF-8 ({error}): convert it") from error


def _read_rows(dataset: ManifestDataset) -> Manifest:
    path = str(dataset.path)
    file = path if is_url(path) else Path(path).expanduser().resolve()
    columns = _read_columns(file, dataset.download_timeout_s)
    paths = columns["path"].to_pylist()
    starts, ends = _seconds(file, columns, "start"), _seconds(file, columns, "end")
    _check_rows(file, paths, starts, ends)
    _check_labels(file, columns)
    files = _objects(file, paths, dataset) if is_url(dataset.root or path) else _local_files(file, paths, dataset)
    clips = [join_range(*row) for row in zip(files.names, starts, ends, strict=True)]
    _check_unique(file, clips)
    table = pa.table(
        {
            "clip": pa.array(clips, pa.string()),
            "path": pa.array(map(os.fsencode, files.paths), pa.binary(), size=len(clips)),
            "start": pa.array(starts, pa.float64()),
            "end": pa.array(ends, pa.float64()),
            "label": columns["label"] if "label" in columns else pa.nulls(len(clips), pa.string()),
            "bytes": pa.array([size for size, _ in files.stats], pa.int64()),
            "mtime_ns": pa.array([mtime_ns for _, mtime_ns in files.stats], pa.int64()),
        },
        schema=SCHEMA,
    )
    return Manifest(str(files.root), table, digest_of(table), False, f"{len(clips):,} clips of {file}")


def _objects(file: Path | str, paths: Sequence[str], dataset: ManifestDataset) -> _Files:
    """Return the objects of paths below a URL; their sizes are unknown, as each would need a request."""
    root = (dataset.root or str(dataset.path).rpartition("/")[0]).rstrip("/")
    if not dataset.allow_paths_outside_root:
        _check_below_url(file, root, paths)
    urls = [path if is_url(path) else f"{root}/{path.lstrip('/')}" for path in paths]
    return _Files(root, [_relative_to_root([f"{root}/"], url) for url in urls], urls, [(-1, -1)] * len(urls))


def _local_files(file: Path | str, paths: Sequence[str], dataset: ManifestDataset) -> _Files:
    root = Path(dataset.root).expanduser().resolve() if dataset.root else Path(file).parent
    written = Path(dataset.root or Path(str(dataset.path)).parent).expanduser().absolute()
    if not dataset.allow_paths_outside_root:
        _check_inside(file, root, written, paths)
    folders = [folder for folder in (root, written, Path(os.path.normpath(written))) if folder.resolve() == root]
    spellings = [os.path.join(folder, "") for folder in folders]
    names = [_relative_to_root(spellings, _normalize(root, path)) for path in paths]
    absolute = [os.path.join(root, name) for name in names]
    return _Files(root, names, absolute, file_stats(absolute))


def _read_columns(file: Path | str, timeout_s: float) -> Columns:
    if isinstance(file, Path):
        return _parse_columns(file, file)
    try:
        with fetch(file, timeout_s) as fetched:
            return _parse_columns(file, fetched.path)
    except ClipError as error:
        raise DatasetError(f"dataset.path={file} can't be read ({error.reason}: {error.detail}): check it") from error


def _parse_columns(file: Path | str, content: Path | str) -> Columns:
    """Return the columns of a manifest file, whose content is at ``content``."""
    import pyarrow.csv
    import pyarrow.parquet

    try:
        if str(file).lower().endswith((".parquet", ".pq")):
            table = pyarrow.parquet.read_table(content)
        else:
            convert = pyarrow.csv.ConvertOptions(
                column_types={"path": pa.string(), "label": pa.string(), "start": pa.string(), "end": pa.string()},
                strings_can_be_null=True,
                null_values=[""],
            )
            parse = pyarrow.csv.ParseOptions(newlines_in_values=True)
            table = pyarrow.csv.read_csv(content, convert_options=convert, parse_options=parse)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DatasetError(
            f"{file} can't be read as a manifest ({error}): give a CSV (UTF-8) or Parquet file"
        ) from error
    names = table.column_names
    if "path" not in names:
        raise DatasetError(f"{file} has no column 'path' (it has {', '.join(names)}): name it so")
    if not table.num_rows:
        raise DatasetError(f"{file} has no rows: give at least one clip")
    return {name: _text(file, table, name) for name in ("path", "start", "end", "label") if name in names}


def _text(file: Path | str, table: pa.Table, name: str) -> pa.ChunkedArray:
    """Return a column as text, whatever its type in a Parquet file."""
    if table.column_names.count(name) > 1:
        raise DatasetError(f"{file} has several columns '{name}': leave one")
    try:
        return table[name].cast(pa.string())
    except pa.ArrowException as error:
        raise DatasetError(
            f"{file}, column '{name}' is of type {table[name].type}, not text or a number ({error}): convert it"
        ) from error


def _seconds(file: Path | str, columns: Columns, name: str) -> list[float | None]:
    """Return a column of times in seconds; None where the column is missing or the cell empty."""
    if name not in columns:
        return [None] * len(columns["path"])
    seconds: list[float | None] = []
    for row, value in enumerate(columns[name].to_pylist(), start=1):
        try:
            number = None if value is None else float(value)
        except ValueError:
            number = float("nan")
        if number is not None and not (np.isfinite(number) and number >= 0):
            raise DatasetError(f"{file}, row {row}: {name}={value} is not a time: give seconds, 0 or more")
        seconds.append(number)
    return seconds


def _check_rows(
    file: Path | str, paths: Sequence[Any], starts: Sequence[float | None], ends: Sequence[float | None]
) -> None:
    for row, (path, start, end) in enumerate(zip(paths, starts, ends, strict=True), start=1):
        if not path:
            raise DatasetError(f"{file}, row {row}: path is empty: give the clip's file")
        if end is not None and end <= (start or 0.0):
            raise DatasetError(f"{file}, row {row}: end={end} is not after start={start or 0.0}: give end > start")


def _check_labels(file: Path | str, columns: Columns) -> None:
    row = pc.index(pc.match_substring(columns["label"], "\0"), True).as_py() if "label" in columns else -1
    if row >= 0:
        raise DatasetError(f"{file}, row {row + 1}: its label holds a NUL character: remove it")


def _check_inside(file: Path | str, root: Path, written: Path, paths: Sequence[str]) -> None:
    """Check that no path is outside of the root by its spelling; links inside it may lead anywhere."""
    inside = tuple(os.path.join(folder, "") for folder in {str(root), str(written)})
    for row, path in enumerate(paths, start=1):
        if not os.path.normpath(os.path.join(root, path)).startswith(inside):
            raise _outside_root(file, row, path, root)


def _check_below_url(file: Path | str, root: str, paths: Sequence[str]) -> None:
    """Check that no path is outside of the root's prefix."""
    for row, path in enumerate(paths, start=1):
        if (is_url(path) and not path.startswith(f"{root}/")) or ".." in path.split("/"):
            raise _outside_root(file, row, path, root)


def _outside_root(file: Path | str, row: int, path: str, root: Path | str) -> DatasetError:
    return DatasetError(
        f"{file}, row {row}: {path} is outside of the data set's root {root}: choose another dataset.root, "
        "or set dataset.allow_paths_outside_root=true"
    )


def _check_unique(file: Path | str, clips: Sequence[str]) -> None:
    if len(set(clips)) == len(clips):
        return
    first: dict[str, int] = {}
    for row, clip in enumerate(clips, start=1):
        if clip in first:
            raise DatasetError(f"{file}, row {row}: {clip} is in row {first[clip]} already: remove one of them")
        first[clip] = row


def _normalize(root: Path, path: str) -> str:
    """Normalize ``./a``, ``b//a`` and ``b/../a``; ``..`` after a link is kept, as it leads elsewhere."""
    if "//" not in path and "./" not in path:
        return path
    parts = [part for part in path.split("/") if part not in ("", ".")]
    spelled = "/" * path.startswith("/") + "/".join(parts)
    if ".." not in parts:
        return spelled
    plain = os.path.normpath(spelled)
    folders = (os.path.join(root, os.path.dirname(spelling)) for spelling in (spelled, plain))
    return plain if len({os.path.realpath(folder) for folder in folders}) == 1 else spelled


def _relative_to_root(spellings: Sequence[str], path: str) -> str:
    """Return a path relative to the root, which absolute paths may spell in several ways (links on the way to it)."""
    spelling = next((spelling for spelling in spellings if path.startswith(spelling)), "")
    return path[len(spelling) :].replace(os.sep, "/")
