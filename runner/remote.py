"""Reads clips out of an object store: each once, whole, ahead of its decoding, for as long as the store has hiccups.

An object is read into a file without a name (on Linux; elsewhere one that is removed afterwards), which the decoders
read like any other: memory does not grow with its length, and nothing is left of it, whatever is killed.
"""

from __future__ import annotations

import contextlib
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, TimeoutError
from typing import IO, TYPE_CHECKING, Any, TypeVar

from runner.errors import ClipError
from runner.stores import may_pass, store_of

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 5.0
_LOOK_EVERY_S = 0.2
_LONGEST_SCHEME = 16

T = TypeVar("T")
Get = Callable[["AbstractFileSystem", str, str], None]


def is_remote(path: bytes) -> bool:
    """Whether a clip's path is an object's URL: paths of files are absolute."""
    return b"://" in path[:_LONGEST_SCHEME] and not path.startswith(b"/")


def patiently(ask: Callable[[], T], timeout_s: float) -> T:
    """Ask a store until it answers, with growing, random pauses in between.

    Args:
        ask: the request; asked again when it raises, unless that is final (no such object, no permission).
        timeout_s: no try is begun after so many seconds.

    Raises:
        Exception: the last one that ``ask`` raised.
    """
    end = time.monotonic() + timeout_s
    pause = _FIRST_PAUSE_S
    while True:
        try:
            return ask()
        except Exception as error:
            if not may_pass(error) or time.monotonic() + pause > end:
                raise
        time.sleep(pause * random.uniform(0.5, 1.0))
        pause = min(2 * pause, _LONGEST_PAUSE_S)


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
        timeout_s: no try is begun after so many seconds.
        get: what reads (a part of) it into a file, given the store, the URL and the file's path; None: all of it.

    Raises:
        ClipError: ``missing``, ``unreadable``, or ``unreachable`` where the store did not give it in time.
    """
    began = time.monotonic()
    fetched = Fetched(os.path.splitext(url)[1].lower())
    try:
        store = store_of(url, timeout_s)
        patiently(lambda: (get or _get)(store, url, fetched.path), timeout_s)
    except BaseException as error:
        fetched.close()
        if not isinstance(error, Exception):
            raise
        if isinstance(error, FileNotFoundError | IsADirectoryError):
            raise ClipError("missing", f"no such object ({error})") from error
        if not may_pass(error):
            raise ClipError("unreadable", f"{type(error).__name__}: {error}") from error
        waited = time.monotonic() - began
        raise ClipError("unreachable", f"given up after {waited:.0f} s: {type(error).__name__}: {error}") from error
    return fetched


def _get(store: AbstractFileSystem, url: str, path: str) -> None:
    try:
        store.get_file(url, path)
    except OSError as error:
        if error.filename == path and error.__context__ is not None:  # gcsfs can't remove a file that has no name
            raise error.__context__ from None
        raise


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
        future = self._under_way.pop(job)
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
