"""Lists the files below a folder or an object store's prefix, in the order of the paths' bytes, one at a time."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from runner.core.errors import DatasetError
from runner.storage.filesystem import modified_ns, open_store, to_ns
from runner.storage.retry import is_forbidden, with_retries
from runner.storage.whole_object import protocols_of

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_PAGE_KEYS = 1000

_LISTED_ALREADY = "(link to a folder that is listed already)"

_Inode = tuple[int, int]
"""Device and inode of a folder."""


class ListedFile(NamedTuple):
    """A file or object: its path relative to the root, with /; size in bytes, time in ns (−1: unknown)."""

    path: str
    size: int
    mtime_ns: int


class _Ancestry(NamedTuple):
    """The folders above a file; and the folders entered below a link among them, None if there is no link."""

    above: frozenset[_Inode]
    below_link: set[_Inode] | None


def walk(root: Path, ignored: Counter[str]) -> Iterator[ListedFile]:
    """Yield all files below a folder, in the order of their paths' bytes, whatever the file system's order.

    Links to folders are followed, but not into a folder above them.  Below a link no folder is entered twice, and no
    link is followed back into ``root``, whose folders are listed on their own: folders with links to one another add
    their files once for each link.

    Args:
        root: the folder.
        ignored: counts links that are not followed, and folders that can't be listed.

    Raises:
        DatasetError: the root can't be listed.
    """
    # A folder sorts as its name with a slash, so that a depth-first walk yields whole paths in order.
    pending: list[Iterator[tuple[bytes, os.DirEntry[str]]]] = []
    prefixes: list[tuple[str, _Ancestry]] = []
    real_root = os.path.join(os.path.realpath(root), "")

    def enter(folder: str, prefix: str, ancestry: _Ancestry, *, is_link: bool = False) -> None:
        if is_link and ancestry.below_link is not None and os.path.realpath(folder).startswith(real_root):
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
        inode = (status.st_dev, status.st_ino)
        below_link = set[_Inode]() if is_link and ancestry.below_link is None else ancestry.below_link
        if inode in ancestry.above or (below_link is not None and inode in below_link):
            ignored[_LISTED_ALREADY] += 1
            return
        if below_link is not None:
            below_link.add(inode)
        pending.append(iter(entries))
        prefixes.append((prefix, _Ancestry(ancestry.above | {inode}, below_link)))

    enter(str(root), "", _Ancestry(frozenset(), None))
    while pending:
        prefix, ancestry = prefixes[-1]
        for key, entry in pending[-1]:
            relative = f"{prefix}{entry.name}"
            if key.endswith(b"/"):
                enter(entry.path, f"{relative}/", ancestry, is_link=entry.is_symlink())
                break
            try:
                status = entry.stat()
                size, mtime_ns = status.st_size, status.st_mtime_ns
            except OSError:
                size = mtime_ns = -1
            yield ListedFile(relative, size, mtime_ns)
        else:
            pending.pop()
            prefixes.pop()


def _sorted_entries(folder: str) -> list[tuple[bytes, os.DirEntry[str]]]:
    """Return a folder's entries with their sort keys; raises OSError if it can't be listed."""
    keyed = []
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                is_folder = entry.is_dir()
            except OSError:
                is_folder = False
            name = os.fsencode(entry.name)
            keyed.append((name + b"/" if is_folder else name, entry))
    keyed.sort(key=itemgetter(0))
    return keyed


def walk_store(root: str, timeout_s: float) -> Iterator[ListedFile]:
    """Yield all objects below a URL, in the order of their keys' bytes.

    Sizes and times are those of the store's listing, so that no object needs a request of its own.  S3's and Google's
    stores are listed by pages of a thousand keys, others folder by folder.  Objects that stand for folders (their key
    ends in /) are left out.

    Args:
        root: the URL, without a / at its end.
        timeout_s: as in ``runner.storage.retry.with_retries``, for each request.

    Raises:
        DatasetError: it can't be listed.
        ConfigError: its driver is not installed.
    """
    store, path = open_store("dataset.root", root, timeout_s)
    protocols = protocols_of(store)
    listing = _s3_pages if "s3" in protocols else _gs_pages if protocols & {"gs", "gcs"} else _by_folder
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


def _s3_pages(store: AbstractFileSystem, path: str, timeout_s: float) -> Iterator[ListedFile]:
    bucket, _, prefix = path.partition("/")
    prefix = f"{prefix}/" if prefix else ""
    request: dict[str, Any] = {"Bucket": bucket, "Prefix": prefix, "MaxKeys": _PAGE_KEYS}
    while True:
        page: dict[str, Any] = with_retries(partial(store.call_s3, "list_objects_v2", **request), timeout_s)
        for item in page.get("Contents", ()):
            if not item["Key"].endswith("/"):
                yield ListedFile(item["Key"][len(prefix) :], item["Size"], to_ns(item.get("LastModified")))
        if not page.get("IsTruncated"):
            return
        request["ContinuationToken"] = page["NextContinuationToken"]


def _gs_pages(store: AbstractFileSystem, path: str, timeout_s: float) -> Iterator[ListedFile]:
    bucket, _, prefix = path.partition("/")
    prefix = f"{prefix}/" if prefix else ""
    fields = "nextPageToken,items(name,size,updated)"
    request: dict[str, Any] = {"prefix": prefix, "maxResults": _PAGE_KEYS, "fields": fields}
    while True:
        call = partial(store.call, "GET", "b/{}/o", bucket, json_out=True, **request)
        page: dict[str, Any] = with_retries(call, timeout_s)
        for item in page.get("items", ()):
            if not item["name"].endswith("/"):
                size, mtime_ns = int(item.get("size", -1)), to_ns(item.get("updated"))
                yield ListedFile(item["name"][len(prefix) :], size, mtime_ns)
        if not page.get("nextPageToken"):
            return
        request["pageToken"] = page["nextPageToken"]


def _by_folder(store: AbstractFileSystem, path: str, timeout_s: float) -> Iterator[ListedFile]:
    def entries(folder: str) -> Iterator[tuple[bytes, dict[str, Any]]]:
        keyed = []
        for item in with_retries(lambda: store.ls(folder, detail=True), timeout_s):
            name = item["name"].rstrip("/")
            if name != folder.rstrip("/"):  # an object that stands for the folder
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
            yield ListedFile(item["name"][below:], -1 if size is None else int(size), modified_ns(item))
        else:
            pending.pop()
