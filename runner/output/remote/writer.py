"""The worker's side of an output in an object store: each shard's files are put, then its commit object.

Nothing that is there is replaced: of two workers at the same shard, one's commit object is there, and tells of its own
files.  Only npz files, whose names are their clips', are, while no commit object tells of them.
``runner.output.remote.run`` is the command's side.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.core.errors import StoreError
from runner.core.layout import DESCRIPTIONS, EMBEDDINGS, IDENTITY, JOURNAL, MANIFEST, NPZ, STATE, TFRECORD
from runner.output.remote.commits import commit_name, sampled
from runner.output.remote.names import named_by_content
from runner.output.remote.orphans import stale_worker_lock
from runner.output.remote.run import get_named
from runner.output.state.journal import believed, clips_part, from_line, read_journal, to_line
from runner.output.verify import npz_names
from runner.output.writer import RunWriter
from runner.storage.object_store import Store
from runner.storage.worker_lease import WorkerLease

if TYPE_CHECKING:
    from runner.config.schema import RunConfig
    from runner.output.state.journal import ShardEntry

_FIRST = (f"{STATE}/{IDENTITY}", f"{STATE}/spec.json", *DESCRIPTIONS)
"""What must be in the store before the first shard is: later sessions go by it."""

_TRIES = 3


class RemoteCommitter:
    """Puts what a worker writes into the store.

    Args:
        spec: the run's; its ``store`` says where, by what token the command holds the output, which run it is, and
            whether the store keeps to conditions.
        config: the run's.
        keeps: whether what the command reads of shards stays on this machine: parts of clips.parquet, and the shards
            that the map is drawn from.
    """

    def __init__(self, spec: Mapping[str, Any], config: RunConfig, *, keeps: bool = True) -> None:
        self._folder = Path(spec["run_dir"])
        self._plan: str = spec["store"]["plan"]
        self._store = Store(spec["store"]["url"], config.output.upload_timeout_s)
        if not spec["store"]["fenced"]:
            self._store.conditions = None
        self._lease = WorkerLease(self._store, spec["store"]["token"])
        if self._store.conditions is not None:
            self._store.fence = self._lease
        self._rows: Sequence[str] = spec["rows"]
        self._keeps = keeps
        wanted = keeps and config.profile.plots and config.profile.projection != "none"
        self._kept = sampled(len(spec["shards"])) if wanted else set()

    @property
    def lock(self) -> Path:
        """The lock of the one worker in the working folder."""
        return stale_worker_lock(self._folder)

    def shards_done(self) -> dict[int, ShardEntry]:
        """The shards that the store has, by the journal that the command made of it; gets their parts of clips.parquet.

        Their sizes were looked at by the command.
        """
        done = believed(read_journal(self._folder / STATE / JOURNAL)[0], self._rows)
        self.get_parts(done)
        return done

    def get_parts(self, done: Mapping[int, ShardEntry]) -> None:
        """Get the parts of clips.parquet that are not on this machine."""
        get_named(self._store, self._folder, map(clips_part, done.values()))

    def get_manifest(self) -> None:
        """Get the manifest, which an actor reads."""
        self._store.get(f"{STATE}/{MANIFEST}", self._folder / STATE / MANIFEST)

    def describe(self) -> None:
        """Put what says what the shards are."""
        names = [name for name in _FIRST if (self._folder / name).exists()]
        self._store.each(self._store.put, [self._folder / name for name in names], names)

    def commit(self, entry: ShardEntry) -> ShardEntry:
        """Put a shard's files, and then its commit object.

        Returns:
            What the store has of the shard now: this, with the names of its objects, or what another worker of the same
            run committed before.

        Raises:
            StoreError: they could not be put in ``output.upload_timeout_s``, or another command has the output now.
        """
        part = self._folder / clips_part(entry)
        has_npz = (self._folder / NPZ).is_dir()
        self._lease.look()
        names = self._store.each(self._create, entry.files, [sha256 for _, sha256 in entry.files.values()])
        files = dict(zip(names, entry.files.values(), strict=True))
        ours = replace(entry, files=files, plan=self._plan)
        if has_npz:
            self._store.each(functools.partial(self._put_npz, ours), npz_names(part))
            self._store.each(self._store.remove, npz_names(part, skipped=True))  # of when they were not
        self._lease.look()
        counted = self._commit(ours)
        if counted.files != ours.files and self._keeps:
            part.unlink()
            self.get_parts({entry.shard: counted})
        return counted

    def _create(self, name: str, sha256: str) -> str:
        """Put a file of a shard; what the object is called."""
        for each in (name, named_by_content(name, sha256)):
            if self._store.create(self._folder / name, each):
                return each
        raise StoreError(f"{self._store.url}/{each} is not what was put there: remove it, and rerun the same command")

    def _put_npz(self, entry: ShardEntry, name: str) -> None:
        """Put a clip's npz; one of an earlier attempt goes, unless it counts."""
        path = self._folder / name
        for _ in range(_TRIES):
            if self._store.create(path, name):
                return
            self._lease.look()
            if self._committed(entry) is not None:
                return
            self._store.remove(name)
        raise StoreError(
            f"{self._store.url}/{name} is put there by something else as well: stop that, and run it again"
        )

    def _commit(self, ours: ShardEntry) -> ShardEntry:
        name = commit_name(ours.shard)
        for _ in range(_TRIES):
            if self._store.create_text(to_line(ours) + "\n", name):
                return ours
            self._lease.look()
            if (theirs := self._committed(ours)) is not None:
                return theirs
            self._store.remove(name)
        raise StoreError(
            f"{self._store.url}/{name} is put there by something else as well: stop that, and run it again"
        )

    def _committed(self, ours: ShardEntry) -> ShardEntry | None:
        """What another worker committed of a shard: of this run, of the same rows, with files that are there."""
        line = self._store.read(commit_name(ours.shard))
        found = from_line(line.strip()) if line else None
        if found is None or (found.plan, found.rows) != (ours.plan, ours.rows):
            return None

        def is_there(name: str) -> bool:
            if name in ours.files:
                return found.files[name] == ours.files[name]
            return self._store.size(name) == found.files[name][0]

        return found if all(map(is_there, found.files)) else None

    def drop(self, entry: ShardEntry) -> None:
        """Remove a committed shard's files from this machine, but those that are kept."""
        npz = npz_names(self._folder / clips_part(entry)) if (self._folder / NPZ).is_dir() else []
        for name in entry.files:
            kept = entry.shard in self._kept if name.startswith(f"{EMBEDDINGS}/") else self._keeps
            if name.startswith(f"{TFRECORD}/") or not kept:
                (self._folder / name).unlink(missing_ok=True)
        for name in npz:
            (self._folder / name).unlink(missing_ok=True)

    def uncommit(self, shards: Iterable[int]) -> None:
        """Have the store say that these shards are to be done again."""
        self._store.each(self._store.remove, [commit_name(shard) for shard in shards])

    def writer_kind(self, *, closes: bool = True) -> Callable[..., RunWriter]:
        """What makes the run's writer; ``closes`` is whether that makes clips.parquet at the end."""
        return functools.partial(StoreWriter if closes else StoreShardWriter, self)


class StoreWriter(RunWriter):
    """Has each shard in the store before the journal has its line.

    Args:
        mirror: puts shards.
        arguments: see ``RunWriter``.
        options: likewise.
    """

    def __init__(self, mirror: RemoteCommitter, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._mirror = mirror
        mirror.describe()

    def record(self, entry: ShardEntry) -> None:
        """Note a shard whose files are on disk, whole, once the store has it."""
        super().record(entry if entry.undone else self._mirror.commit(entry))
        if entry.shard in self.done:
            self._mirror.drop(entry)
        else:
            self._mirror.uncommit([entry.shard])


class StoreShardWriter(StoreWriter):
    """Puts shards; clips.parquet is another's to make."""

    def close(self) -> None:
        """Nothing is left to do."""
