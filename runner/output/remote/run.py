"""The command's side of an output in an object store: a run works in a staging folder, and the store has its results.

The staging folder is a cache that may be deleted at any time: a command empties it first, and restores the run's state
from the store.  A shard is committed once its commit object, ``.runner/commits/shard-NNNNN.json``, exists; it is
uploaded after the shard's files, and the journal is made from these objects.  They are not replaced
(``runner.output.remote.names``), and only the command that holds the output removes any, namely those of shards that
are not committed.  result.json is the last object of a run, except for its MLflow run's id, and is removed while a run
continues.

``runner.output.remote.committer`` is the worker's side.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from runner.contract.spec import RemoteHandle
from runner.core.cleanup import at_cleanup
from runner.core.errors import ConfigError, RunnerError, StoreError
from runner.core.failures import Failure, failure_of
from runner.core.files import digest_file
from runner.core.layout import FORMAT_FOLDERS, FORMAT_METADATA, RunLayout
from runner.core.paths import is_url, staging_dir
from runner.output.remote.commits import commit_name, is_complete, list_shard_files, sampled_shards
from runner.output.remote.committer import download_missing
from runner.output.remote.names import unreferenced
from runner.output.remote.restore import restore_state
from runner.output.remote.stale_workers import STALE_WORKER_S, wait_for_stale_worker
from runner.output.state.journal import read_journal
from runner.storage.lease import Lease
from runner.storage.object_store import ObjectStore

if TYPE_CHECKING:
    from runner.config.schema import RunConfig
    from runner.output.state.plan import Plan

log = logging.getLogger(__name__)

FAILED_UPLOAD_S = 20.0
"""How long a run that did not finish may take to upload each of its other files."""

_WRITTEN_BY_HYDRA = (RunLayout.hydra, RunLayout.log)
"""Files that Hydra writes into the folder of a sweep's job before the job starts."""

_open: dict[Path, RemoteRun] = {}
"""The outputs that this command holds, by staging folder."""


def open_remote_run(folder: Path, config: RunConfig, in_sweep: bool = False) -> RemoteRun | None:
    """Acquire a run's output in an object store for this command, and restore its state into the staging folder.

    Args:
        folder: the run's staging folder, which the command has locked.
        config: the run's.
        in_sweep: whether the run is a job of a sweep.

    Returns:
        The output, the same for a second call; None where ``output.dir`` is a folder.

    Raises:
        ConfigError: another command holds it, it can't be used, or it holds something else.
        StoreError: the store doesn't answer.
    """
    if not is_url(config.output.dir):
        return None
    folder = folder.absolute()
    if folder not in _open:
        _open[folder] = RemoteRun(folder, config, in_sweep)
        at_cleanup(_open[folder].release)
    return _open[folder]


def check_staging_dir(key: str, folder: Path, config: RunConfig) -> None:
    """Check that Hydra's folder is the staging folder of ``output.dir``, a URL: it is going to be emptied.

    Args:
        key: of Hydra's folder, for messages.
        folder: the folder that Hydra was given.
        config: the run's.

    Raises:
        ConfigError: it is another one.
    """
    url = config.output.dir
    assert url is not None
    if folder != staging_dir(url, Path(config.paths.outputs).expanduser()).absolute():
        raise ConfigError(
            f"{key}={folder} can't be combined with output.dir={url}: leave {key} out, or give paths.outputs"
        )


class RemoteRun:
    """A run's output in an object store, while this command holds it.

    Args:
        folder: the staging folder, which this command has locked.
        config: the run's.
        in_sweep: whether it is a job of a sweep, in whose folder Hydra has written already.

    Attributes:
        lease: of the output.
    """

    def __init__(self, folder: Path, config: RunConfig, in_sweep: bool = False) -> None:
        assert config.output.dir is not None
        self._folder = folder
        self._layout = RunLayout(folder)
        self._store = ObjectStore(config.output.dir, config.output.upload_timeout_s)
        self._draws_projection = config.profile.plots and config.profile.projection != "none"
        self._shards, self._plan_id = 0, ""
        self.lease = Lease(self._store)
        self.lease.acquire()
        try:
            wait_for_stale_worker(folder, config.engine.shutdown_timeout_s + STALE_WORKER_S)
            _empty(folder, _WRITTEN_BY_HYDRA if in_sweep else ())
            with _append_after_download(self._layout.log):
                self._restored = restore_state(self._store, folder)
            self.lease.confirm()
        except BaseException:
            self.lease.release()
            raise

    def handle(self) -> RemoteHandle:
        """Return the handle for workers; after ``begin_attempt``."""
        is_fenced = self._store.conditions is not None
        return RemoteHandle(self._store.url, self.lease.token, self._plan_id, is_fenced)

    def begin_attempt(self, plan: Plan) -> None:
        """Upload the plan, before any of it is run.

        The commit objects of shards that are no longer committed are removed first: with the new plan they would count
        again.  Then the files of shards that are not committed are removed.
        """
        restored = self._restored
        self._shards, self._plan_id = len(plan.shards), plan.id
        self._remove(commit_name(shard) for shard in restored.committed.keys() - plan.committed.keys())
        committed = [entry for shard, entry in restored.committed.items() if shard in plan.committed]
        self._remove(unreferenced(restored.present, committed))
        if restored.has_result:
            self._store.remove(RunLayout.result)
        for name in (RunLayout.manifest, RunLayout.attempts, RunLayout.plan):
            if restored.digests.get(name) != digest_file(self._folder / name):
                self._store.put(self._folder / name, name)

    def download_clip_rows(self, shards: Iterable[int]) -> None:
        """Download these committed shards' rows of clips.parquet."""
        names = [self._restored.committed[shard].clips_file for shard in shards]
        download_missing(self._store, self._folder, names)

    def download_sampled_shards(self) -> None:
        """Download the shards that the projection is drawn from, and that an earlier attempt uploaded.

        An error is a warning.
        """
        if not self._draws_projection:
            return
        try:
            committed, _ = read_journal(self._layout.journal)
            shards = sampled_shards(self._shards) & committed.keys()
            folder = f"{RunLayout.embeddings}/"
            names = [name for shard in shards for name in committed[shard].files if name.startswith(folder)]
            download_missing(self._store, self._folder, names)
        except (RunnerError, OSError) as error:
            log.warning("projection covers this attempt's shards only: %s", error)

    def download_embeddings(self, is_finished: bool) -> None:
        """Download all files of embeddings that are no longer in the staging folder.

        Args:
            is_finished: whether the run is; one that is not waits less for the store.

        Raises:
            StoreError: the store doesn't answer, or this machine's disk is full.
        """
        try:
            for folder in FORMAT_FOLDERS:
                self._store.get_below(folder, self._folder, self._timeout_s(is_finished))
        except OSError as error:
            raise StoreError(f"{self._store.url}: could not download embeddings to {self._folder} ({error})") from error

    def upload_remaining(self, is_finished: bool) -> Failure | None:
        """Upload all files that are not of a shard, except result.json and tracking.json; then check the shards'.

        Args:
            is_finished: whether the run is; one that is not waits less for the store, and its shards are not checked.

        Returns:
            Why a finished run has failed after all; otherwise errors are only logged.
        """
        paths = [path for path in self._folder.rglob("*") if path.is_file() and self._is_run_file(path)]
        failure = self._upload(paths, is_finished)
        if failure or not is_finished:
            return failure
        return self._failure_of(self._check_shards, is_finished)

    def upload_result(self, is_finished: bool) -> Failure | None:
        """Upload result.json, the last file of a run; see ``upload_remaining``."""
        return self._upload([self._layout.result], is_finished)

    def upload_tracking(self) -> None:
        """Upload the id of the MLflow run, if any, with which any machine continues it; an error is a warning."""
        try:
            if self._layout.tracking.exists() and self.lease.is_held():
                self._store.put(self._layout.tracking, RunLayout.tracking, self._timeout_s(is_finished=False))
        except (RunnerError, OSError) as error:
            log.warning("could not save the MLflow run id next to the output: %s", error)

    def release(self) -> None:
        """Release the output."""
        self.lease.release()
        _open.pop(self._folder, None)

    def _timeout_s(self, is_finished: bool) -> float:
        return self._store.timeout_s if is_finished else min(FAILED_UPLOAD_S, self._store.timeout_s)

    def _upload(self, paths: Collection[Path], is_finished: bool) -> Failure | None:
        timeout_s = self._timeout_s(is_finished)

        def upload() -> None:
            if not self.lease.is_held():
                raise StoreError(f"{self._store.url} was acquired by another command: stopped uploading")
            names = [path.relative_to(self._folder).as_posix() for path in paths]
            self._store.map(lambda path, name: self._store.put(path, name, timeout_s), paths, names)

        return self._failure_of(upload, is_finished)

    def _failure_of(self, action: Callable[[], None], is_finished: bool) -> Failure | None:
        try:
            action()
        except (RunnerError, OSError) as error:
            log.error("%s", error)
            return failure_of(error) if is_finished else None
        return None

    def _check_shards(self) -> None:
        """Check that all committed shards are complete, and remove objects of others.

        Raises:
            StoreError: a file of a shard is missing.
        """
        committed, _ = read_journal(self._layout.journal)
        present = list_shard_files(self._store, self._store.list_recursive(RunLayout.state))
        lost = [
            shard
            for shard, entry in committed.items()
            if commit_name(shard) not in present or not is_complete(entry, present)
        ]
        if lost:
            raise StoreError(
                f"{self._store.url}: {len(lost):,} uploaded shards (the first: {lost[0]}) are no longer complete: find "
                "out which other program writes there, and rerun the same command to resume"
            )
        self._remove(unreferenced(present, committed.values()))

    def _is_run_file(self, path: Path) -> bool:
        """Return whether ``upload_remaining`` uploads a file of the staging folder."""
        name = path.relative_to(self._folder).as_posix()
        folder, _, below = name.partition("/")
        if path.name.startswith(".") and path.name.endswith(".tmp"):
            return False
        if folder == RunLayout.state:
            return "/" not in below and name not in (RunLayout.run_lock, RunLayout.lock_owner, RunLayout.worker_lock)
        if folder in FORMAT_FOLDERS:
            return name in FORMAT_METADATA
        return name not in (RunLayout.result, RunLayout.tracking)

    def _remove(self, names: Iterable[str]) -> None:
        self._store.map(self._store.remove, names)


@contextmanager
def _append_after_download(path: Path) -> Iterator[None]:
    """Append the present lines of a log to the store's, where the block downloads it."""
    lines = path.read_bytes() if path.exists() else b""
    yield
    if lines and path.read_bytes() != lines:
        with path.open("ab") as file:
            file.write(lines)


def _empty(folder: Path, keep: Collection[str]) -> None:
    """Remove an earlier command's files from the staging folder, except locks and the names in ``keep``."""
    layout = RunLayout(folder)
    for path in (*folder.iterdir(), *layout.state.iterdir()):
        if path in (layout.state, layout.run_lock, layout.lock_owner) or path.name in keep:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    layout.clip_shards.mkdir()
