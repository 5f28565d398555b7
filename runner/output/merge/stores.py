"""Partitions and merged outputs in object stores.

A partition's files are checked by listing their names and sizes; their SHA-256 where they are downloaded.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from runner.contract.files import parse_status
from runner.core.errors import StoreError
from runner.core.files import FileDigest, atomic, digest_file
from runner.core.layout import FORMAT_METADATA, SHARD_FOLDERS, RunLayout
from runner.output.merge.locations import UNLOCKED, Copy, Source, check_target
from runner.output.remote.commits import is_complete, read_commits
from runner.output.state.identity import parse_identity
from runner.output.state.plan_file import parse_plan
from runner.output.verify import npz_names
from runner.storage.lease import Lease, check_lease, read_owner
from runner.storage.object_store import ObjectStore

if TYPE_CHECKING:
    from runner.output.state.journal import ShardEntry
    from runner.output.state.plan_file import StoredPlan
    from runner.storage.object_store import ObjectInfo

log = logging.getLogger(__name__)

_TEMPORARY_PREFIX = "vggish-merge-"


class StoreSource:
    """A partition at a URL, whose state is read once; see ``Source``.

    Args:
        url: the run's output.dir.
        timeout_s: for one object, with all tries.

    Attributes:
        store: of the partition.
    """

    npz_repair = f"remove their objects {RunLayout.commits}/shard-NNNNN.json, and rerun its command"

    def __init__(self, url: str, timeout_s: float) -> None:
        self.store = ObjectStore(url, timeout_s, "PART")
        self.name = self.store.url
        self._listed = self._list()
        self._plan_id = ""

    def plan(self) -> StoredPlan | None:
        """Read plan.json."""
        text = self.store.read(RunLayout.plan)
        if text is None:
            return None
        plan = parse_plan(f"{self.name}/{RunLayout.plan}", text)
        self._plan_id = plan.id
        return plan

    def identity(self) -> Mapping[str, str]:
        """Read identity.json."""
        try:
            return parse_identity(self.store.read(RunLayout.identity) or b"{}")
        except ValueError:
            return {}

    def committed(self) -> dict[int, ShardEntry]:
        """Read the commit objects of the plan, which ``plan`` has read before."""
        commits = read_commits(self.store, self._listed)
        return {n: entry for n, entry in commits.items() if entry is not None and entry.plan_id == self._plan_id}

    def owner(self) -> str | None:
        """Read the lease."""
        owner = read_owner(self.store)
        return str(owner) if owner is not None and owner.is_alive(self.store) else None

    def why_unfinished(self) -> str | None:
        """Look for the ``finished`` of result.json, which is uploaded last."""
        status = parse_status(self.store.read(RunLayout.result))
        if status == "finished":
            return None
        return f"its {RunLayout.result} says {status}" if status else f"it has no {RunLayout.result}"

    def damaged_shards(self, committed: Mapping[int, ShardEntry]) -> list[int]:
        """Compare the listed sizes."""
        present = {name: info.bytes for name, info in self._listed.items()}
        return [number for number, entry in committed.items() if not is_complete(entry, present)]

    def shards_lacking_npz(self, committed: Mapping[int, ShardEntry]) -> list[int]:
        """List the folders of npz files.

        Shards are ranges of a sorted list, so that consecutive ones share most folders: only the last ones' listings
        are kept.
        """
        lacking = []
        listed: dict[str, set[str]] = {}
        with tempfile.TemporaryDirectory(prefix=_TEMPORARY_PREFIX) as temporary:
            for entry in committed.values():
                clips = entry.clips_file
                names = npz_names(self.local_path(clips, Path(temporary) / "clips.parquet", entry.files[clips]))
                folders = {name.rpartition("/")[0] for name in names}
                new = sorted(folders - listed.keys())
                listed = {folder: known for folder, known in listed.items() if folder in folders}
                listed |= zip(new, map(set, self.store.map(self.store.list_folder, new)), strict=True)
                if not all(name in listed[name.rpartition("/")[0]] for name in names):
                    lacking.append(entry.shard)
        return lacking

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lease of a run's command."""
        lease = Lease(self.store)
        try:
            try:
                lease.acquire()
                lease.confirm()
            except StoreError as error:
                log.warning(UNLOCKED, self.name, error)
            yield
        finally:
            lease.release()

    def changed_files(self) -> list[str]:
        """Compare the listings; npz files are too many to list."""
        current, before = self._list(), self._listed
        return sorted(name for name in current.keys() | before.keys() if current.get(name) != before.get(name))

    def local_path(self, name: str, copy: Path, expected: FileDigest | None = None) -> Path:
        """Download the object."""
        copy.parent.mkdir(parents=True, exist_ok=True)
        with atomic(copy) as temporary:
            self.store.get(name, temporary)
            if expected is not None and digest_file(temporary) != expected:
                raise StoreError(
                    f"{self.name}/{name} has other content than was written: remove it, and rerun that run's command"
                )
        return copy

    def checksum(self, name: str) -> str | None:
        """Return the store's own checksum of an object; None where the listing has none."""
        info = self._listed.get(name)
        return None if info is None else info.checksum

    def _list(self) -> dict[str, ObjectInfo]:
        folders = (RunLayout.state, *SHARD_FOLDERS)
        listed = {name: info for folder in folders for name, info in self.store.info_recursive(folder).items()}
        listed.pop(RunLayout.lease, None)
        return listed


class StoreTarget:
    """A merged output at a URL: copied by the store itself where it can, uploaded otherwise; see ``Target``.

    Args:
        url: of the merged output.
        timeout_s: for one object, with all tries.
    """

    def __init__(self, url: str, timeout_s: float) -> None:
        self._store = ObjectStore(url, timeout_s, "--output")
        self.name = self._store.url
        self._lease = Lease(self._store)

    def check(self, fingerprint: str) -> None:
        """List the URL."""
        names = {*self._store.list_folder(), *self._store.list_recursive(RunLayout.state)}
        names -= {RunLayout.state, RunLayout.lease}
        in_progress = RunLayout.merge_in_progress
        existing = self._store.read(in_progress) if in_progress in names else None
        check_target(self.name, names, None if existing is None else existing.decode(errors="replace"), fingerprint)

    @contextmanager
    def merging(self, fingerprint: str) -> Iterator[None]:
        """Hold a lease, as on a run's output."""
        self.check(fingerprint)
        try:
            self._lease.acquire()
            self._lease.confirm()
            self.check(fingerprint)
            self._store.put_text(fingerprint, RunLayout.merge_in_progress)
            yield
        finally:
            self._lease.release()

    def existing_sizes(self) -> Mapping[str, int]:
        """List the folders with a file a shard."""
        sizes = (self._store.list_recursive(folder) for folder in SHARD_FOLDERS)
        return {name: size for listed in sizes for name, size in listed.items()}

    def copy_from(self, source: Source, name: str, merged_name: str, expected: FileDigest | None = None) -> None:
        """Have the store copy the object, or upload the file; an object of another store by way of this machine."""
        if store := self._copies_from(source):
            self._store.copy(store, name, merged_name)
            return
        with tempfile.TemporaryDirectory(prefix=_TEMPORARY_PREFIX) as temporary:
            self._store.put(source.local_path(name, Path(temporary) / "object", expected), merged_name)

    def flush(self, names: Iterable[str]) -> None:
        """Do nothing: an object is durable once it is uploaded."""

    def remove_wrong(self, source: Source, copies: Sequence[Copy]) -> list[str]:
        """Compare sizes and, for the store's own copies, checksums; where these differ, read the copy."""
        copied_by_store = self._copies_from(source)

        def is_wrong(copy: Copy) -> bool:
            info = self._listed.get(copy.merged_name)
            if info is None or info.bytes != copy.expected.bytes:
                return True
            if copied_by_store is None or not isinstance(source, StoreSource):
                return False
            return source.checksum(copy.name) != info.checksum and not self._has_content(copy)

        is_copy_wrong = self._store.map(is_wrong, copies)
        wrong = [copy.merged_name for copy, is_so in zip(copies, is_copy_wrong, strict=True) if is_so]
        self._store.map(self._store.remove, wrong)
        if copied_by_store is not None:
            self._repair_npz(copied_by_store)
        return wrong

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """Yield a temporary file, which is uploaded at the end."""
        with tempfile.TemporaryDirectory(prefix=_TEMPORARY_PREFIX) as temporary:
            yield Path(temporary) / name
            self._store.put(Path(temporary) / name, name)

    def finish(self, merged: str) -> None:
        """Write merged.json while the lease is held."""
        check_lease(self._store, self._lease.token)
        self._store.put_text(merged, RunLayout.merged)
        self._store.remove(RunLayout.merge_in_progress)

    def _copies_from(self, source: Source) -> ObjectStore | None:
        """Return the partition's store if this one can copy its objects by itself."""
        if isinstance(source, StoreSource) and self._store.supports_server_side_copy(source.store):
            return source.store
        return None

    @cached_property
    def _listed(self) -> Mapping[str, ObjectInfo]:
        infos = (self._store.info_recursive(folder) for folder in SHARD_FOLDERS)
        return {name: info for listed in infos for name, info in listed.items()}

    def _has_content(self, copy: Copy) -> bool:
        with tempfile.TemporaryDirectory(prefix=_TEMPORARY_PREFIX) as temporary:
            path = Path(temporary) / "object"
            self._store.get(copy.merged_name, path)
            return digest_file(path) == copy.expected

    def _repair_npz(self, source: ObjectStore) -> None:
        """Copy npz files again whose copies differ from the partition's, folder by folder."""
        folders = [RunLayout.npz]
        while folders:
            folder = folders.pop()
            ours, theirs = self._store.info(folder), source.info(folder)
            folders += [name for name, info in theirs.items() if info is None]
            for name, info in theirs.items():
                copy = ours.get(name)
                if info is None or copy is None or copy[:2] == info[:2] or name in FORMAT_METADATA:
                    continue
                if self._store.read(name) != source.read(name):
                    log.warning("%s/%s differs from %s/%s: copying it again", self.name, name, source.url, name)
                    self._store.copy(source, name, name)
                    if self._store.read(name) != source.read(name):
                        raise StoreError(
                            f"{self.name}/{name} differs from {source.url}/{name}: remove it, and rerun the command"
                        )
