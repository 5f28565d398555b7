"""The objects of an output's URL: uploads, downloads and listings.

An upload is atomic: readers see an object complete or not at all.  With a ``fence`` nothing is written once another
command may hold the output, whatever is in progress.
"""

from __future__ import annotations

import filecmp
import tempfile
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from runner.core.errors import StoreError
from runner.storage.conditional import conditions_of, is_refused, is_unsupported
from runner.storage.filesystem import open_store
from runner.storage.requests import StoreRequests

if TYPE_CHECKING:
    from runner.storage.conditional import Version
    from runner.storage.fence import Fence

T = TypeVar("T")

_THREADS = 16

_CHECKSUM_KEYS = ("crc32c", "md5Hash", "ETag")
"""Checksums of an object's bytes in the drivers' listings.

An ETag is one where the object was uploaded in one request; otherwise it may differ for the same bytes.
"""

_VERSION_KEYS = ("ETag", "etag", "generation", "LastModified", "updated", "mtime", "created")


class ObjectInfo(NamedTuple):
    """An object in a listing: its bytes, the store's checksum of them if it has one, and a mark of its version."""

    bytes: int
    checksum: str | None
    version: str


class ObjectStore:
    """The objects below a URL, by names relative to it.

    All methods raise StoreError where the store doesn't answer in time.

    Args:
        url: as the user gave it.
        timeout_s: for one object, with all tries; methods may be given another.
        key: of the configuration, for messages.

    Attributes:
        conditions: conditional requests; None where the store has none, so that the later of two writers wins.

    Raises:
        ConfigError: the URL can't be opened; see ``open_store``.
    """

    def __init__(self, url: str, timeout_s: float, key: str = "output.dir") -> None:
        self.url = url.rstrip("/")
        self.timeout_s = timeout_s
        self.key = key
        self._filesystem, root = open_store(key, self.url)
        self._root = root.rstrip("/")
        self._requests = StoreRequests(self._filesystem, self.url, timeout_s)
        self.conditions = conditions_of(self._filesystem)

    @property
    def fence(self) -> Fence | None:
        """Stops uploads and removals when it ends; None for no end."""
        return self._requests.fence

    @fence.setter
    def fence(self, fence: Fence | None) -> None:
        self._requests.fence = fence

    def put(self, path: Path, name: str, timeout_s: float | None = None) -> None:
        """Upload a file.

        Raises:
            StoreError: the file is gone, or could not be uploaded in time.
        """
        self._check_file(path)
        self._requests.call("written", timeout_s, "put_file", str(path), self._at(name))

    def put_text(self, text: str, name: str, timeout_s: float | None = None) -> None:
        """Upload a small object."""
        self._requests.call("written", timeout_s, "pipe_file", self._at(name), text.encode())

    def get(self, name: str, path: Path, timeout_s: float | None = None) -> None:
        """Download an object into a file, whose folder is made."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._requests.call("read", timeout_s, "get_file", self._at(name), str(path))

    def get_below(self, folder: str, into: Path, timeout_s: float | None = None) -> None:
        """Download all objects below a folder that are not below ``into`` in their sizes."""

        def exists(path: Path, size: int) -> bool:
            return path.exists() and path.stat().st_size == size

        sizes = self.list_recursive(folder, timeout_s)
        names = [name for name, size in sizes.items() if not exists(into / name, size)]
        self.map(lambda name: self.get(name, into / name, timeout_s), names)

    def read(self, name: str, timeout_s: float | None = None) -> bytes | None:
        """Read a small object; return None if it does not exist."""
        data: bytes | None = self._requests.call_or_none("read", timeout_s, "cat_file", self._at(name))
        return data

    def size(self, name: str, timeout_s: float | None = None) -> int | None:
        """Return an object's bytes; None if it does not exist."""
        info = self._requests.call_or_none("read", timeout_s, "info", self._at(name))
        return None if info is None else int(info["size"])

    def remove(self, name: str, timeout_s: float | None = None) -> None:
        """Remove an object, if it exists."""
        self._requests.call_or_none("written", timeout_s, "rm_file", self._at(name))

    def supports_server_side_copy(self, other: ObjectStore) -> bool:
        """Return whether the store itself can copy objects between the two."""
        return type(self._filesystem) is type(other._filesystem)

    def copy(self, source: ObjectStore, name: str, target_name: str) -> None:
        """Have the store copy an object, of which nothing passes this machine."""
        self._requests.call("written", None, "cp_file", source._at(name), self._at(target_name))

    def map(self, call: Callable[..., T], *columns: Iterable[Any]) -> list[T]:
        """Call for many objects, several at once, as ``map`` does; the first error is raised."""
        with ThreadPoolExecutor(_THREADS, "store") as threads:
            return list(threads.map(call, *columns))

    def create(self, path: Path, name: str, timeout_s: float | None = None) -> bool:
        """Upload a file unless the object exists; a store without conditional requests replaces it.

        Returns:
            Whether the object is this file now; False where it has other content.

        Raises:
            StoreError: as ``put``.
        """
        if self.conditions is None:
            self.put(path, name, timeout_s)
            return True
        self._check_file(path)
        try:
            self._requests.call("written", timeout_s, "put_file", str(path), self._at(name), mode="create")
        except StoreError as error:
            if not is_refused(error.__cause__):
                raise
            return self._equals(name, path, timeout_s)
        return True

    def create_text(self, text: str, name: str, timeout_s: float | None = None) -> bool:
        """Upload a small object unless it exists; see ``create``."""
        if self.conditions is None:
            self.put_text(text, name, timeout_s)
            return True
        try:
            self._requests.call("written", timeout_s, "pipe_file", self._at(name), text.encode(), mode="create")
        except StoreError as error:
            if not is_refused(error.__cause__):
                raise
            return self.read(name, timeout_s) == text.encode()  # an earlier try of ours whose answer was lost
        return True

    def read_version(self, name: str, timeout_s: float | None = None) -> Version | None:
        """Read a small object with its version and age; None if it does not exist.

        This method and those below need ``conditions``, and ignore the fence.
        """
        assert self.conditions is not None
        version: Version | None = self._requests.call_or_none("read", timeout_s, self.conditions.read, self._at(name))
        return version

    def replace_text(self, text: str, name: str, version_id: str, timeout_s: float | None = None) -> str | None:
        """Replace one version of a small object.

        Returns:
            The id of the new version; None if another process replaced or removed the old one.
        """
        assert self.conditions is not None
        data = text.encode()
        try:
            new_id: str = self._requests.call(
                "renewed", timeout_s, self.conditions.replace, self._at(name), data, version_id
            )
        except StoreError as error:
            if not is_refused(error.__cause__) and not isinstance(error.__cause__, FileNotFoundError):
                raise
            version = self.read_version(name, timeout_s)
            return version.id if version is not None and version.data == data else None
        return new_id

    def remove_version(self, name: str, version_id: str, timeout_s: float | None = None) -> None:
        """Remove an object, if it still has that version."""
        assert self.conditions is not None
        try:
            self._requests.call("renewed", timeout_s, self.conditions.remove, self._at(name), version_id)
        except StoreError as error:
            if not is_refused(error.__cause__) and not isinstance(error.__cause__, FileNotFoundError):
                raise

    def honors_conditions(self, name: str, text: str, timeout_s: float | None = None) -> bool:
        """Return whether the store honors conditions on an object that exists, with the content ``text``."""
        conditions, path, data = self.conditions, self._at(name), text.encode()
        assert conditions is not None
        requests: tuple[Callable[[], Any], ...] = (
            lambda: self._requests.call("renewed", timeout_s, "pipe_file", path, data, mode="create"),
            lambda: self._requests.call("renewed", timeout_s, conditions.replace, path, data, conditions.no_version),
        )
        for request in requests:
            try:
                request()
            except StoreError as error:
                if is_refused(error.__cause__):
                    continue
                if not is_unsupported(error.__cause__):
                    raise
            return False
        return True

    def list_folder(self, folder: str = "") -> dict[str, int | None]:
        """List right below the URL, or a folder of it: objects with their bytes, folders with None."""
        return dict(self._list("ls", folder, None, _size))

    def list_recursive(self, folder: str, timeout_s: float | None = None) -> dict[str, int]:
        """List all objects below a folder with their bytes."""
        return self._list("find", folder, timeout_s, _size)

    def info(self, folder: str) -> dict[str, ObjectInfo | None]:
        """List right below a folder: objects with their infos, folders with None."""
        return self._list("ls", folder, None, _object_info)

    def info_recursive(self, folder: str) -> dict[str, ObjectInfo]:
        """List all objects below a folder with their infos."""
        return self._list("find", folder, None, _object_info)

    def _list(self, method: str, folder: str, timeout_s: float | None, convert: Callable[[Any], Any]) -> dict[str, Any]:
        listed = self._requests.call_or_none("listed", timeout_s, method, self._at(folder), detail=True) or {}
        infos = listed.values() if isinstance(listed, dict) else listed
        names = ((str(info["name"]).rstrip("/").removeprefix(self._root).lstrip("/"), info) for info in infos)
        return {name: None if info["type"] == "directory" else convert(info) for name, info in names if name}

    def _at(self, name: str) -> str:
        """Return the path of an object in the driver's file system."""
        return f"{self._root}/{name}".rstrip("/")

    def _check_file(self, path: Path) -> None:
        if not path.is_file():
            raise StoreError(f"{path} is gone before its upload to {self.url}: rerun the same command to resume")

    def _equals(self, name: str, path: Path, timeout_s: float | None) -> bool:
        """Return whether an object has the content of a file."""
        if self.size(name, timeout_s) != path.stat().st_size:
            return False
        with tempfile.TemporaryDirectory(prefix="vggish-compare-") as temporary:
            copy = Path(temporary) / "object"
            self.get(name, copy, timeout_s)
            return filecmp.cmp(path, copy, shallow=False)


def _size(info: Mapping[str, Any]) -> int:
    return int(info["size"])


def _object_info(info: Mapping[str, Any]) -> ObjectInfo:
    checksum = next((str(info[key]) for key in _CHECKSUM_KEYS if info.get(key)), None)
    return ObjectInfo(int(info["size"]), checksum, "|".join(str(info[key]) for key in _VERSION_KEYS if info.get(key)))
