"""The manifest that a CSV or Parquet file states: reads and checks its rows."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from runner.core.errors import ClipError, DatasetError
from runner.core.paths import is_url
from runner.dataset.digests import digest_of
from runner.dataset.table import SCHEMA, Manifest, stamps
from runner.storage.prefetch import fetch

if TYPE_CHECKING:
    from runner.config.schema import ManifestDataset


def _from_file(dataset: ManifestDataset) -> Manifest:
    try:
        return _from_rows(dataset)
    except UnicodeDecodeError as error:
        raise DatasetError(f"{dataset.path} holds text that is not UTF-8 ({error}): convert it") from error


def _from_rows(dataset: ManifestDataset) -> Manifest:
    given_file = str(dataset.path)
    file = given_file if is_url(given_file) else Path(given_file).expanduser().resolve()
    columns = _read_columns(file, dataset.download_timeout_s)
    paths = columns["path"].to_pylist()
    starts, ends = _seconds(file, columns, "start"), _seconds(file, columns, "end")
    _check_rows(file, paths, starts, ends)
    _check_labels(file, columns)
    root: Path | str
    if is_url(dataset.root or given_file):
        root = (dataset.root or given_file.rpartition("/")[0]).rstrip("/")
        spellings = [f"{root}/"]
        if not dataset.allow_paths_outside_root:
            _check_below(file, root, paths)
        places = [path if is_url(path) else f"{root}/{path.lstrip('/')}" for path in paths]
        names = [_below(spellings, place) for place in places]
        known = [(-1, -1)] * len(paths)  # to ask for each would be a request a clip
    else:
        root = Path(dataset.root).expanduser().resolve() if dataset.root else Path(file).parent
        given = Path(dataset.root or Path(given_file).parent).expanduser().absolute()
        ways = (root, given, Path(os.path.normpath(given)))
        spellings = [os.path.join(folder, "") for folder in ways if folder.resolve() == root]
        if not dataset.allow_paths_outside_root:
            _check_inside(file, root, given, paths)
        names = [_below(spellings, _normal(root, path)) for path in paths]
        places = [os.path.join(root, name) for name in names]
        known = stamps(places)
    clips = [
        name + (f"#t={_format_seconds(start)},{_format_seconds(end)}" if start is not None or end is not None else "")
        for name, start, end in zip(names, starts, ends, strict=True)
    ]
    _check_unique(file, clips)
    table = pa.table(
        {
            "clip": pa.array(clips, pa.string()),
            "path": pa.array(map(os.fsencode, places), pa.binary(), size=len(places)),
            "start": pa.array(starts, pa.float64()),
            "end": pa.array(ends, pa.float64()),
            "label": columns["label"] if "label" in columns else pa.nulls(len(clips), pa.string()),
            "bytes": pa.array([size for size, _ in known], pa.int64()),
            "mtime_ns": pa.array([mtime_ns for _, mtime_ns in known], pa.int64()),
        },
        schema=SCHEMA,
    )
    return Manifest(str(root), table, digest_of(table), False, f"{len(clips):,} clips of {file}")


def _read_columns(file: Path | str, timeout_s: float) -> dict[str, pa.ChunkedArray]:
    if isinstance(file, Path):
        return _columns_of(file, file)
    try:
        with fetch(file, timeout_s) as fetched:
            return _columns_of(file, fetched.path)
    except ClipError as error:
        raise DatasetError(f"dataset.path={file} can't be read ({error.reason}: {error.detail}): check it") from error
    except ImportError as error:
        raise DatasetError(f"dataset.path={file} needs a driver that is not installed: {error}") from error


def _columns_of(file: Path | str, source: Path | str) -> dict[str, pa.ChunkedArray]:
    """The columns of a manifest file that are known, from where its bytes lie."""
    import pyarrow.csv
    import pyarrow.parquet

    try:
        if str(file).lower().endswith((".parquet", ".pq")):
            table = pyarrow.parquet.read_table(source)
        else:
            convert = pyarrow.csv.ConvertOptions(
                column_types={"path": pa.string(), "label": pa.string(), "start": pa.string(), "end": pa.string()},
                strings_can_be_null=True,
                null_values=[""],
            )
            parse = pyarrow.csv.ParseOptions(newlines_in_values=True)
            table = pyarrow.csv.read_csv(source, convert_options=convert, parse_options=parse)
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
    """A column as text, whatever type a Parquet file gave it."""
    if table.column_names.count(name) > 1:
        raise DatasetError(f"{file} has several columns '{name}': leave one")
    try:
        return table[name].cast(pa.string())
    except pa.ArrowException as error:
        kind = table[name].type
        raise DatasetError(f"{file}, column '{name}' is no text or number but {kind} ({error}): convert it") from error


def _seconds(file: Path | str, columns: dict[str, pa.ChunkedArray], name: str) -> list[float | None]:
    """A column of times; None where the column or the cell is empty."""
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


def _check_labels(file: Path | str, columns: dict[str, pa.ChunkedArray]) -> None:
    row = pc.index(pc.match_substring(columns["label"], "\0"), True).as_py() if "label" in columns else -1
    if row >= 0:
        raise DatasetError(f"{file}, row {row + 1}: its label holds a NUL character: take it out")


def _check_inside(file: Path | str, root: Path, given: Path, paths: Sequence[str]) -> None:
    """No path leads out of the root, by its spelling (links inside it are the owner's affair)."""
    inside = tuple(os.path.join(folder, "") for folder in {str(root), str(given)})
    for row, path in enumerate(paths, start=1):
        if not os.path.normpath(os.path.join(root, path)).startswith(inside):
            raise DatasetError(
                f"{file}, row {row}: {path} leads out of the data set's root {root}: name another dataset.root, "
                "or set dataset.allow_paths_outside_root=true"
            )


def _check_below(file: Path | str, root: str, paths: Sequence[str]) -> None:
    """No path leads out of the root's prefix."""
    for row, path in enumerate(paths, start=1):
        if (is_url(path) and not path.startswith(f"{root}/")) or ".." in path.split("/"):
            raise DatasetError(
                f"{file}, row {row}: {path} leads out of the data set's root {root}: name another dataset.root, "
                "or set dataset.allow_paths_outside_root=true"
            )


def _check_unique(file: Path | str, clips: Sequence[str]) -> None:
    if len(set(clips)) == len(clips):
        return
    first: dict[str, int] = {}
    for row, clip in enumerate(clips, start=1):
        if clip in first:
            raise DatasetError(f"{file}, row {row}: {clip} is in row {first[clip]} already: take one of them out")
        first[clip] = row


def _normal(root: Path, path: str) -> str:
    """A path as all spellings of it are: ``./a``, ``b//a`` and ``b/../a``; a link's ``..`` is elsewhere, and stays."""
    if "//" not in path and "./" not in path:
        return path
    parts = [part for part in path.split("/") if part not in ("", ".")]
    spelled = "/" * path.startswith("/") + "/".join(parts)
    if ".." not in parts:
        return spelled
    plain = os.path.normpath(spelled)
    folders = (os.path.join(root, os.path.dirname(each)) for each in (spelled, plain))
    return plain if len({os.path.realpath(folder) for folder in folders}) == 1 else spelled


def _below(spellings: Sequence[str], path: str) -> str:
    """The path relative to the root, which absolute paths may spell in several ways (a link on the way to it)."""
    spelling = next((spelling for spelling in spellings if path.startswith(spelling)), "")
    return path[len(spelling) :].replace(os.sep, "/")


def _format_seconds(seconds: float | None) -> str:
    return "" if seconds is None else repr(seconds).removesuffix(".0")
