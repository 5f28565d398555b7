"""The listing of a data set that all partitions read: the first job writes it to a file, the others plan from that.

Partitions can be merged only if they are cut from one listing.  Jobs that start days apart would each list the data set
as it is then, and one more file moves the bounds of most shards.  ``dataset.listing`` therefore names a file, here or
in an object store, which the first job creates and none replaces: jobs that start at once agree on the file that was
created first.  A sweep's jobs need no such name; their listing is next to them.

The listing determines the clips and the shards.  Each job reads the sizes and times of its own partition's files
itself, so that a file that changed is noticed when the partition is resumed (not in a store, where each needs a
request).
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock

from runner.config.fingerprint import fingerprint
from runner.config.groups.dataset import parse_partition
from runner.core.errors import ClipError, DatasetError
from runner.core.files import flush, flush_folder, make_folder
from runner.core.paths import as_path, is_url
from runner.core.readable import json_object
from runner.dataset.digests import digest_of
from runner.dataset.manifest import build_manifest, select_partition
from runner.dataset.shards import max_shard_s
from runner.dataset.table import CHUNK_CLIPS, Manifest, file_stats
from runner.storage.filesystem import open_store
from runner.storage.prefetch import fetch
from runner.storage.retry import with_retries

if TYPE_CHECKING:
    from runner.config.schema import RunConfig
    from runner.core.readable import Json

log = logging.getLogger(__name__)

_METADATA_KEY = b"vggish_runner_listing"
"""Key of the Parquet metadata that has ``_About``."""

_FILE_DATASETS = ("folder", "manifest", "demo")
"""Data sets whose clips are files, or parts of files."""

_PARTITION_SETTINGS = ("dataset.partition",)


def listing_of_sweep(config: RunConfig, run_dir: Path, sweep_dir: Path) -> str:
    """Return where the jobs of a sweep have their listing: in the sweep's folder or URL, named by its settings."""
    name = f"listing-{hashlib.sha256(json.dumps(_settings(config)).encode()).hexdigest()[:12]}.parquet"
    output_dir = config.output.dir
    if is_url(output_dir):
        job = Path(os.path.relpath(run_dir, sweep_dir)).as_posix()
        return f"{output_dir.rstrip('/').removesuffix(f'/{job}')}/{name}"
    return str(sweep_dir / name)


def list_clips(config: RunConfig, listing: str | None, outputs: Path) -> Manifest:
    """Return the clips of a run: those of the data set, or of ``dataset.partition``.

    Args:
        config: the run's.
        listing: path or URL of the listing that all partitions read; None to list the data set.
        outputs: as in ``build_manifest``.

    Raises:
        DatasetError: as ``build_manifest``, ``read_or_create`` and ``select_partition``.
    """

    def list_dataset() -> Manifest:
        return build_manifest(config.dataset, outputs)

    if config.dataset.partition is None:
        return list_dataset()
    index, count = parse_partition(config.dataset.partition)
    whole = list_dataset() if listing is None else read_or_create(config, listing, list_dataset)
    numbers_labels = "tfrecord" in config.output.formats
    partition = select_partition(
        whole, index, count, config.output.clips_per_shard, max_shard_s(config), labels=numbers_labels
    )
    has_stale_stats = listing is not None and config.dataset.name in _FILE_DATASETS
    return with_current_stats(partition) if has_stale_stats else partition


def read_or_create(config: RunConfig, listing: str, list_dataset: Callable[[], Manifest]) -> Manifest:
    """Return the data set that a listing holds; create the listing if it does not exist.

    Args:
        config: the run's.
        listing: its path or URL.
        list_dataset: lists the data set.

    Raises:
        DatasetError: the listing can't be read or created, or is of another data set.
    """
    timeout_s = config.dataset.download_timeout_s
    data = _read(listing, timeout_s)
    if data is None:
        manifest = list_dataset()
        ours = _encode(config, manifest)
        is_created = _create(listing, ours, timeout_s)
        data = _read(listing, timeout_s)  # some stores replace what should only be created
        if is_created and data == ours:
            log.info("created the listing that all partitions read: %s", listing)
            return manifest
    if data is None:
        raise DatasetError(f"dataset.listing={listing} was removed while it was created: rerun the same command")
    return _decode(config, listing, data)


def with_current_stats(partition: Manifest) -> Manifest:
    """Return a partition with the present sizes and times of its files; those of objects stay as listed."""
    if is_url(partition.root):
        return partition
    table = partition.table
    stats = file_stats([os.fsdecode(path) for path in table["path"].to_pylist()])
    for name, values in zip(("bytes", "mtime_ns"), zip(*stats, strict=True), strict=True):
        column = table.schema.get_field_index(name)
        table = table.set_column(column, table.schema.field(name), pa.array(values, pa.int64()))
    return replace(partition, table=table, digest=digest_of(table))


@dataclass(frozen=True)
class _About:
    """The metadata of a listing: the settings that it is of, and fields of its ``Manifest``."""

    settings: Mapping[str, Json]
    root: str
    is_demo: bool
    description: str
    ignored: dict[str, int]


def _settings(config: RunConfig) -> dict[str, Json]:
    """Return the settings that determine the listing."""
    settings = fingerprint(config).items()
    return {key: value for key, value in settings if key.startswith("dataset.") and key not in _PARTITION_SETTINGS}


def _encode(config: RunConfig, manifest: Manifest) -> bytes:
    about = _About(_settings(config), manifest.root, manifest.is_demo, manifest.description, manifest.ignored)
    table = manifest.table.replace_schema_metadata({_METADATA_KEY: json.dumps(asdict(about)).encode()})
    file = io.BytesIO()
    pq.write_table(table, file, row_group_size=CHUNK_CLIPS, use_dictionary=["label"], compression="zstd")
    return file.getvalue()


def _decode(config: RunConfig, listing: str, data: bytes) -> Manifest:
    try:
        table = pq.read_table(io.BytesIO(data))
        about = _About(**json_object(table.schema.metadata[_METADATA_KEY]))  # type: ignore[arg-type]
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(
            f"dataset.listing={listing} is not a listing of this version of the runner ({error!r}): choose another file"
        ) from error
    settings, current = about.settings, _settings(config)
    if settings != current:
        keys = [key for key in sorted({*settings, *current}) if settings.get(key) != current.get(key)]
        raise DatasetError(
            f"dataset.listing={listing} is of another data set (it differs in {', '.join(keys)}): choose another file"
        )
    table = table.replace_schema_metadata(None)
    description = f"{about.description} (as {listing} lists them)"
    return Manifest(about.root, table, digest_of(table), about.is_demo, description, about.ignored)


def _read(listing: str, timeout_s: float) -> bytes | None:
    """Return the content of a listing; None if it does not exist."""
    try:
        if not is_url(listing):
            return _path(listing).read_bytes()
        with fetch(listing, timeout_s) as fetched:
            return Path(fetched.path).read_bytes()
    except FileNotFoundError:
        return None
    except ClipError as error:
        if error.reason == "missing":
            return None
        raise DatasetError(f"dataset.listing={listing} can't be read ({error}): check it") from error
    except OSError as error:
        raise DatasetError(f"dataset.listing={listing} can't be read ({error}): check it") from error


def _create(listing: str, data: bytes, timeout_s: float) -> bool:
    """Create a listing; return False if it exists already."""
    try:
        return _create_object(listing, data, timeout_s) if is_url(listing) else _create_file(_path(listing), data)
    except Exception as error:
        raise DatasetError(
            f"dataset.listing={listing} can't be created ({type(error).__name__}: {error}): choose a folder or URL "
            "that all partitions may write to, or an existing listing"
        ) from error


def _create_object(url: str, data: bytes, timeout_s: float) -> bool:
    store, name = open_store("dataset.listing", url, timeout_s)
    try:
        with_retries(lambda: store.pipe_file(name, data, mode="create"), timeout_s)
    except FileExistsError:  # another job's; or this one's, if the answer was lost
        return False
    return True


def _create_file(path: Path, data: bytes) -> bool:
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.write_bytes(data)
        flush(temporary)
        _link(temporary, path)
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    flush_folder(path.parent)
    return True


def _link(temporary: Path, path: Path) -> None:
    """Create a file from a complete temporary one, as ``os.link`` does: only where the name is free."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        with FileLock(path.with_name(f".{path.name}.lock")):
            if path.exists():
                raise FileExistsError(path) from None
            os.replace(temporary, path)


def _path(listing: str) -> Path:
    return Path(as_path(listing)).expanduser().absolute()
