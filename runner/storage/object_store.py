"""An output's object store: puts, gets and listings that outlast throttling, 5xx answers and dropped connections.

A put is atomic: other readers see an object whole or not at all.  With a ``fence`` nothing is written any more once
another command may have the output, whatever is under way.  Drivers try again a few times by themselves; what
they give up on is tried again by ``runner.storage.retry``, until ``output.upload_timeout_s`` is over.
"""

from __future__ import annotations

import asyncio
import filecmp
import logging
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from runner.core.errors import StoreError
from runner.storage.conditional import conditions_of, is_refused, is_unknown
from runner.storage.filesystem import open_store
from runner.storage.retry import is_disk_full, is_forbidden, is_transient, with_retries
from runner.storage.whole_object import read_whole

if TYPE_CHECKING:
    from runner.core.clock import Fence
    from runner.storage.conditional import Version

log = logging.getLogger(__name__)

T = TypeVar("T")

_TELL_EVERY_S = 10.0

_AT_ONCE = 16

_LOOK_S = 5.0
"""How often it is looked, during a put that takes long, whether the output is still this command's."""

_SILENT = "no answer, or none but refusals"

_UNSEEN = "the holder's object could not be renewed, so that others may take the output"

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
        self.conditions = conditions_of(self._filesystem)
        """Conditional requests; None where the store has none, so that of two writers the later one stays."""
        self.fence: Fence | None = None
        """Ends what is written when it may no longer be; None for no end."""
        self._tell_after = 0.0
        self._threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="store")

    def put(self, path: Path, name: str, timeout_s: float | None = None) -> None:
        """Put a local file.

        Raises:
            StoreError: it could not be put in the time there is.
        """
        if not path.is_file():
            raise StoreError(f"{path} is gone, before it was put to {self.url}: rerun the same command to resume")
        self._patiently("written", timeout_s, "put_file", str(path), self._at(name))

    def put_text(self, text: str, name: str, timeout_s: float | None = None) -> None:
        """Put a small object; raises as ``put`` does."""
        self._patiently("written", timeout_s, "pipe_file", self._at(name), text.encode())

    def create(self, path: Path, name: str, timeout_s: float | None = None) -> bool:
        """Put a local file where there is nothing yet (in a store without conditions: wherever); raises as ``put``.

        Returns:
            Whether the object is this file now; False where there is another's.
        """
        if self.conditions is None:
            self.put(path, name, timeout_s)
            return True
        if not path.is_file():
            raise StoreError(f"{path} is gone, before it was put to {self.url}: rerun the same command to resume")
        try:
            self._patiently("written", timeout_s, "put_file", str(path), self._at(name), mode="create")
        except StoreError as error:
            if not is_refused(error.__cause__):
                raise
            return self.holds(name, path, timeout_s)
        return True

    def create_text(self, text: str, name: str, timeout_s: float | None = None) -> bool:
        """Put a small object where there is nothing yet; see ``create``."""
        if self.conditions is None:
            self.put_text(text, name, timeout_s)
            return True
        try:
            self._patiently("written", timeout_s, "pipe_file", self._at(name), text.encode(), mode="create")
        except StoreError as error:
            if not is_refused(error.__cause__):
                raise
            return self.read(name, timeout_s) == text.encode()  # an earlier try of ours whose answer was lost
        return True

    def holds(self, name: str, path: Path, timeout_s: float | None = None) -> bool:
        """Whether an object is what a local file is."""
        if self.size(name, timeout_s) != path.stat().st_size:
            return False
        with tempfile.TemporaryDirectory(prefix="vggish-compare-") as scratch:
            copy = Path(scratch) / "object"
            self.get(name, copy, timeout_s)
            return filecmp.cmp(path, copy, shallow=False)

    def size(self, name: str, timeout_s: float | None = None) -> int | None:
        """An object's bytes; None where there is none."""
        found = self._unless_missing("read", timeout_s, "info", self._at(name))
        return None if found is None else int(found["size"])

    def look(self, name: str, timeout_s: float | None = None) -> Version | None:
        """A small object with its version and age; None where there is none.  Of stores with conditions only."""
        assert self.conditions is not None
        found: Version | None = self._unless_missing("read", timeout_s, self.conditions.look, self._at(name))
        return found

    def replace_text(self, text: str, name: str, version: str, timeout_s: float | None = None) -> str | None:
        """Put a small object in the place of one version of it, fence or not; raises as ``put``.

        As all below of stores with conditions only.

        Returns:
            The new version; None where that other version was gone, by another's doing.
        """
        assert self.conditions is not None
        data = text.encode()
        try:
            put: str = self._patiently("held", timeout_s, self.conditions.replace, self._at(name), data, version)
        except StoreError as error:
            if not is_refused(error.__cause__) and not isinstance(error.__cause__, FileNotFoundError):
                raise
            found = self.look(name, timeout_s)
            return found.id if found is not None and found.data == data else None
        return put

    def keeps_conditions(self, name: str, text: str, timeout_s: float | None = None) -> bool:
        """Whether the store refuses what it must of an object that is there, and is ``text``."""
        conditions, at, data = self.conditions, self._at(name), text.encode()
        assert conditions is not None
        requests: tuple[Callable[[], Any], ...] = (
            lambda: self._patiently("held", timeout_s, "pipe_file", at, data, mode="create"),
            lambda: self._patiently("held", timeout_s, conditions.replace, at, data, conditions.no_version),
        )
        for request in requests:
            try:
                request()
            except StoreError as error:
                if is_refused(error.__cause__):
                    continue
                if not is_unknown(error.__cause__):
                    raise
            return False
        return True

    def remove_version(self, name: str, version: str, timeout_s: float | None = None) -> None:
        """Remove an object, if it is still that version."""
        assert self.conditions is not None
        try:
            self._patiently("held", timeout_s, self.conditions.remove, self._at(name), version)
        except StoreError as error:
            if not is_refused(error.__cause__) and not isinstance(error.__cause__, FileNotFoundError):
                raise

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
        found: bytes | None = self._unless_missing("read", timeout_s, "cat_file", self._at(name))
        return found

    def supports_server_side_copy(self, other: Store) -> bool:
        """Whether objects can be copied between the two by the store itself."""
        return type(self._filesystem) is type(other._filesystem)

    def copy(self, source: Store, name: str, to: str) -> None:
        """Have the store copy an object of its kin, of which nothing passes this machine; raises as ``put`` does."""
        self._patiently("written", None, "cp_file", source._at(name), self._at(to))

    def remove(self, name: str, timeout_s: float | None = None) -> None:
        """Remove an object, if it is there."""
        self._unless_missing("written", timeout_s, "rm_file", self._at(name))

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
        found = self._unless_missing("listed", timeout_s, method, self._at(folder), detail=True) or {}
        infos = found.values() if isinstance(found, dict) else found
        names = ((str(info["name"]).rstrip("/").removeprefix(self._root).lstrip("/"), info) for info in infos)
        return {name: None if info["type"] == "directory" else told(info) for name, info in names if name}

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}".rstrip("/")

    def _unless_missing(self, *arguments: Any, **options: Any) -> Any:
        """As ``_patiently``; None where the object is not there."""
        try:
            return self._patiently(*arguments, **options)
        except StoreError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return None
            raise

    def _patiently(
        self, done: str, timeout_s: float | None, method: str | Callable[..., Any], *arguments: Any, **options: Any
    ) -> Any:
        """Call the file system, again and again while what goes wrong may pass."""
        limit = self.timeout_s if timeout_s is None else timeout_s
        deadline = time.monotonic() + limit
        fence = self.fence if done == "written" else None
        passed: list[Exception] = []

        def failed(error: Exception) -> None:
            passed[:] = [error]
            self._tell(error)

        try:
            return with_retries(lambda: self._call(deadline, fence, method, *arguments, **options), limit, failed)
        except Exception as error:
            if is_disk_full(error):
                raise  # of this machine's disk
            if not is_transient(error):
                raise StoreError(f"{self.url} can't be {done}: {describe_error(error)}") from error
            raise StoreError(
                f"{self.url} could not be {done} for {limit:g} s ({describe_error((passed or [error])[0])}): what "
                f"was put "
                "stays; rerun the same command to resume"
            ) from error

    def _tell(self, error: Exception) -> None:
        """Say that a store is slow, now and then."""
        now = time.monotonic()
        if now >= self._tell_after:
            self._tell_after = now + _TELL_EVERY_S
            log.warning("%s: %s; retrying", self.url, describe_error(error))

    def _call(
        self, deadline: float, fence: Fence | None, method: str | Callable[..., Any], *arguments: Any, **options: Any
    ) -> Any:
        """One attempt, given up at the deadline, or when the fence says so, where the driver can be left waiting."""
        if fence is not None and fence.left() <= 0:
            raise TimeoutError(_UNSEEN)
        left = max(0.1, deadline - time.monotonic())
        if method == "get_file":
            name, path = arguments
            return read_whole(self._filesystem, name, path, left)
        if not getattr(self._filesystem, "async_impl", False):
            assert isinstance(method, str)
            return getattr(self._filesystem, method)(*arguments, **options)
        if isinstance(method, str):
            function = getattr(self._filesystem, f"_{method}")
        else:
            function = partial(method, self._filesystem)
        future = asyncio.run_coroutine_threadsafe(function(*arguments, **options), self._filesystem.loop)
        try:
            while not wait([future], max(0.1, min(deadline - time.monotonic(), _LOOK_S))).done:
                if time.monotonic() >= deadline:
                    raise TimeoutError(_SILENT)
                if fence is not None and fence.left() <= 0:
                    raise TimeoutError(_UNSEEN)
            return future.result()
        finally:
            future.cancel()


def _seen(info: Mapping[str, Any]) -> Seen:
    checksum = next((str(info[key]) for key in _CHECKSUMS if info.get(key)), None)
    return Seen(int(info["size"]), checksum, "|".join(str(info[key]) for key in _CHANGES if info.get(key)))


def describe_error(error: BaseException) -> str:
    """An error in a few words, for a message."""
    if isinstance(error, FileNotFoundError):
        return f"the bucket or object is not there ({str(error) or type(error).__name__})"
    if is_forbidden(error):
        words = " ".join(str(error).split())
        return f"no permission ({words or type(error).__name__}): check the credentials in the environment"
    if isinstance(error, StoreError) or (isinstance(error, TimeoutError) and str(error) in (_SILENT, _UNSEEN)):
        return str(error)
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
