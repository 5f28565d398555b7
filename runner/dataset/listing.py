"""What lies below a folder or an object store's prefix, in the order of the paths' bytes, one after the other."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from runner.core.errors import DatasetError
from runner.storage.filesystem import _modified, _ns, open_store
from runner.storage.retry import is_forbidden, with_retries
from runner.storage.whole_object import protocols_of

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_PAGE_KEYS = 1000

_LISTED_ALREADY = "(link to a folder that is listed already)"


class _Way(NamedTuple):
    """The folders above, by device and inode; those entered below the link on the way, None if there is none."""

    above: frozenset[tuple[int, int]]
    below_link: set[tuple[int, int]] | None


def walk(root: Path, ignored: Counter[str]) -> Iterator[tuple[str, int, int]]:
    """(path relative to root with /, size in bytes, mtime in ns; −1: unknown) of all below root that is no folder.

    In the order of the paths' bytes, whatever the file system's.  Links to folders are followed, but never into a
    folder that is on the way to them already; and below a link no folder is entered twice, and no link is followed back
    into ``root``, whose folders are listed in their own places: folders with links to one another add their files once
    a link.  Links that are not followed, and folders that can't be listed, are counted in ``ignored``.
    """
    # A folder sorts as its name with a slash, so that going down in this order gives whole paths in order.
    pending: list[Iterator[tuple[bytes, os.DirEntry[str]]]] = []
    prefixes: list[tuple[str, _Way]] = []
    own = os.path.join(os.path.realpath(root), "")

    def enter(folder: str, prefix: str, way: _Way, *, is_link: bool = False) -> None:
        if is_link and way.below_link is not None and os.path.realpath(folder).startswith(own):
            ignored[_LISTED_ALREADY] += 1
            return
        try:
            status = os.stat(folder)
            entries = _sorted_entries(folder)
        except OSError as error:
            if not prefix:
                raise DatasetError(f"dataset.root={root} can't be listed ({error}): check its permissions") from error
            ignored["(folder that can't be listed)"] += 1
            return
        identity = (status.st_dev, status.st_ino)
        below_link = set[tuple[int, int]]() if is_link and way.below_link is None else way.below_link
        if identity in way.above or (below_link is not None and identity in below_link):
            ignored[_LISTED_ALREADY] += 1
            return
        if below_link is not None:
            below_link.add(identity)
        pending.append(iter(entries))
        prefixes.append((prefix, _Way(way.above | {identity}, below_link)))

    enter(str(root), "", _Way(frozenset(), None))
    while pending:
        prefix, way = prefixes[-1]
        for key, entry in pending[-1]:
            relative = f"{prefix}{entry.name}"
            if key.endswith(b"/"):
                enter(entry.path, f"{relative}/", way, is_link=entry.is_symlink())
                break
            try:
                found = entry.stat()
                size, mtime_ns = found.st_size, found.st_mtime_ns
            except OSError:
                size = mtime_ns = -1
            yield relative, size, mtime_ns
        else:
            pending.pop()
            prefixes.pop()


def _sorted_entries(folder: str) -> list[tuple[bytes, os.DirEntry[str]]]:
    """The entries of a folder with what they sort by; raises OSError if it can't be listed."""
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                is_folder = entry.is_dir()
            except OSError:
                is_folder = False
            name = os.fsencode(entry.name)
            found.append((name + b"/" if is_folder else name, entry))
    found.sort(key=itemgetter(0))
    return found


def walk_store(root: str, timeout_s: float) -> Iterator[tuple[str, int, int]]:
    """(key relative to root, size in bytes, mtime in ns; −1: unknown) of all objects below a URL.

    In the order of the keys' bytes, from the store's own listing: no request an object.  S3's and Google's stores are
    listed by pages of a thousand keys, others folder by folder.  Objects that stand for folders (their key ends in /)
    are left out.

    Args:
        root: the URL, without a / at its end.
        timeout_s: no try of a request is begun after so many seconds.

    Raises:
        DatasetError: it can't be listed.
        ConfigError: its driver is not installed.
    """
    store, path = open_store("dataset.root", root, timeout_s)
    kinds = protocols_of(store)
    listing = _s3_pages if "s3" in kinds else _gs_pages if kinds & {"gs", "gcs"} else _by_folder
    try:
        yield from listing(store, path, timeout_s)
    except FileNotFoundError as error:
        raise DatasetError(f"dataset.root={root} does not exist ({error}): give a bucket and prefix that do") from error
    except Exception as error:
        if is_forbidden(error):
            raise DatasetError(
                f"dataset.root={root} may not be listed ({error}): check the permissions of the driver's credentials"
            ) from error
        raise DatasetError(
            f"dataset.root={root} can't be listed ({type(error).__name__}: {error}): check network, endpoint and the "
            "driver's credentials (for s3://: AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)"
        ) from error


def _s3_pages(store: AbstractFileSystem, path: str, timeout_s: float) -> Iterator[tuple[str, int, int]]:
    bucket, _, prefix = path.partition("/")
    prefix = f"{prefix}/" if prefix else ""
    asked: dict[str, Any] = {"Bucket": bucket, "Prefix": prefix, "MaxKeys": _PAGE_KEYS}
    while True:
        page: dict[str, Any] = with_retries(partial(store.call_s3, "list_objects_v2", **asked), timeout_s)
        for item in page.get("Contents", ()):
            if not item["Key"].endswith("/"):
                yield item["Key"][len(prefix) :], item["Size"], _ns(item.get("LastModified"))
        if not page.get("IsTruncated"):
            return
        asked["ContinuationToken"] = page["NextContinuationToken"]


def _gs_pages(store: AbstractFileSystem, path: str, timeout_s: float) -> Iterator[tuple[str, int, int]]:
    bucket, _, prefix = path.partition("/")
    prefix = f"{prefix}/" if prefix else ""
    fields = "nextPageToken,items(name,size,updated)"
    asked: dict[str, Any] = {"prefix": prefix, "maxResults": _PAGE_KEYS, "fields": fields}
    while True:
        ask = partial(store.call, "GET", "b/{}/o", bucket, json_out=True, **asked)
        page: dict[str, Any] = with_retries(ask, timeout_s)
        for item in page.get("items", ()):
            if not item["name"].endswith("/"):
                yield item["name"][len(prefix) :], int(item.get("size", -1)), _ns(item.get("updated"))
        if not page.get("nextPageToken"):
            return
        asked["pageToken"] = page["nextPageToken"]


def _by_folder(store: AbstractFileSystem, path: str, timeout_s: float) -> Iterator[tuple[str, int, int]]:
    def entries(folder: str) -> Iterator[tuple[bytes, dict[str, Any]]]:
        found = with_retries(lambda: store.ls(folder, detail=True), timeout_s)
        keyed = []
        for item in found:
            name = item["name"].rstrip("/")
            if name != folder.rstrip("/"):  # a store's own mark of the folder
                key = os.fsencode(name)
                keyed.append((key + b"/" if item["type"] == "directory" else key, item))
        keyed.sort(key=itemgetter(0))
        return iter(keyed)

    below = len(path.rstrip("/")) + 1
    pending = [entries(path)]
    while pending:
        for key, item in pending[-1]:
            if key.endswith(b"/"):
                pending.append(entries(item["name"].rstrip("/")))
                break
            size = item.get("size")
            yield item["name"][below:], -1 if size is None else int(size), _modified(item)
        else:
            pending.pop()
