"""A packed data set as a table of clips: WebDataset tars, or Parquet files with audio in a column.

Each container is listed once; what was found in one is kept below ``paths.outputs``, for as long as it stays the same.
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
from typing import IO, TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from runner.config.schema import ParquetDataset, WebDataset
from runner.core.errors import ClipError, DatasetError
from runner.core.files import atomic
from runner.dataset.digests import digest_of
from runner.dataset.folder import parent_of, shown
from runner.dataset.packed.address import Unread, open_container, tail
from runner.dataset.packed.containers import find_containers
from runner.dataset.packed.tar import Contents, scan_tar
from runner.dataset.table import SCHEMA, Manifest
from runner.storage.ranges import RangeFile, read_range

if TYPE_CHECKING:
    from runner.config.schema import PackedDataset
    from runner.dataset.packed.containers import Container

LISTINGS = "listings"
"""Folder, below the outputs, of what was found in containers."""

_LISTING_VERSION = 1

_THREADS = 16

_EXTENSIONS = {"webdataset": (".tar",), "parquet": (".parquet", ".pq")}


def list_packed(dataset: PackedDataset, outputs: Path) -> Manifest:
    """List a packed data set, container by container.

    Args:
        dataset: what the configuration asks for.
        outputs: where listings are kept.

    Raises:
        DatasetError: there are no clips, two of one name, or the store does not answer.
    """
    ignored: Counter[str] = Counter()
    given = str(dataset.path)
    extensions = _EXTENSIONS[dataset.name]
    root, containers = find_containers(given, extensions, dataset.download_timeout_s, ignored)
    tables, problems = [], []
    with ThreadPoolExecutor(min(_THREADS, len(containers))) as threads:
        for container, listing in zip(
            containers, threads.map(partial(_listing, dataset, outputs), containers), strict=True
        ):
            table, left_out, problem = listing
            tables.append(_rows(container, table, dataset))
            ignored.update(left_out)
            if problem:
                problems.append(f"{container.name}: {problem[0]}: {problem[1]}")
    table = pa.concat_tables(tables)
    if table.num_rows <= len(problems):
        seen = ", ".join(f"{count} {name}" for name, count in ignored.most_common(5)) or "nothing else"
        raise DatasetError(
            f"dataset.path={given} holds no clips ({problems[0] if problems else f'found {seen}'}): name other files, "
            "or the right " + ("dataset.extensions" if dataset.name == "webdataset" else "dataset.audio_column")
        )
    _check_unique(table)
    what = f"{len(containers):,} {'tars' if dataset.name == 'webdataset' else 'Parquet files'}"
    description = f"{table.num_rows:,} clips in {what} of {root}"
    return Manifest(root, table, digest_of(table), False, description, dict(ignored))


def _rows(container: Container, listing: pa.Table, dataset: PackedDataset) -> pa.Table:
    """A container's clips as rows of the manifest."""
    count = listing.num_rows
    before = os.fsencode(os.path.splitext(container.name)[0])
    given = listing["name"].to_pylist()
    names = [
        b"%s/%06d" % (before, row) if name is None else b"%s/%s" % (before, name) if dataset.prefix else name
        for row, name in enumerate(given)
    ]
    labels = listing["label"]
    if isinstance(dataset, WebDataset) and dataset.label_from == "parent":
        labels = pa.array(map(parent_of, names), pa.string(), size=count)
    times = pa.nulls(count, pa.float64())
    return pa.table(
        {
            "clip": pa.array(map(shown, names), pa.string(), size=count),
            "path": pa.array([container.place + tail for tail in listing["tail"].to_pylist()], pa.binary()),
            "start": times,
            "end": times,
            "label": labels,
            "bytes": listing["bytes"],
            "mtime_ns": pa.array([container.stamp] * count, pa.int64()),
        },
        schema=SCHEMA,
    )


def _check_unique(table: pa.Table) -> None:
    if len(pc.unique(table["clip"])) == table.num_rows:
        return
    first: dict[str, str] = {}
    for clip, path in zip(table["clip"].to_pylist(), table["path"].to_pylist(), strict=True):
        here = os.fsdecode(path.partition(b"\0")[0])
        if clip in first:
            raise DatasetError(
                f"{clip} is in {here} and in {first[clip]}: set dataset.prefix=true, which puts the names of their "
                "files before those of clips, or (Parquet) give dataset.name_column=COLUMN"
            )
        first[clip] = here


def _listing(
    dataset: PackedDataset, outputs: Path, container: Container
) -> tuple[pa.Table, dict[str, int], tuple[str, str] | None]:
    """(name, tail, bytes, label of each clip; what was left out; why that is not all) of a container."""
    kept = _kept_at(dataset, outputs, container)
    if kept is not None:
        with contextlib.suppress(OSError, pa.ArrowException, KeyError, ValueError):
            table = pq.read_table(kept)
            return table, json.loads(table.schema.metadata[b"ignored"]), None
    try:
        contents = _scan(dataset, container)
    except ClipError as error:
        if error.reason == "download_timeout":  # as a folder that can't be listed
            raise DatasetError(
                f"{os.fsdecode(container.place)} can't be listed ({error.detail}): check network and endpoint, and run "
                "the same command again"
            ) from error
        contents = Contents(problem=(error.reason, error.detail))
    except OSError as error:
        contents = Contents(problem=("unreadable", str(error)))
    if contents.problem:
        contents.names.append(os.fsencode(container.name))
        contents.tails.append(tail(Unread(container.place, *contents.problem)))
        contents.sizes.append(0 if container.size >= 0 else -1)
        contents.labels.append(None)
    table = pa.table(
        {
            "name": pa.array(contents.names, pa.binary()),
            "tail": pa.array(contents.tails, pa.binary()),
            "bytes": pa.array(contents.sizes, pa.int64()),
            "label": pa.array(contents.labels, pa.string()),
        },
        metadata={"ignored": json.dumps(contents.ignored)},
    )
    if kept is not None and not contents.problem:
        with contextlib.suppress(OSError):  # a full disk is no reason not to go on
            kept.parent.mkdir(parents=True, exist_ok=True)
            with atomic(kept.with_name(f"{kept.stem}-{os.getpid()}.parquet")) as temporary:
                pq.write_table(table, temporary, compression="zstd")
            kept.with_name(f"{kept.stem}-{os.getpid()}.parquet").replace(kept)
    return table, dict(contents.ignored), contents.problem


def _kept_at(dataset: PackedDataset, outputs: Path, container: Container) -> Path | None:
    """Where a container's listing is kept; nowhere if it is not known whether it stays the same."""
    if container.size < 0 or container.stamp < 0:
        return None
    asked = (
        _LISTING_VERSION,
        dataset.name,
        container.place.hex(),
        container.size,
        container.stamp,
        *dataset.listing_options(),
    )
    return outputs / LISTINGS / f"{hashlib.sha256(repr(asked).encode()).hexdigest()[:32]}.parquet"


def _scan(dataset: PackedDataset, container: Container) -> Contents:
    if container.size < 0:
        raise ClipError("missing", "no such file")
    file: IO[bytes]
    if url := container.url:
        file = RangeFile(partial(read_range, url, dataset.download_timeout_s), container.size)  # type: ignore[assignment]
    else:
        file = open(open_container(container.place), "rb", buffering=0)  # noqa: SIM115
    with file:
        if isinstance(dataset, ParquetDataset):
            from runner.dataset.packed.parquet import scan_parquet

            return scan_parquet(
                file, container.size, container.place, dataset.audio_column, dataset.name_column, dataset.label_column
            )
        assert isinstance(dataset, WebDataset)
        extensions = frozenset("." + extension.lower().lstrip(".") for extension in dataset.extensions)
        return scan_tar(file, container.place, extensions, dataset.label_from)
