"""Parts and wholes of ``vggish-runner merge`` in object stores.

Of a part's files names and sizes are looked at, by listing; their SHA-256 is where they come to this machine.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.core.errors import StoreError
from runner.core.files import atomic
from runner.core.layout import (
    COMMITS,
    DESCRIPTIONS,
    EMBEDDINGS,
    HOLDER_OBJECT,
    IDENTITY,
    MERGED,
    MERGING,
    NPZ,
    PLAN,
    RESULT,
    STATE,
    TFRECORD,
)
from runner.output.merge.folders import UNHELD, check_target
from runner.output.remote.commits import is_complete, read_commits
from runner.output.state.journal import clips_part, size_and_sha256
from runner.output.state.plan import check_plan, plan_id
from runner.output.verify import npz_names
from runner.storage.lease import Lease, check_lease, describe, is_alive, read_holder
from runner.storage.object_store import Store

if TYPE_CHECKING:
    from runner.output.merge.folders import Source
    from runner.output.state.journal import ShardEntry
    from runner.storage.object_store import Seen

log = logging.getLogger(__name__)

_SCRATCH = "vggish-merge-"


class StoreSource:
    """A part at a URL; its state is read once.

    Args:
        url: the run's output.dir.
        timeout_s: how long one object may take, with all attempts.
    """

    redo = f"remove their objects {COMMITS}/shard-NNNNN.json, and run it again"

    def __init__(self, url: str, timeout_s: float) -> None:
        self.store = Store(url, timeout_s, "PART")
        self.name = self.store.url
        self._before = self._seen()
        self._state = {name: seen.bytes for name, seen in self._before.items() if name.startswith(f"{STATE}/")}
        self._plan_id = ""

    def plan(self) -> Mapping[str, Any] | None:
        """See ``Source``, as of all below."""
        text = self.store.read(f"{STATE}/{PLAN}")
        if text is None:
            return None
        plan = check_plan(f"{self.name}/{STATE}/{PLAN}", text)
        self._plan_id = plan_id(plan)
        return plan

    def identity(self) -> Mapping[str, Any]:
        """From identity.json."""
        return self._json(f"{STATE}/{IDENTITY}")

    def done(self) -> dict[int, ShardEntry]:
        """From the commit objects."""
        commits = read_commits(self.store, self._state)
        return {n: entry for n, entry in commits.items() if entry is not None and entry.plan == self._plan_id}

    def holder(self) -> str | None:
        """By the holder's object."""
        found = read_holder(self.store)
        return describe(found) if found is not None and is_alive(self.store, found) else None

    def unfinished(self) -> str | None:
        """A run that ended well has a result.json that says so, put after all else."""
        status = self._json(RESULT).get("status")
        if status == "finished":
            return None
        return f"its {RESULT} says {status}" if status else f"it has no {RESULT}"

    def damaged(self, done: Mapping[int, ShardEntry]) -> list[int]:
        """By listing, by size."""
        present = {name: seen.bytes for name, seen in self._before.items()}
        return [number for number, entry in done.items() if not is_complete(entry, present)]

    def without_npz(self, done: Mapping[int, ShardEntry]) -> list[int]:
        """By listing.

        Shards are runs of a sorted list, so that few folders are new from one to the next, and only its are kept.
        """
        lacking = []
        listed: dict[str, set[str]] = {}
        with tempfile.TemporaryDirectory(prefix=_SCRATCH) as scratch:
            for entry in done.values():
                part = clips_part(entry)
                names = npz_names(self.path(part, Path(scratch) / "part.parquet", entry.files[part]))
                folders = {name.rpartition("/")[0] for name in names}
                new = sorted(folders - listed.keys())
                listed = {folder: known for folder, known in listed.items() if folder in folders}
                listed |= zip(new, (set(found) for found in self.store.each(self.store.top, new)), strict=True)
                if not all(name in listed[name.rpartition("/")[0]] for name in names):
                    lacking.append(entry.shard)
        return lacking

    @contextmanager
    def held(self) -> Iterator[None]:
        """As a run's output is; see ``runner.storage.lease``."""
        hold = Lease(self.store)
        try:
            try:
                hold.take()
                hold.confirm()
            except StoreError as error:
                log.warning(UNHELD, self.name, error)
            yield
        finally:
            hold.release()

    def changed(self) -> list[str]:
        """By listing; npz files, which are too many, aside."""
        now = self._seen()
        return sorted(name for name in now.keys() | self._before.keys() if now.get(name) != self._before.get(name))

    def checksum(self, name: str) -> str | None:
        """Of a file's bytes, by the store's own way; None where the listing has none."""
        seen = self._before.get(name)
        return None if seen is None else seen.checksum

    def _seen(self) -> dict[str, Seen]:
        found = {**self.store.seen(STATE), **self.store.seen(EMBEDDINGS), **self.store.seen(TFRECORD)}
        found.pop(HOLDER_OBJECT, None)
        return found

    def path(self, name: str, fetched: Path, described: tuple[int, str] | None = None) -> Path:
        """A copy, whose SHA-256 is looked at where it is known."""
        fetched.parent.mkdir(parents=True, exist_ok=True)
        with atomic(fetched) as temporary:
            self.store.get(name, temporary)
            if described is not None and size_and_sha256(temporary) != described:
                raise StoreError(
                    f"{self.name}/{name} is not what was written: remove it, and run that part's command again"
                )
        return fetched

    def _json(self, name: str) -> dict[str, Any]:
        try:
            found = json.loads(self.store.read(name) or b"{}")
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}


class StoreTarget:
    """The whole at a URL: copied by the store itself from its kin, put from all else.

    Args:
        url: the whole's.
        timeout_s: how long one object may take, with all attempts.
    """

    def __init__(self, url: str, timeout_s: float) -> None:
        self._store = Store(url, timeout_s, "--output")
        self.name = self._store.url
        self._hold = Lease(self._store)

    @contextmanager
    def under_way(self, marker: str) -> Iterator[None]:
        """Held as a run's output is; see ``runner.storage.lease``."""
        self.check(marker)
        try:
            self._hold.take()
            self._hold.confirm()
            self.check(marker)
            self._store.put_text(marker, MERGING)
            yield
        finally:
            self._hold.release()

    def sizes(self) -> Mapping[str, int]:
        """Of what is listed below embeddings/ and tfrecord/."""
        return {**self._store.sizes(EMBEDDINGS), **self._store.sizes(TFRECORD)}

    def take(self, source: Source, name: str, to: str, described: tuple[int, str] | None = None) -> None:
        """By the store's own copy, or a put: of another kind of store's object by way of a temporary file."""
        if isinstance(source, StoreSource) and self._store.supports_server_side_copy(source.store):
            self._store.copy(source.store, name, to)
            return
        with tempfile.TemporaryDirectory(prefix=_SCRATCH) as scratch:
            self._store.put(source.path(name, Path(scratch) / "object", described), to)

    def settle(self, names: Iterable[str]) -> None:
        """An object that was put is there."""

    def wrong(self, source: Source, taken: Mapping[str, tuple[str, tuple[int, str]]]) -> list[str]:
        """By size and, of what the store copied, by its checksum; where that differs, by reading the copy."""
        there = self._there
        copied = (
            source if isinstance(source, StoreSource) and self._store.supports_server_side_copy(source.store) else None
        )

        def is_wrong(name: str) -> bool:
            to, described = taken[name]
            seen = there.get(to)
            if seen is None or seen.bytes != described[0]:
                return True
            return copied is not None and copied.checksum(name) != seen.checksum and not self._holds(to, described)

        wrong = [name for name, is_so in zip(taken, self._store.each(is_wrong, taken), strict=True) if is_so]
        found = [taken[name][0] for name in wrong]
        self._store.each(self._store.remove, found)
        if copied is not None:
            self._mend_npz(copied.store)
        return found

    @cached_property
    def _there(self) -> Mapping[str, Seen]:
        return {**self._store.seen(EMBEDDINGS), **self._store.seen(TFRECORD)}

    def _holds(self, name: str, described: tuple[int, str]) -> bool:
        with tempfile.TemporaryDirectory(prefix=_SCRATCH) as scratch:
            self._store.get(name, Path(scratch) / "object")
            return size_and_sha256(Path(scratch) / "object") == described

    def _mend_npz(self, source: Store) -> None:
        """Have npz files copied anew whose copies are not what the part has; looked at folder by folder."""
        folders = [NPZ]
        while folders:
            folder = folders.pop()
            ours, theirs = self._store.seen_at(folder), source.seen_at(folder)
            folders += [name for name, seen in theirs.items() if seen is None]
            for name, seen in theirs.items():
                copy = ours.get(name)
                if seen is None or copy is None or copy[:2] == seen[:2] or name in DESCRIPTIONS:
                    continue
                if self._store.read(name) != source.read(name):
                    log.warning("%s/%s is not what %s has: it is copied anew", self.name, name, source.url)
                    self._store.copy(source, name, name)
                    if self._store.read(name) != source.read(name):
                        raise StoreError(f"{self.name}/{name} is not what {source.url} has: remove it, and merge again")

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """A temporary file, which is put at the end."""
        with tempfile.TemporaryDirectory(prefix=_SCRATCH) as scratch:
            yield Path(scratch) / name
            self._store.put(Path(scratch) / name, name)

    def finish(self, merged: str) -> None:
        """merged.json comes, merge_in_progress.json goes."""
        check_lease(self._store, self._hold.token)
        self._store.put_text(merged, MERGED)
        self._store.remove(MERGING)

    def check(self, marker: str) -> None:
        """It is free, or has an unfinished merge of the same."""
        names = {*self._store.top(), *self._store.sizes(STATE)} - {STATE, HOLDER_OBJECT}
        found = self._store.read(MERGING) if MERGING in names else None
        check_target(self.name, names, None if found is None else found.decode(errors="replace"), marker)
