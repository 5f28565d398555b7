"""Downloads an object completely, from a single version of it.

s3fs resumes a broken download by requesting the rest of the present object, and so does the Hub's driver: if it was
replaced in between, the file would begin with one version and end with another.  Here a broken download fails, and the
caller starts another (``runner.storage.retry``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from runner.storage.driver import call_driver

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_BLOCK_BYTES = 1 << 16


def download_object(store: AbstractFileSystem, name: str, path: str, deadline: float | None = None) -> None:
    """Try once to download an object.

    Args:
        store: the driver's file system.
        name: the object's URL, or its path in the store.
        path: the file to write, in place of what an earlier try left.
        deadline: by ``time.monotonic``, where the driver can be abandoned; None for the driver's own time limits.

    Raises:
        Exception: of the driver, or of the disk.
        ConnectionError: the object was replaced during the download.
    """
    protocols = protocols_of(store)
    if "s3" in protocols:
        call_driver(store, _read_s3, name, path, deadline=deadline)
    elif protocols & {"gs", "gcs"}:
        _read_gs(store, name, path, deadline)
    else:
        version = store.ukey(name)
        store.get_file(name, path)
        if store.ukey(name) != version:
            raise ConnectionError(f"{name} was replaced during its download")


def protocols_of(store: AbstractFileSystem) -> set[str]:
    """Return the schemes of a driver's URLs."""
    return {store.protocol} if isinstance(store.protocol, str) else set(store.protocol)


async def _read_s3(store: Any, name: str, path: str) -> None:
    bucket, key, version_id = store.split_path(name)
    request = {"Bucket": bucket, "Key": key} | ({"VersionId": version_id} if version_id else {})
    answer = await store._call_s3("get_object", **store.req_kw, **request)
    body = answer["Body"]
    try:
        with open(path, "wb") as file:
            while data := await body.read(_BLOCK_BYTES):  # at its end it raises if less came than was announced
                file.write(data)
    finally:
        body.close()


def _read_gs(store: AbstractFileSystem, name: str, path: str, deadline: float | None) -> None:
    """Download by gcsfs, which restarts a broken download by itself."""
    try:
        call_driver(store, "get_file", name, path, deadline=deadline)
    except OSError as error:
        if error.filename == path and error.__context__ is not None:  # it failed to remove a file without a name
            raise error.__context__ from None
        raise
