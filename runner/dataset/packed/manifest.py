"""The manifest of a packed data set: WebDataset tars, or Parquet files with audio in a column.

Each container is listed once; its listing is cached below ``paths.outputs`` until the container changes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from runner.config.schema import ParquetDataset, WebDataset
from runner.core.errors import ClipError, DatasetError
from runner.core.files import atomic
from runner.dataset.clip_names import display_name, parent_name
from runner.dataset.digests import digest_of
from runner.dataset.packed.address import UnreadableClip, address_tail, container_of, open_container
from runner.dataset.packed.containers import find_containers
from runner.dataset.packed.tar import Contents, scan_tar
from runner.dataset.table import SCHEMA, Manifest
from runner.storage.ranges import RangeFile, read_range

if TYPE_CHECKING:
    from runner.config.schema import PackedDataset
    from runner.dataset.packed.containers import Container

LISTINGS = "listings"
"""Folder of the cached listings, below ``paths.outputs``."""

_LISTING_VERSION = 1

_THREADS = 16

_EXTENSIONS = {"webdataset": (".tar",), "parquet": (".parquet", ".pq")}


class _Listing(NamedTuple):
    """The clips of a container: a table of name, tail of the address, bytes and label; see ``Contents``."""

    clips: pa.Table
    ignored: dict[str, int]
    problem: tuple[str, str] | None


def list_packed(dataset: PackedDataset, outputs: Path) -> Manifest:
    """List a packed data set, container by container.

    Args:
        dataset: the configuration.
        outputs: where listings are cached.

    Raises:
        DatasetError: there are no clips, two have one name, or the store doesn't answer.
    """
    ignored: Counter[str] = Counter()
    path, extensions = str(dataset.path), _EXTENSIONS[dataset.name]
    root, containers = find_containers(path, extensions, dataset.download_timeout_s, ignored)
    tables, problems = [], []
    with ThreadPoolExecutor(min(_THREADS, len(containers))) as threads:
        listings = threads.map(partial(_list_container, dataset, outputs), containers)
        for container, listing in zip(containers, listings, strict=True):
            tables.append(_manifest_rows(container, listing.clips, dataset))
            ignored.update(listing.ignored)
            if listing.problem:
                problems.append(f"{container.name}: {listing.problem[0]}: {listing.problem[1]}")
    table = pa.concat_tables(tables)
    if table.num_rows <= len(problems):
        files = ", ".join(f"{count} {name}" for name, count in ignored.most_common(5)) or "nothing else"
        key = "dataset.extensions" if dataset.name == "webdataset" else "dataset.audio_column"
        raise DatasetError(
            f"dataset.path={path} holds no clips ({problems[0] if problems else f'found {files}'}): choose other "
            f"files, or the right {key}"
        )
    _check_unique(table)
    files = f"{len(containers):,} {'tars' if dataset.name == 'webdataset' else 'Parquet files'}"
    description = f"{table.num_rows:,} clips in {files} of {root}"
    return Manifest(root, table, digest_of(table), False, description, dict(ignored))


def _manifest_rows(container: Container, clips: pa.Table, dataset: PackedDataset) -> pa.Table:
    """Return a container's clips as rows of the manifest."""
    count = clips.num_rows
    prefix = os.fsencode(os.path.splitext(container.name)[0])
    names = [
        b"%s/%06d" % (prefix, row) if name is None else b"%s/%s" % (prefix, name) if dataset.prefix else name
        for row, name in enumerate(clips["name"].to_pylist())
    ]
    labels = clips["label"]
    if isinstance(dataset, WebDataset) and dataset.label_from == "parent":
        labels = pa.array(map(parent_name, names), pa.string(), size=count)
    no_times = pa.nulls(count, pa.float64())
    return pa.table(
        {
            "clip": pa.array(map(display_name, names), pa.string(), size=count),
            "path": pa.array([container.path + tail for tail in clips["tail"].to_pylist()], pa.binary()),
            "start": no_times,
            "end": no_times,
            "label": labels,
            "bytes": clips["bytes"],
            "mtime_ns": pa.array([container.mtime_ns] * count, pa.int64()),
        },
        schema=SCHEMA,
    )


def _check_unique(table: pa.Table) -> None:
    if len(pc.unique(table["clip"])) == table.num_rows:
        return
    containers: dict[str, str] = {}
    for clip, path in zip(table["clip"].to_pylist(), table["path"].to_pylist(), strict=True):
        container = os.fsdecode(container_of(path))
        if clip in containers:
            raise DatasetError(
                f"{clip} is in {container} and in {containers[clip]}: set dataset.prefix=true, which prefixes clips "
                "with the names of their files, or (Parquet) give dataset.name_column=COLUMN"
            )
        containers[clip] = container


def _list_container(dataset: PackedDataset, outputs: Path, container: Container) -> _Listing:
    cache = _cache_path(dataset, outputs, container)
    if cache is not None:
        with contextlib.suppress(OSError, pa.ArrowException, KeyError, ValueError):
            table = pq.read_table(cache)
            return _Listing(table, json.loads(table.schema.metadata[b"ignored"]), None)
    contents = _scan_or_problem(dataset, container)
    table = pa.table(
        {
            "name": pa.array(contents.names, pa.binary()),
            "tail": pa.array(contents.tails, pa.binary()),
            "bytes": pa.array(contents.sizes, pa.int64()),
            "label": pa.array(contents.labels, pa.string()),
        },
        metadata={"ignored": json.dumps(contents.ignored)},
    )
    if cache is not None and not contents.problem:
        with contextlib.suppress(OSError):  # without the cache the next command lists the container again
            cache.parent.mkdir(parents=True, exist_ok=True)
            with atomic(cache, shared=True) as temporary:
                pq.write_table(table, temporary, compression="zstd")
    return _Listing(table, dict(contents.ignored), contents.problem)


def _cache_path(dataset: PackedDataset, outputs: Path, container: Container) -> Path | None:
    """Return where a container's listing is cached; None if a change of the container could not be noticed."""
    if container.size < 0 or container.mtime_ns < 0:
        return None
    version = (_LISTING_VERSION, dataset.name, container.path.hex(), container.size, container.mtime_ns)
    key = repr((*version, *dataset.listing_options()))
    return outputs / LISTINGS / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.parquet"


def _scan_or_problem(dataset: PackedDataset, container: Container) -> Contents:
    """List a container; one that can't be read in full has one more clip, which is skipped with the reason.

    Raises:
        DatasetError: the store did not answer in time.
    """
    try:
        contents = _scan(dataset, container)
    except ClipError as error:
        if error.reason == "download_timeout":
            raise DatasetError(
                f"{os.fsdecode(container.path)} can't be listed ({error.detail}): check network and endpoint, and "
                "rerun the same command"
            ) from error
        contents = Contents(problem=(error.reason, error.detail))
    except OSError as error:
        contents = Contents(problem=("unreadable", str(error)))
    if contents.problem:
        contents.names.append(os.fsencode(container.name))
        contents.tails.append(address_tail(UnreadableClip(container.path, *contents.problem)))
        contents.sizes.append(0 if container.size >= 0 else -1)
        contents.labels.append(None)
    return contents


def _scan(dataset: PackedDataset, container: Container) -> Contents:
    if container.size < 0:
        raise ClipError("missing", "no such file")
    file: IO[bytes]
    if url := container.url:
        file = RangeFile(partial(read_range, url, dataset.download_timeout_s), container.size)  # type: ignore[assignment]
    else:
        file = open(open_container(container.path), "rb", buffering=0)  # noqa: SIM115
    with file:
        if isinstance(dataset, ParquetDataset):
            from runner.dataset.packed.parquet import ColumnNames, scan_parquet

            columns = ColumnNames(dataset.audio_column, dataset.name_column, dataset.label_column)
            return scan_parquet(file, container.size, container.path, columns)
        assert isinstance(dataset, WebDataset)
        extensions = frozenset("." + extension.lower().lstrip(".") for extension in dataset.extensions)
        return scan_tar(file, container.path, extensions, dataset.label_from)
