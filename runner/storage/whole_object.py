"""Reads an object into a file: whole, and all of it from one version of the object.

s3fs resumes a broken download by asking for the rest of whatever the object is by then, and so does the Hub's driver:
if it was replaced meanwhile, that is the beginning of one and the end of another.  Here a download that breaks off has
failed, and is begun anew by who asked (``runner.storage.retry``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_CHUNK = 1 << 16


def read_whole(store: AbstractFileSystem, name: str, path: str, timeout_s: float | None = None) -> None:
    """Make one attempt at reading an object.

    Args:
        store: the driver.
        name: the object's URL or its path in the store.
        path: the file to fill, which may hold what an earlier attempt left.
        timeout_s: when to give up, where the driver can be left waiting; None: when the driver does.

    Raises:
        Exception: what the driver raised, or the disk.
        ConnectionError: the object was replaced while it was read.
    """
    kinds = protocols_of(store)
    if "s3" in kinds:
        _wait(store, _read_s3, timeout_s, name, path)
    elif kinds & {"gs", "gcs"}:  # which begins anew by itself
        _read_gs(store, name, path, timeout_s)
    else:
        before = store.ukey(name)
        store.get_file(name, path)
        if store.ukey(name) != before:
            raise ConnectionError(f"{name} was replaced while it was read")


def protocols_of(store: AbstractFileSystem) -> set[str]:
    """The schemes of a driver's URLs."""
    return {store.protocol} if isinstance(store.protocol, str) else set(store.protocol)


def _wait(store: AbstractFileSystem, function: Any, timeout_s: float | None, *arguments: str) -> None:
    from fsspec.asyn import sync

    sync(store.loop, function, store, *arguments, timeout=timeout_s)


async def _read_s3(store: Any, name: str, path: str) -> None:
    bucket, key, version = store.split_path(name)
    which = {"Bucket": bucket, "Key": key} | ({"VersionId": version} if version else {})
    answer = await store._call_s3("get_object", **store.req_kw, **which)
    body = answer["Body"]
    try:
        with open(path, "wb") as file:
            while data := await body.read(_CHUNK):  # at the end it looks whether all that was announced has come
                file.write(data)
    finally:
        body.close()


def _read_gs(store: AbstractFileSystem, name: str, path: str, timeout_s: float | None) -> None:
    try:
        _wait(store, type(store)._get_file, timeout_s, name, path)
    except OSError as error:
        if error.filename == path and error.__context__ is not None:  # it can't remove a file that has no name
            raise error.__context__ from None
        raise
