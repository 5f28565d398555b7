"""Partitions and merged outputs in folders."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from runner.core.errors import ConfigError
from runner.core.files import FileDigest, atomic, digest_file, flush_folder, make_folder, remove, write_atomic
from runner.core.layout import FORMAT_FOLDERS, SHARD_FOLDERS, RunLayout
from runner.output.merge.locations import UNLOCKED, Copy, Source, check_target
from runner.output.state.identity import parse_identity
from runner.output.state.journal import read_journal
from runner.output.state.locks import acquire_run_lock, release_run_lock
from runner.output.state.plan_file import read_plan
from runner.output.verify import damaged_shards, shards_with_damaged_npz

if TYPE_CHECKING:
    from runner.output.state.journal import ShardEntry
    from runner.output.state.plan_file import StoredPlan

log = logging.getLogger(__name__)

_LOCK = ".merging.lock"


class FolderSource:
    """A partition in a folder; see ``Source``.

    Args:
        folder: the run's.
    """

    npz_repair = "rerun its command"

    def __init__(self, folder: Path) -> None:
        self.name = str(folder)
        self._folder = folder
        self._layout = RunLayout(folder)
        self._state_digests = self._digest_state()

    def plan(self) -> StoredPlan | None:
        """Read plan.json."""
        return read_plan(self._folder)

    def identity(self) -> Mapping[str, str]:
        """Read identity.json."""
        try:
            return parse_identity(self._layout.identity.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    def committed(self) -> dict[int, ShardEntry]:
        """Read the journal."""
        return read_journal(self._layout.journal)[0]

    def owner(self) -> str | None:
        """Return None: ``locked`` refuses a folder that a command has locked."""
        return None

    def why_unfinished(self) -> str | None:
        """Look for clips.parquet, which a run that ended has."""
        return None if self._layout.clips.is_file() else f"it has no {RunLayout.clips}"

    def damaged_shards(self, committed: Mapping[int, ShardEntry]) -> list[int]:
        """Compare sizes and SHA-256."""
        return damaged_shards(self._folder, committed)

    def shards_lacking_npz(self, committed: Mapping[int, ShardEntry]) -> list[int]:
        """Compare sizes and SHA-256."""
        return shards_with_damaged_npz(self._folder, committed)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock of a run's command."""
        try:
            try:
                acquire_run_lock(self._folder)
            except OSError as error:
                log.warning(UNLOCKED, self.name, error)
            yield
        finally:
            release_run_lock(self._folder)

    def changed_files(self) -> list[str]:
        """Compare plan.json and the journal."""
        current = self._digest_state()
        return [name for name in current if current[name] != self._state_digests[name]]

    def local_path(self, name: str, copy: Path, expected: FileDigest | None = None) -> Path:
        """Return the partition's own file, which ``damaged_shards`` has read."""
        return self._folder / name

    def _digest_state(self) -> dict[str, FileDigest | None]:
        return {name: _digest(self._folder / name) for name in (RunLayout.plan, RunLayout.journal)}


class FolderTarget:
    """A merged output in a folder, of hard links to the partitions' files where possible; see ``Target``.

    Args:
        folder: of the merged output.
    """

    def __init__(self, folder: Path) -> None:
        self.name = str(folder)
        self._folder = folder
        self._layout = RunLayout(folder)

    def check(self, fingerprint: str) -> None:
        """Look at the folder's files."""
        names = {path.name for path in self._folder.iterdir()} if self._folder.exists() else set()
        in_progress = self._layout.merge_in_progress
        existing = in_progress.read_text(encoding="utf-8") if in_progress.name in names else None
        check_target(self.name, names - {_LOCK, f".{in_progress.name}.tmp"}, existing, fingerprint)

    @contextmanager
    def merging(self, fingerprint: str) -> Iterator[None]:
        """Hold a lock of the system's, which is free once its process is dead."""
        self.check(fingerprint)
        make_folder(self._folder)
        lock = FileLock(self._folder / _LOCK, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise ConfigError(
                f"{self.name} is locked by another merge: wait for it, or choose another folder"
            ) from None
        try:
            self.check(fingerprint)
            write_atomic(self._layout.merge_in_progress, fingerprint)
            yield
        finally:
            if not self._layout.merge_in_progress.exists():
                (self._folder / _LOCK).unlink(missing_ok=True)
            lock.release()

    def existing_sizes(self) -> Mapping[str, int]:
        """List the folders with a file a shard."""
        paths = [path for folder in SHARD_FOLDERS for path in (self._folder / folder).glob("part-*")]
        return {path.relative_to(self._folder).as_posix(): path.stat().st_size for path in paths}

    def copy_from(self, source: Source, name: str, merged_name: str, expected: FileDigest | None = None) -> None:
        """Make a hard link, or a copy where the file is on another file system or in a store."""
        target = self._folder / merged_name
        make_folder(target.parent)
        path = source.local_path(name, target, expected)
        if path == target:
            return
        target.unlink(missing_ok=True)
        try:
            os.link(path, target)
        except OSError:
            with atomic(target) as temporary:
                shutil.copyfile(path, temporary)

    def flush(self, names: Iterable[str]) -> None:
        """Flush the files' folders, as a link is on disk once its folder is."""
        for folder in {(self._folder / name).parent for name in names}:
            flush_folder(folder)

    def remove_wrong(self, source: Source, copies: Sequence[Copy]) -> list[str]:
        """Compare sizes."""
        wrong = [copy.merged_name for copy in copies if _size(self._folder / copy.merged_name) != copy.expected.bytes]
        for name in wrong:
            (self._folder / name).unlink(missing_ok=True)
        return wrong

    def writing(self, name: str) -> AbstractContextManager[Path]:
        """Yield a temporary file, which is renamed at the end."""
        return atomic(self._folder / name)

    def finish(self, merged: str) -> None:
        """Write merged.json once all links are on disk."""
        for folder in FORMAT_FOLDERS:
            if (self._folder / folder).exists():
                flush_folder(self._folder / folder)
        write_atomic(self._layout.merged, merged)
        remove(self._layout.merge_in_progress)


def _digest(path: Path) -> FileDigest | None:
    try:
        return digest_file(path)
    except OSError:
        return None


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.exists() else None
