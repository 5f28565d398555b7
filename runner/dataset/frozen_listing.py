"""The listing of a data set that all partitions read: the first job puts it in a file, the others plan from that.

Parts make a whole only if they are cut from one listing.  Jobs that begin days apart would each list the data set as
it is by then, and one file more moves the bounds of most shards.  So ``dataset.listing`` names a file, here or in an
object store, which is made by who comes first and never written again: two that come at once agree on the one that was
there first.  A sweep's jobs need no such name; theirs lies beside them.

The listing says which clips there are and where shards end; sizes and times of the part's own files are looked at by
each job, so that a file that changed is noticed when the part is taken up (not in a store: that is a request each).
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock

from runner.config.fingerprint import deciding
from runner.config.groups.dataset import parse_partition
from runner.core.errors import ClipError, DatasetError
from runner.core.files import flush, flush_folder, make_folder
from runner.core.paths import as_path, is_url
from runner.dataset.digests import digest_of
from runner.dataset.manifest import build_manifest, select_partition
from runner.dataset.table import CHUNK_CLIPS, Manifest, stamps
from runner.storage.filesystem import open_store
from runner.storage.prefetch import fetch
from runner.storage.retry import with_retries

if TYPE_CHECKING:
    from runner.config.schema import RunConfig

log = logging.getLogger(__name__)

_KEY = b"vggish_runner_listing"
"""Of the Parquet file's metadata: what the listing is of, and what of ``Manifest`` is no row."""

_OF_FILES = ("folder", "manifest", "demo")
"""Kinds of data sets each clip of which is a file, or a part of one."""

_OWN = ("dataset.partition",)


def listing_of_sweep(config: RunConfig, run_dir: Path, sweep_dir: Path) -> str:
    """Where the parts of a sweep have their listing: in the sweep's folder or URL, by what it is of."""
    name = f"listing-{hashlib.sha256(json.dumps(_subject(config)).encode()).hexdigest()[:12]}.parquet"
    place = config.output.dir
    if is_url(place):
        below = Path(os.path.relpath(run_dir, sweep_dir)).as_posix()
        return f"{place.rstrip('/').removesuffix(f'/{below}')}/{name}"
    return str(sweep_dir / name)


def list_clips(config: RunConfig, listing: str | None, outputs: Path) -> Manifest:
    """The clips of a run: all of the data set, or those of ``dataset.partition``.

    Args:
        config: the run's.
        listing: where the listing is that all parts read, or is to be; None: what the data set holds now.
        outputs: as in ``build_manifest``.

    Raises:
        DatasetError: as ``build_manifest``, ``frozen`` and ``select_partition`` do.
    """

    def list_now() -> Manifest:
        return build_manifest(config.dataset, outputs)

    if config.dataset.partition is None:
        return list_now()
    which, of = parse_partition(config.dataset.partition)
    whole = list_now() if listing is None else frozen(config, listing, list_now)
    numbered = "tfrecord" in config.output.formats
    part = select_partition(whole, which, of, config.output.clips_per_shard, config.frontend.hop_s, labels=numbered)
    return part if listing is None or config.dataset.name not in _OF_FILES else as_they_are_now(part)


def frozen(config: RunConfig, place: str, list_now: Callable[[], Manifest]) -> Manifest:
    """The data set as the file at ``place`` lists it, which is made if there is none.

    Args:
        config: the run's.
        place: a path or a URL.
        list_now: lists the data set.

    Raises:
        DatasetError: the file can't be read or made, or is of another data set.
    """
    found = _read(place, config.dataset.download_timeout_s)
    if found is None:
        manifest = list_now()
        data = _packed(config, manifest)
        created = _create(place, data, config.dataset.download_timeout_s)
        found = _read(place, config.dataset.download_timeout_s)  # not all stores know how to create what is not there
        if created and found == data:
            log.info("the listing of the data set, which other parts read, is %s", place)
            return manifest
    if found is None:
        raise DatasetError(f"dataset.listing={place} was removed as it was made: rerun the same command")
    return _unpacked(config, place, found)


def as_they_are_now(part: Manifest) -> Manifest:
    """A part with the sizes and times of its files as they are now; those of objects stay as they were listed."""
    if is_url(part.root):
        return part
    now = stamps([os.fsdecode(path) for path in part.table["path"].to_pylist()])
    table = part.table
    for name, values in zip(("bytes", "mtime_ns"), zip(*now, strict=True), strict=True):
        place = table.schema.get_field_index(name)
        table = table.set_column(place, table.schema.field(name), pa.array(values, pa.int64()))
    return replace(part, table=table, digest=digest_of(table))


def _subject(config: RunConfig) -> dict[str, Any]:
    """The settings that say what is listed."""
    return {key: value for key, value in deciding(config).items() if key.startswith("dataset.") and key not in _OWN}


def _packed(config: RunConfig, manifest: Manifest) -> bytes:
    about = {
        "subject": _subject(config),
        "root": manifest.root,
        "is_demo": manifest.is_demo,
        "description": manifest.description,
        "ignored": manifest.ignored,
    }
    table = manifest.table.replace_schema_metadata({_KEY: json.dumps(about).encode()})
    file = io.BytesIO()
    pq.write_table(table, file, row_group_size=CHUNK_CLIPS, use_dictionary=["label"], compression="zstd")
    return file.getvalue()


def _unpacked(config: RunConfig, place: str, data: bytes) -> Manifest:
    try:
        table = pq.read_table(io.BytesIO(data))
        about: Mapping[str, Any] = json.loads(table.schema.metadata[_KEY])
        subject = about["subject"]
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(
            f"dataset.listing={place} is no listing of the runner's ({error!r}): name another file"
        ) from error
    wanted = _subject(config)
    if subject != wanted:
        keys = [key for key in sorted({*subject, *wanted}) if subject.get(key) != wanted.get(key)]
        raise DatasetError(
            f"dataset.listing={place} is of another data set (it differs in {', '.join(keys)}): name another file"
        )
    table = table.replace_schema_metadata(None)
    description = f"{about['description']} (as {place} lists them)"
    return Manifest(about["root"], table, digest_of(table), about["is_demo"], description, about["ignored"])


def _read(place: str, timeout_s: float) -> bytes | None:
    """What the file holds; None where there is none."""
    try:
        if not is_url(place):
            return _path(place).read_bytes()
        with fetch(place, timeout_s) as fetched:
            return Path(fetched.path).read_bytes()
    except FileNotFoundError:
        return None
    except ClipError as error:
        if error.reason == "missing":
            return None
        raise DatasetError(f"dataset.listing={place} can't be read ({error}): check it") from error
    except OSError as error:
        raise DatasetError(f"dataset.listing={place} can't be read ({error}): check it") from error


def _create(place: str, data: bytes, timeout_s: float) -> bool:
    """Put the file there, unless there is one; whether it was put."""
    try:
        return _create_object(place, data, timeout_s) if is_url(place) else _create_file(_path(place), data)
    except Exception as error:
        raise DatasetError(
            f"dataset.listing={place} can't be made ({type(error).__name__}: {error}): name a place that all parts "
            "may write to, or one where it is already"
        ) from error


def _create_object(url: str, data: bytes, timeout_s: float) -> bool:
    store, name = open_store("dataset.listing", url, timeout_s)
    try:
        with_retries(lambda: store.pipe_file(name, data, mode="create"), timeout_s)
    except FileExistsError:  # another's, or this one's, if its answer was lost
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
    """Give a file its name, as ``os.link`` does: whole, and only where the name is free."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        with FileLock(path.with_name(f".{path.name}.lock")):
            if path.exists():
                raise FileExistsError(path) from None
            os.replace(temporary, path)


def _path(place: str) -> Path:
    return Path(as_path(place)).expanduser().absolute()
