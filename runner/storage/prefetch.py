"""Downloads clips from an object store ahead of their decoding, each completely, with retries.

An object goes into a file without a name (on Linux; on other systems one that is removed afterwards), which decoders
read like any other: memory does not grow with its length, and a kill leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, TimeoutError
from typing import IO, TYPE_CHECKING, Any, TypeVar

from runner.core.errors import ClipError
from runner.storage.filesystem import store_of
from runner.storage.retry import is_local_disk_full, is_transient, with_retries
from runner.storage.whole_object import download_object

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_POLL_S = 0.2

_MAX_SCHEME_BYTES = 16

T = TypeVar("T")

Reader = Callable[["AbstractFileSystem", str, str], None]
"""Reads an object, or a part of it, given its store, its URL and the path of the file to write."""


def is_remote(path: bytes) -> bool:
    """Return whether a clip's path is the URL of an object; paths of files are absolute."""
    return b"://" in path[:_MAX_SCHEME_BYTES] and not path.startswith(b"/")


class FetchedFile:
    """A temporary file with the bytes of an object; a context manager.

    Args:
        suffix: of the object, for decoders that go by it.
        in_memory: hold the file in memory, where the system can.

    Attributes:
        path: to open it by.
        suffix: of the object.
    """

    def __init__(self, suffix: str, *, in_memory: bool = False) -> None:
        self.suffix = suffix
        self._file: IO[bytes]
        if sys.platform.startswith("linux"):
            self._file = os.fdopen(os.memfd_create("clip"), "w+b") if in_memory else tempfile.TemporaryFile()  # noqa: SIM115
            self.path = f"/proc/self/fd/{self._file.fileno()}"
        else:
            self._file = tempfile.NamedTemporaryFile(suffix=suffix)  # noqa: SIM115
            self.path = self._file.name

    def write(self, data: bytes | memoryview) -> None:
        """Replace its bytes."""
        self._file.seek(0)
        self._file.write(data)
        self._file.truncate()
        self._file.flush()

    def fileno(self) -> int:
        """Return the file's descriptor."""
        return self._file.fileno()

    def __enter__(self) -> FetchedFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file, which removes it."""
        with contextlib.suppress(FileNotFoundError):  # gcsfs removes a file that it could not fill
            self._file.close()


def fetch(url: str, timeout_s: float, reader: Reader | None = None) -> FetchedFile:
    """Download an object.

    Args:
        url: its own.
        timeout_s: as in ``runner.storage.retry.with_retries``.
        reader: reads it into the file; None for all of it.

    Raises:
        ClipError: ``missing``, ``unreadable``, ``download_timeout`` where the store did not answer in time, or
            ``disk_full`` where the temporary folder has no room.
    """
    started_at = time.monotonic()
    fetched: FetchedFile | None = None
    try:
        fetched = FetchedFile(os.path.splitext(url)[1].lower())
        store, path = store_of(url, timeout_s), fetched.path
        with_retries(lambda: (reader or download_object)(store, url, path), timeout_s)
    except BaseException as error:
        if fetched is not None:
            fetched.close()
        if not isinstance(error, Exception):
            raise
        raise _clip_error(error, time.monotonic() - started_at) from error
    return fetched


def _clip_error(error: Exception, waited_s: float) -> ClipError:
    if is_local_disk_full(error):
        return ClipError("disk_full", f"{tempfile.gettempdir()} has no room for it ({error.strerror})")
    if isinstance(error, FileNotFoundError | IsADirectoryError):
        return ClipError("missing", f"no such object ({error})")
    if not is_transient(error):
        return ClipError("unreadable", f"{type(error).__name__}: {error}")
    return ClipError("download_timeout", f"gave up after {waited_s:.0f} s: {type(error).__name__}: {error}")


class Prefetcher:
    """Downloads the objects of a decode process, some ahead; used by one thread.

    Args:
        ahead: objects that are downloaded, or wait for their decoding, at a time.
        timeout_s: as in ``fetch``.
    """

    def __init__(self, ahead: int, timeout_s: float) -> None:
        self._ahead = ahead
        self._timeout_s = timeout_s
        self._threads: ThreadPoolExecutor | None = None
        self._in_progress: dict[int, Future[FetchedFile]] = {}

    def begin(self, job: int, path: bytes) -> bool:
        """Start an object's download unless it has started; return False if too many are in progress."""
        if job in self._in_progress:
            return True
        if len(self._in_progress) >= self._ahead:
            return False
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self._ahead, "fetch")
        self._in_progress[job] = self._threads.submit(fetch, os.fsdecode(path), self._timeout_s)
        return True

    def pop(self, job: int, path: bytes, while_waiting: Callable[[], Any]) -> FetchedFile:
        """Return a downloaded object; ``while_waiting`` is called a few times a second until it is complete.

        Raises:
            ClipError: as ``fetch``.
        """
        while not self.begin(job, path):  # a clip was handed back, and is requested out of turn: drop the oldest
            self._in_progress.pop(next(iter(self._in_progress))).add_done_callback(close_fetched)
        return wait_for(self._in_progress.pop(job), while_waiting)


def wait_for(future: Future[T], while_waiting: Callable[[], Any]) -> T:
    """Return the result of a future; ``while_waiting`` is called a few times a second until it is there."""
    while True:
        try:
            return future.result(timeout=_POLL_S)
        except TimeoutError:
            if future.done():
                raise
            while_waiting()


def close_fetched(future: Future[FetchedFile]) -> None:
    """Close the file of a download that nobody needs any more."""
    if not future.cancelled() and future.exception() is None:
        future.result().close()
