"""Reads clips out of an object store: each once, whole, ahead of its decoding, for as long as the store has hiccups.

An object is read into a file without a name (on Linux; elsewhere one that is removed afterwards), which the decoders
read like any other: memory does not grow with its length, and nothing is left of it, whatever is killed.
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
from runner.storage.retry import is_disk_full, is_transient, with_retries
from runner.storage.whole_object import read_whole

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_LOOK_EVERY_S = 0.2
T = TypeVar("T")

_LONGEST_SCHEME = 16

Get = Callable[["AbstractFileSystem", str, str], None]


def is_remote(path: bytes) -> bool:
    """Whether a clip's path is an object's URL: paths of files are absolute."""
    return b"://" in path[:_LONGEST_SCHEME] and not path.startswith(b"/")


class Fetched:
    """An object's bytes in a file; a context manager.

    ``path`` is what to open; ``suffix`` the object's own, for decoders that go by it.  ``in_memory`` keeps them there,
    where the system can.
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
        """Make these its bytes."""
        self._file.seek(0)
        self._file.write(data)
        self._file.truncate()
        self._file.flush()

    def fileno(self) -> int:
        """The descriptor of the file."""
        return self._file.fileno()

    def __enter__(self) -> Fetched:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the bytes."""
        with contextlib.suppress(FileNotFoundError):  # gcsfs removes a file that it could not fill
            self._file.close()


def fetch(url: str, timeout_s: float, get: Get | None = None) -> Fetched:
    """Read an object.

    Args:
        url: its own.
        timeout_s: as in ``runner.storage.retry.with_retries``.
        get: what reads (a part of) it into a file, given the store, the URL and the file's path; None: all of it.

    Raises:
        ClipError: ``missing``, ``unreadable``, ``download_timeout`` where the store did not give it in time, or
            ``disk_full`` where there is no room for it in the temporary folder.
    """
    began = time.monotonic()
    fetched: Fetched | None = None
    try:
        fetched = Fetched(os.path.splitext(url)[1].lower())
        store, path = store_of(url, timeout_s), fetched.path
        with_retries(lambda: (get or read_whole)(store, url, path), timeout_s)
    except BaseException as error:
        if fetched is not None:
            fetched.close()
        if not isinstance(error, Exception):
            raise
        if is_disk_full(error):
            raise ClipError("disk_full", f"{tempfile.gettempdir()} has no room for it ({error.strerror})") from error
        if isinstance(error, FileNotFoundError | IsADirectoryError):
            raise ClipError("missing", f"no such object ({error})") from error
        if not is_transient(error):
            raise ClipError("unreadable", f"{type(error).__name__}: {error}") from error
        waited = time.monotonic() - began
        raise ClipError(
            "download_timeout", f"given up after {waited:.0f} s: {type(error).__name__}: {error}"
        ) from error
    return fetched


class FetchAhead:
    """Fetches the objects of a decode process, some of them ahead; used by one thread.

    Args:
        ahead: objects that are fetched, or wait fetched, at a time.
        timeout_s: as in ``fetch``.
    """

    def __init__(self, ahead: int, timeout_s: float) -> None:
        self._ahead = ahead
        self._timeout_s = timeout_s
        self._threads: ThreadPoolExecutor | None = None
        self._under_way: dict[int, Future[Fetched]] = {}

    def begin(self, job: int, path: bytes) -> bool:
        """Have an object fetched unless that has begun; False once as many are under way as may be."""
        if job in self._under_way:
            return True
        if len(self._under_way) >= self._ahead:
            return False
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self._ahead, "fetch")
        self._under_way[job] = self._threads.submit(fetch, os.fsdecode(path), self._timeout_s)
        return True

    def take(self, job: int, path: bytes, waiting: Callable[[], Any]) -> Fetched:
        """The object's bytes, waited for; ``waiting`` is called every now and then meanwhile.

        Raises:
            ClipError: as ``fetch`` does.
        """
        while not self.begin(job, path):  # others are ahead of it: a clip was given back, and is asked for out of turn
            self._under_way.pop(next(iter(self._under_way))).add_done_callback(_close)
        return waited_for(self._under_way.pop(job), waiting)


def waited_for(future: Future[T], waiting: Callable[[], Any]) -> T:
    """The result of a future; ``waiting`` is called every now and then until it is there."""
    while True:
        try:
            return future.result(timeout=_LOOK_EVERY_S)
        except TimeoutError:
            if future.done():
                raise
            waiting()


def _close(future: Future[Fetched]) -> None:
    if not future.cancelled() and future.exception() is None:
        future.result().close()
