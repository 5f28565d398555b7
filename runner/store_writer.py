"""The worker's side of an output in an object store: each shard's files are put, then its commit object.

``runner.store_output`` is the command's side.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from runner.config import RunConfig
from runner.errors import ConfigError, StoreError
from runner.formats import DESCRIPTIONS, EMBEDDINGS, NPZ, TFRECORD
from runner.journal import CLIP_PARTS, IDENTITY, JOURNAL, STATE, ShardEntry, believed, line_of, read_journal
from runner.output import RunWriter, npz_files
from runner.resume import MANIFEST
from runner.store_client import Store
from runner.store_hold import check_hold
from runner.store_output import commit_name, orphan_lock, sampled

_FIRST = (f"{STATE}/{IDENTITY}", f"{STATE}/spec.json", *DESCRIPTIONS)
"""What must be in the store before the first shard is: later sessions go by it."""


class StoreMirror:
    """Puts what a worker writes into the store.

    Args:
        spec: the run's; its ``store`` says where, and by what token the command holds the output.
        config: the run's.
        keeps: whether what the command reads of shards stays on this machine: parts of clips.parquet, and the shards
            that the map is drawn from.
    """

    def __init__(self, spec: Mapping[str, Any], config: RunConfig, *, keeps: bool = True) -> None:
        self._folder = Path(spec["run_dir"])
        self._token: str = spec["store"]["token"]
        self._store = Store(spec["store"]["url"], config.output.put_timeout_s)
        self._rows: Sequence[str] = spec["rows"]
        self._keeps = keeps
        wanted = keeps and config.profile.pictures and config.profile.map != "none"
        self._kept = sampled(len(spec["shards"])) if wanted else set()

    @property
    def lock(self) -> Path:
        """The lock of the one worker in the working folder."""
        return orphan_lock(self._folder)

    def shards_done(self) -> dict[int, ShardEntry]:
        """The shards that the store has, by the journal that the command made of it; gets their parts of clips.parquet.

        Their sizes were looked at by the command.
        """
        done = believed(read_journal(self._folder / STATE / JOURNAL)[0], self._rows)
        self.get_parts(done)
        return done

    def get_parts(self, shards: Iterable[int]) -> None:
        """Get the parts of clips.parquet that are not on this machine."""
        names = [f"{STATE}/{CLIP_PARTS}/part-{number:05d}.parquet" for number in shards]
        names = [name for name in names if not (self._folder / name).exists()]
        self._store.each(self._store.get, names, [self._folder / name for name in names])

    def get_manifest(self) -> None:
        """Get the manifest, which an actor reads."""
        self._store.get(f"{STATE}/{MANIFEST}", self._folder / STATE / MANIFEST)

    def describe(self) -> None:
        """Put what says what the shards are."""
        names = [name for name in _FIRST if (self._folder / name).exists()]
        self._store.each(self._store.put, [self._folder / name for name in names], names)

    def commit(self, entry: ShardEntry) -> None:
        """Put a shard's files, and then its commit object; its files that are not read again leave this machine.

        Raises:
            StoreError: they could not be put in ``output.put_timeout_s``, or another command has the output now.
        """
        npz = npz_files(self._folder, entry.shard) if (self._folder / NPZ).is_dir() else []
        names = [*entry.files, *(path.relative_to(self._folder).as_posix() for path in npz)]
        self._check()
        self._store.each(self._store.put, [self._folder / name for name in names], names)
        self._check()
        self._store.put_text(line_of(entry) + "\n", commit_name(entry.shard))

    def _check(self) -> None:
        try:
            check_hold(self._store, self._token)
        except ConfigError as error:
            raise StoreError(str(error)) from error

    def drop(self, entry: ShardEntry) -> None:
        """Remove a committed shard's files from this machine, but those that are kept."""
        npz = npz_files(self._folder, entry.shard) if (self._folder / NPZ).is_dir() else []
        for name in entry.files:
            kept = entry.shard in self._kept if name.startswith(f"{EMBEDDINGS}/") else self._keeps
            if name.startswith(f"{TFRECORD}/") or not kept:
                (self._folder / name).unlink(missing_ok=True)
        for path in npz:
            path.unlink(missing_ok=True)

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

    def __init__(self, mirror: StoreMirror, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._mirror = mirror
        mirror.describe()

    def record(self, entry: ShardEntry) -> None:
        """Note a shard whose files are on disk, whole, once the store has it."""
        if not entry.undone:
            self._mirror.commit(entry)
        super().record(entry)
        if entry.shard in self.done:
            self._mirror.drop(entry)
        else:
            self._mirror.uncommit([entry.shard])


class StoreShardWriter(StoreWriter):
    """Puts shards; clips.parquet is another's to make."""

    def close(self) -> None:
        """Nothing is left to do."""
