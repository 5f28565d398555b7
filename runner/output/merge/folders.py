"""Where the parts that ``vggish-runner merge`` takes lie, and where the whole is put: folders here, URLs in
``merge_store``.

A whole that is not finished has ``merge_in_progress.json``, which says what it is made of: only a merge of the same
goes on.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from filelock import FileLock, Timeout

from runner.core.errors import ConfigError
from runner.core.files import atomic, flush_folder, make_folder, remove, write_atomic
from runner.core.layout import CLIPS, EMBEDDINGS, FOLDERS, IDENTITY, JOURNAL, MERGED, MERGING, PLAN, STATE, TFRECORD
from runner.output.state.journal import read_journal
from runner.output.state.locks import acquire_run_lock, release
from runner.output.state.plan import read_plan
from runner.output.verify import damaged_shards, shards_without_npz

if TYPE_CHECKING:
    from runner.output.state.journal import ShardEntry

log = logging.getLogger(__name__)

UNHELD = "%s can't be held (%s): see to it that no command takes it up while it is merged"

_LOCK = ".merging.lock"


class Source(Protocol):
    """Where a part lies.  Names are relative to the run's folder, as in the journal."""

    name: str
    """What a person is told of it."""
    redo: str
    """What to do that shards are done again whose npz files are missing."""

    def plan(self) -> Mapping[str, Any] | None:
        """Its plan.json; None where there is none.  Raises ConfigError if it can't be read."""
        ...

    def identity(self) -> Mapping[str, Any]:
        """What its numbers were made with; empty where that can't be read."""
        ...

    def done(self) -> dict[int, ShardEntry]:
        """Its shards that are done."""
        ...

    def holder(self) -> str | None:
        """The living command that has it, where that can be told."""
        ...

    def unfinished(self) -> str | None:
        """Why its run is not finished though its shards may be done; None if it is."""
        ...

    def damaged(self, done: Mapping[int, ShardEntry]) -> list[int]:
        """The shards of which a file is not there, or not what was written; npz files, which none lists, aside."""
        ...

    def without_npz(self, done: Mapping[int, ShardEntry]) -> list[int]:
        """The shards of which a clip's npz is not there; their parts of clips.parquet must be."""
        ...

    def held(self) -> AbstractContextManager[None]:
        """Have it for this command, so that no other takes it up; where it may not be written to, it is as it is.

        Raises:
            ConfigError: another command has it.
        """
        ...

    def changed(self) -> list[str]:
        """The names of its files that are not what they were when it was first looked at, as far as that is seen."""
        ...

    def path(self, name: str, fetched: Path, described: tuple[int, str] | None = None) -> Path:
        """A file as one of this machine: its own where it is one, else a copy at ``fetched``.

        Args:
            name: of the file.
            fetched: where a copy may be put, whole or not at all.
            described: the bytes and sha256 that a copy must have; None where they are not known.

        Raises:
            StoreError: it can't be had, or is not what was written.
        """
        ...


class Target(Protocol):
    """Where the whole is put."""

    name: str
    """What a person is told of it."""

    def check(self, marker: str) -> None:
        """Whether what ``marker`` says may be put there; raises ConfigError."""
        ...

    def under_way(self, marker: str) -> AbstractContextManager[None]:
        """Have it for this command, to put what ``marker`` says there.

        Raises:
            ConfigError: another command has it, or it holds something else.
        """
        ...

    def sizes(self) -> Mapping[str, int]:
        """The bytes of the files of shards that are there, by name: an earlier command's, which was stopped."""
        ...

    def take(self, source: Source, name: str, to: str, described: tuple[int, str] | None = None) -> None:
        """Have a part's file as ``to``, whole or not at all; see ``Source.path``."""
        ...

    def settle(self, names: Iterable[str]) -> None:
        """Have files that were taken there for certain, before what tells of them is taken."""
        ...

    def wrong(self, source: Source, taken: Mapping[str, tuple[str, tuple[int, str]]]) -> list[str]:
        """Of files that were taken those that are not what the part has, by the whole's names: they are removed.

        npz files that a store copied wrongly are copied anew.

        Args:
            source: the part.
            taken: by the part's name for a file, the whole's, and the bytes and sha256 that it must have.

        Raises:
            StoreError: the store does not give or copy what it should.
        """
        ...

    def writing(self, name: str) -> AbstractContextManager[Path]:
        """The file of this machine to write, which becomes ``name``."""
        ...

    def finish(self, merged: str) -> None:
        """Put merged.json; the whole is there."""
        ...


class FolderSource:
    """A part in a folder.

    Args:
        folder: the run's.
    """

    redo = "run it again"

    def __init__(self, folder: Path) -> None:
        self.name = str(folder)
        self.folder = folder
        self._before = self._file_stats()

    def plan(self) -> Mapping[str, Any] | None:
        """See ``Source``, as of all below."""
        return read_plan(self.folder)

    def identity(self) -> Mapping[str, Any]:
        """From identity.json."""
        try:
            found: dict[str, Any] = json.loads((self.folder / STATE / IDENTITY).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found

    def done(self) -> dict[int, ShardEntry]:
        """From the journal."""
        return read_journal(self.folder / STATE / JOURNAL)[0]

    def holder(self) -> str | None:
        """Nobody, as it is the journal that counts."""
        return None

    def unfinished(self) -> str | None:
        """A run that ended has clips.parquet."""
        return None if (self.folder / CLIPS).is_file() else f"it has no {CLIPS}"

    def damaged(self, done: Mapping[int, ShardEntry]) -> list[int]:
        """By size and SHA-256."""
        return damaged_shards(self.folder, done)

    def without_npz(self, done: Mapping[int, ShardEntry]) -> list[int]:
        """By looking for each."""
        return shards_without_npz(self.folder, done)

    @contextmanager
    def held(self) -> Iterator[None]:
        """By the lock of a run's command."""
        try:
            try:
                acquire_run_lock(self.folder)
            except OSError as error:
                log.warning(UNHELD, self.name, error)
            yield
        finally:
            release(self.folder)

    def changed(self) -> list[str]:
        """By plan and journal."""
        now = self._file_stats()
        return [name for name in now if now[name] != self._before[name]]

    def _file_stats(self) -> dict[str, bytes | None]:
        return {name: _digest(self.folder / STATE / name) for name in (PLAN, JOURNAL)}

    def path(self, name: str, fetched: Path, described: tuple[int, str] | None = None) -> Path:
        """Its own file, which was looked at by ``damaged``."""
        return self.folder / name


class FolderTarget:
    """The whole in a folder; hard links to the parts' files where possible.

    Args:
        folder: the whole's.
    """

    def __init__(self, folder: Path) -> None:
        self.name = str(folder)
        self._folder = folder

    @contextmanager
    def under_way(self, marker: str) -> Iterator[None]:
        """Locked, by the system's lock: that of a dead command is free."""
        self.check(marker)
        make_folder(self._folder)
        lock = FileLock(self._folder / _LOCK, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise ConfigError(f"{self.name} is in use by another merge: wait for it, or name another folder") from None
        try:
            self.check(marker)
            write_atomic(self._folder / MERGING, marker)
            yield
        finally:
            if not (self._folder / MERGING).exists():
                (self._folder / _LOCK).unlink(missing_ok=True)
            lock.release()

    def sizes(self) -> Mapping[str, int]:
        """Of what lies in embeddings/ and tfrecord/."""
        paths = [path for folder in (EMBEDDINGS, TFRECORD) for path in (self._folder / folder).glob("part-*")]
        return {path.relative_to(self._folder).as_posix(): path.stat().st_size for path in paths}

    def take(self, source: Source, name: str, to: str, described: tuple[int, str] | None = None) -> None:
        """A hard link, or a copy where the file is on another file system or in a store."""
        target = self._folder / to
        make_folder(target.parent)
        own = source.path(name, target, described)
        if own == target:
            return
        target.unlink(missing_ok=True)
        try:
            os.link(own, target)
        except OSError:
            with atomic(target) as temporary:
                shutil.copyfile(own, temporary)

    def settle(self, names: Iterable[str]) -> None:
        """Flush their folders: a link is on disk when its folder is."""
        for folder in {(self._folder / name).parent for name in names}:
            flush_folder(folder)

    def wrong(self, source: Source, taken: Mapping[str, tuple[str, tuple[int, str]]]) -> list[str]:
        """By size."""
        found = [to for to, (size, _) in taken.values() if _size(self._folder / to) != size]
        for name in found:
            (self._folder / name).unlink(missing_ok=True)
        return found

    def writing(self, name: str) -> AbstractContextManager[Path]:
        """A temporary file, renamed at the end."""
        return atomic(self._folder / name)

    def finish(self, merged: str) -> None:
        """merged.json comes, once all links are on disk, and merge_in_progress.json goes."""
        for folder in FOLDERS:
            if (self._folder / folder).exists():
                flush_folder(self._folder / folder)
        write_atomic(self._folder / MERGED, merged)
        remove(self._folder / MERGING)

    def check(self, marker: str) -> None:
        """It is free, or has an unfinished merge of the same."""
        names = {path.name for path in self._folder.iterdir()} if self._folder.exists() else set()
        found = (self._folder / MERGING).read_text(encoding="utf-8") if MERGING in names else None
        check_target(self.name, names - {_LOCK, f".{MERGING}.tmp"}, found, marker)


def _digest(path: Path) -> bytes | None:
    try:
        return hashlib.sha256(path.read_bytes()).digest()
    except OSError:
        return None


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.exists() else None


def merge_fingerprint(names: Sequence[str], content: Iterable[str]) -> str:
    """What merge_in_progress.json says: the parts by name, for a person, and a digest of what they hold."""
    digest = hashlib.sha256()
    for line in content:
        digest.update(line.encode() + b"\n")
    return json.dumps({"parts": list(names), "digest": digest.hexdigest()}, indent=2)


def check_target(place: str, names: set[str], found: str | None, marker: str) -> None:
    """Whether the whole may be put at a place.

    Args:
        place: for messages.
        names: of all that is there.
        found: its merge_in_progress.json, if there is one.
        marker: that of this merge.

    Raises:
        ConfigError: it holds something else.
    """
    if found is None:
        if names:
            raise ConfigError(f"{place} is not empty: name another folder")
        return
    try:
        same = json.loads(found)["digest"] == json.loads(marker)["digest"]
    except (ValueError, KeyError, TypeError):
        same = False
    if not same:
        raise ConfigError(f"{place} holds a merge of other parts that was not finished: name another folder")
