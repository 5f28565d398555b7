"""The worker's side of an output in an object store: uploads a shard's files, and then its commit object.

Objects are not replaced: of two workers at one shard the first commit object stays, and refers to its own files.  Only
npz files, whose names are those of their clips, are replaced, as long as no commit object refers to them.
``runner.output.remote.run`` is the command's side.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from runner.core.errors import StoreError
from runner.core.layout import FORMAT_METADATA, SHARD_FOLDERS, RunLayout
from runner.output.remote.commits import commit_name, sampled_shards
from runner.output.remote.names import content_name, local_name
from runner.output.remote.stale_workers import stale_worker_lock
from runner.output.state.journal import current_entries, from_line, read_journal, to_line
from runner.output.verify import npz_names
from runner.storage.object_store import ObjectStore
from runner.storage.worker_lease import WorkerLease

if TYPE_CHECKING:
    from runner.contract.spec import RunSpec
    from runner.core.files import FileDigest
    from runner.output.state.journal import ShardEntry

_METADATA = (RunLayout.identity, RunLayout.spec, *FORMAT_METADATA)
"""Files that later attempts need, and that are uploaded before the first shard."""

_UPLOADED_ONLY = tuple(f"{folder}/" for folder in SHARD_FOLDERS if folder != RunLayout.embeddings)
"""Files that the command does not read."""

_TRIES = 3


class RemoteCommitter:
    """Uploads the shards of a worker, and commits them.

    Args:
        spec: the run's, with ``remote``.
        keep_local: whether files that the command reads stay on this machine: the shards' rows of clips.parquet, and
            the shards that the projection is drawn from.
    """

    def __init__(self, spec: RunSpec, *, keep_local: bool = True) -> None:
        remote, profile = spec.remote, spec.config.profile
        assert remote is not None
        self._folder = spec.run_dir
        self._layout = RunLayout(spec.run_dir)
        self._plan_id = remote.plan
        self._store = ObjectStore(remote.url, spec.config.output.upload_timeout_s)
        if not remote.fenced:
            self._store.conditions = None
        self._lease = WorkerLease(self._store, remote.token)
        if self._store.conditions is not None:
            self._store.fence = self._lease
        self._row_digests = spec.row_digests
        self._keep_local = keep_local
        draws_projection = profile.plots and profile.projection != "none"
        self._kept_shards = sampled_shards(len(spec.shards)) if keep_local and draws_projection else set()

    @property
    def worker_lock(self) -> Path:
        """The lock of the only worker in the staging folder."""
        return stale_worker_lock(self._folder)

    def load_committed_shards(self) -> dict[int, ShardEntry]:
        """Return the shards that the store has, and download their rows of clips.parquet.

        The command has made the journal from the commit objects, and checked the sizes of their files.
        """
        committed = current_entries(read_journal(self._layout.journal)[0], self._row_digests)
        self.download_clip_rows(committed)
        return committed

    def download_clip_rows(self, committed: Mapping[int, ShardEntry]) -> None:
        """Download the shards' rows of clips.parquet that are not on this machine."""
        download_missing(self._store, self._folder, [entry.clips_file for entry in committed.values()])

    def download_manifest(self) -> None:
        """Download manifest.parquet, which an actor reads."""
        self._store.get(RunLayout.manifest, self._layout.manifest)

    def upload_metadata(self) -> None:
        """Upload the files that later attempts need, before the first shard."""
        names = [name for name in _METADATA if (self._folder / name).exists()]
        self._store.map(self._store.put, [self._folder / name for name in names], names)

    def commit(self, entry: ShardEntry) -> ShardEntry:
        """Upload a shard's files, and then its commit object.

        Returns:
            The entry that the store has now: this one with the names of its objects, or the one that another worker of
            the run committed first.

        Raises:
            StoreError: they could not be uploaded in ``output.upload_timeout_s``, or another command holds the output.
        """
        clips_file = self._folder / entry.clips_file
        has_npz = self._layout.npz.is_dir()
        self._lease.check()
        names = self._store.map(self._create, entry.files.keys(), entry.files.values())
        files = dict(zip(names, entry.files.values(), strict=True))
        ours = replace(entry, files=files, plan_id=self._plan_id)
        if has_npz:
            self._store.map(functools.partial(self._upload_npz, ours), npz_names(clips_file))
            self._store.map(self._store.remove, npz_names(clips_file, skipped=True))  # of an attempt that embedded them
        self._lease.check()
        committed = self._create_commit(ours)
        if committed.files != ours.files and self._keep_local:
            clips_file.unlink()
            self.download_clip_rows({entry.shard: committed})
        return committed

    def delete_local(self, entry: ShardEntry) -> None:
        """Delete a committed shard's files from this machine, except those that are kept."""
        npz = npz_names(self._folder / entry.clips_file) if self._layout.npz.is_dir() else []
        for name in entry.files:
            if name.startswith(f"{RunLayout.embeddings}/"):
                is_kept = entry.shard in self._kept_shards
            else:
                is_kept = self._keep_local and not name.startswith(_UPLOADED_ONLY)
            if not is_kept:
                (self._folder / name).unlink(missing_ok=True)
        for name in npz:
            (self._folder / name).unlink(missing_ok=True)

    def revoke(self, shard: int) -> None:
        """Remove a shard's commit object: it is to be re-run."""
        self._store.remove(commit_name(shard))

    def _create(self, name: str, digest: FileDigest) -> str:
        """Upload a file of a shard; return the name of its object."""
        for object_name in (name, content_name(name, digest.sha256)):
            if self._store.create(self._folder / name, object_name):
                return object_name
        raise StoreError(
            f"{self._store.url}/{object_name} has other content than was uploaded: remove it, and rerun the command"
        )

    def _upload_npz(self, entry: ShardEntry, name: str) -> None:
        """Upload a clip's npz, in place of one of an earlier attempt; not if another worker has committed the shard."""
        path = self._folder / name
        for _ in range(_TRIES):
            if self._store.create(path, name):
                return
            self._lease.check()
            if self._read_commit(entry) is not None:
                return
            self._store.remove(name)
        raise self._contested(name)

    def _create_commit(self, ours: ShardEntry) -> ShardEntry:
        name = commit_name(ours.shard)
        for _ in range(_TRIES):
            if self._store.create_text(to_line(ours) + "\n", name):
                return ours
            self._lease.check()
            if (theirs := self._read_commit(ours)) is not None:
                return theirs
            self._store.remove(name)
        raise self._contested(name)

    def _read_commit(self, ours: ShardEntry) -> ShardEntry | None:
        """Return another worker's entry of a shard, if it is of this run and the same rows, and its files exist."""
        line = self._store.read(commit_name(ours.shard))
        theirs = from_line(line.strip()) if line else None
        if theirs is None or (theirs.plan_id, theirs.row_digest) != (ours.plan_id, ours.row_digest):
            return None

        def exists(name: str) -> bool:
            if name in ours.files:
                return theirs.files[name] == ours.files[name]
            return self._store.size(name) == theirs.files[name].bytes

        return theirs if all(map(exists, theirs.files)) else None

    def _contested(self, name: str) -> StoreError:
        return StoreError(
            f"{self._store.url}/{name} is written by another program as well: stop that, and rerun the same command"
        )


def download_missing(store: ObjectStore, folder: Path, names: Iterable[str]) -> None:
    """Download objects of shards that are not in the folder, under their local names."""
    paths = {name: folder / local_name(name) for name in names}
    missing = [name for name, path in paths.items() if not path.exists()]
    store.map(store.get, missing, [paths[name] for name in missing])
