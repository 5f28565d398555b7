"""An output's object store: puts, gets and listings that outlast throttling, 5xx answers and dropped connections.

A put is atomic: other readers see an object whole or not at all.  Drivers try again a few times by themselves; what
they give up on is tried again by ``runner.retry``, until ``output.put_timeout_s`` is over.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from runner.errors import StoreError
from runner.retry import is_disk_full, is_forbidden, may_pass, patiently
from runner.stores import open_store
from runner.whole_object import read_whole

log = logging.getLogger(__name__)

T = TypeVar("T")

_TELL_EVERY_S = 10.0
_AT_ONCE = 16
_CHECKSUMS = ("crc32c", "md5Hash", "ETag")
"""What drivers call checksums of an object's bytes, in their listings.

An ETag is one where an object was put at once; else it may differ for the same bytes.
"""
_CHANGES = ("ETag", "etag", "generation", "LastModified", "updated", "mtime", "created")


class Seen(NamedTuple):
    """What a listing tells of an object: ``bytes``, the store's checksum of them, and a mark of its last change."""

    bytes: int
    checksum: str | None
    changed: str


def _size(info: Mapping[str, Any]) -> int:
    return int(info["size"])


class Store:
    """The objects below an output's URL, by names relative to it.

    Args:
        url: as the user gave it.
        timeout_s: how long one object may take, with all its attempts.
        key: where the user gave it, for messages.

    Raises:
        ConfigError: the URL can't be opened; see ``open_store``.
    """

    def __init__(self, url: str, timeout_s: float, key: str = "output.dir") -> None:
        self.url = url.rstrip("/")
        self.timeout_s = timeout_s
        self.key = key
        self._filesystem, root = open_store(key, self.url)
        self._root = root.rstrip("/")
        self._tell_after = 0.0
        self._threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="store")

    def put(self, path: Path, name: str, timeout_s: float | None = None) -> None:
        """Put a local file.

        Raises:
            StoreError: it could not be put in the time there is.
        """
        if not path.is_file():
            raise StoreError(f"{path} is gone, before it was put to {self.url}: run the same command again to go on")
        self._patiently("written", timeout_s, "put_file", str(path), self._at(name))

    def put_text(self, text: str, name: str, timeout_s: float | None = None) -> None:
        """Put a small object; raises as ``put`` does."""
        self._patiently("written", timeout_s, "pipe_file", self._at(name), text.encode())

    def get(self, name: str, path: Path, timeout_s: float | None = None) -> None:
        """Get an object into a local file; raises StoreError."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._patiently("read", timeout_s, "get_file", self._at(name), str(path))

    def get_below(self, folder: str, into: Path, timeout_s: float | None = None) -> None:
        """Get all objects below a folder that are not below the local folder ``into`` already; raises StoreError."""

        def is_there(path: Path, size: int) -> bool:
            return path.exists() and path.stat().st_size == size

        names = [name for name, size in self.sizes(folder, timeout_s).items() if not is_there(into / name, size)]
        self.each(lambda name: self.get(name, into / name, timeout_s), names)

    def read(self, name: str, timeout_s: float | None = None) -> bytes | None:
        """A small object; None where there is none."""
        try:
            found: bytes = self._patiently("read", timeout_s, "cat_file", self._at(name))
        except StoreError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return None
            raise
        return found

    def is_kin(self, other: Store) -> bool:
        """Whether objects can be copied between the two by the store itself."""
        return type(self._filesystem) is type(other._filesystem)

    def copy(self, source: Store, name: str, to: str) -> None:
        """Have the store copy an object of its kin, of which nothing passes this machine; raises as ``put`` does."""
        self._patiently("written", None, "cp_file", source._at(name), self._at(to))

    def remove(self, name: str, timeout_s: float | None = None) -> None:
        """Remove an object, if it is there."""
        try:
            self._patiently("written", timeout_s, "rm_file", self._at(name))
        except StoreError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise

    def sizes(self, folder: str, timeout_s: float | None = None) -> dict[str, int]:
        """The bytes of every object below a folder, by name."""
        return self._listed("find", folder, timeout_s)

    def seen(self, folder: str, timeout_s: float | None = None) -> dict[str, Seen]:
        """What a listing tells of every object below a folder, by name."""
        return self._listed("find", folder, timeout_s, _seen)

    def seen_at(self, folder: str) -> dict[str, Seen | None]:
        """As ``top``, with what the listing tells of objects."""
        return self._listed("ls", folder, None, _seen)

    def top(self, folder: str = "") -> dict[str, int | None]:
        """What is right below the URL, or below a folder there: objects with their bytes, folders with None."""
        return dict(self._listed("ls", folder))

    def each(self, call: Callable[..., T], *columns: Iterable[Any]) -> list[T]:
        """``call`` for many objects, several at once, as ``map`` does; the first error is raised."""
        return list(self._threads.map(call, *columns))

    def _listed(
        self, method: str, folder: str, timeout_s: float | None = None, told: Callable[[Any], Any] = _size
    ) -> dict[str, Any]:
        try:
            found = self._patiently("listed", timeout_s, method, self._at(folder), detail=True)
        except StoreError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return {}
            raise
        infos = found.values() if isinstance(found, dict) else found
        names = ((str(info["name"]).rstrip("/").removeprefix(self._root).lstrip("/"), info) for info in infos)
        return {name: None if info["type"] == "directory" else told(info) for name, info in names if name}

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}".rstrip("/")

    def _patiently(self, done: str, timeout_s: float | None, method: str, *arguments: Any, **options: Any) -> Any:
        """Call the file system, again and again while what goes wrong may pass."""
        limit = self.timeout_s if timeout_s is None else timeout_s
        deadline = time.monotonic() + limit
        passed: list[Exception] = []

        def failed(error: Exception) -> None:
            passed[:] = [error]
            self._tell(error)

        try:
            return patiently(lambda: self._call(deadline, method, *arguments, **options), limit, failed)
        except Exception as error:
            if is_disk_full(error):
                raise  # of this machine's disk
            if not may_pass(error):
                raise StoreError(f"{self.url} can't be {done}: {_words(error)}") from error
            raise StoreError(
                f"{self.url} could not be {done} for {limit:g} s ({_words((passed or [error])[0])}): what was put "
                "stays; run the same command again to go on"
            ) from error

    def _tell(self, error: Exception) -> None:
        """Say that a store is slow, now and then."""
        now = time.monotonic()
        if now >= self._tell_after:
            self._tell_after = now + _TELL_EVERY_S
            log.warning("%s: %s; it is tried again", self.url, _words(error))

    def _call(self, deadline: float, method: str, *arguments: Any, **options: Any) -> Any:
        """One attempt, given up at the deadline where the driver can be left waiting."""
        left = max(0.1, deadline - time.monotonic())
        if method == "get_file":
            name, path = arguments
            return read_whole(self._filesystem, name, path, left)
        if not getattr(self._filesystem, "async_impl", False):
            return getattr(self._filesystem, method)(*arguments, **options)
        from fsspec.asyn import sync

        function = getattr(self._filesystem, f"_{method}")
        return sync(self._filesystem.loop, function, *arguments, timeout=left, **options)


def _seen(info: Mapping[str, Any]) -> Seen:
    checksum = next((str(info[key]) for key in _CHECKSUMS if info.get(key)), None)
    return Seen(int(info["size"]), checksum, "|".join(str(info[key]) for key in _CHANGES if info.get(key)))


def _words(error: BaseException) -> str:
    """An error in a few words, for a message."""
    if isinstance(error, FileNotFoundError):
        return f"the bucket or object is not there ({str(error) or type(error).__name__})"
    if is_forbidden(error):
        words = " ".join(str(error).split())
        return f"no permission ({words or type(error).__name__}): check the credentials in the environment"
    if type(error).__name__ == "FSTimeoutError":
        return "no answer, or none but refusals"
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
