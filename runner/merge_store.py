"""Parts and wholes of ``runner.merge`` in object stores.

Of a part's files names and sizes are looked at, by listing; their SHA-256 is where they come to this machine.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from runner.errors import StoreError
from runner.files import atomic
from runner.formats import EMBEDDINGS, TFRECORD
from runner.journal import IDENTITY, STATE, ShardEntry, clips_part, describe_file
from runner.merge_places import MERGED, MERGING, Source, check_target
from runner.output import npz_names
from runner.resume import PLAN, check_plan, plan_id
from runner.store_client import Store
from runner.store_hold import HOLDER_OBJECT, Hold, check_hold, describe, is_alive, read_holder
from runner.store_output import COMMITS, RESULT, is_whole, read_commits, sizes_of_shards

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
        self._state = self.store.sizes(STATE)
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
        present = sizes_of_shards(self.store, self._state)
        return [number for number, entry in done.items() if not is_whole(entry, present)]

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

    def path(self, name: str, fetched: Path, described: tuple[int, str] | None = None) -> Path:
        """A copy, whose SHA-256 is looked at where it is known."""
        fetched.parent.mkdir(parents=True, exist_ok=True)
        with atomic(fetched) as temporary:
            self.store.get(name, temporary)
            if described is not None and describe_file(temporary) != described:
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
        self._hold = Hold(self._store)

    @contextmanager
    def under_way(self, marker: str) -> Iterator[None]:
        """Held as a run's output is; see ``runner.store_hold``."""
        self._check(marker)
        try:
            self._hold.take()
            self._hold.confirm()
            self._check(marker)
            self._store.put_text(marker, MERGING)
            yield
        finally:
            self._hold.release()

    def sizes(self) -> Mapping[str, int]:
        """Of what is listed below embeddings/ and tfrecord/."""
        return {**self._store.sizes(EMBEDDINGS), **self._store.sizes(TFRECORD)}

    def take(self, source: Source, name: str, to: str, described: tuple[int, str] | None = None) -> None:
        """By the store's own copy, or a put: of another kind of store's object by way of a temporary file."""
        if isinstance(source, StoreSource) and self._store.is_kin(source.store):
            self._store.copy(source.store, name, to)
            return
        with tempfile.TemporaryDirectory(prefix=_SCRATCH) as scratch:
            self._store.put(source.path(name, Path(scratch) / "object", described), to)

    def settle(self, names: Iterable[str]) -> None:
        """An object that was put is there."""

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """A temporary file, which is put at the end."""
        with tempfile.TemporaryDirectory(prefix=_SCRATCH) as scratch:
            yield Path(scratch) / name
            self._store.put(Path(scratch) / name, name)

    def finish(self, merged: str) -> None:
        """merged.json comes, merging.json goes."""
        check_hold(self._store, self._hold.token)
        self._store.put_text(merged, MERGED)
        self._store.remove(MERGING)

    def _check(self, marker: str) -> None:
        names = {*self._store.top(), *self._store.sizes(STATE)} - {STATE, HOLDER_OBJECT}
        found = self._store.read(MERGING) if MERGING in names else None
        check_target(self.name, names, None if found is None else found.decode(errors="replace"), marker)
