"""A sweep in an object store: its own files right below the URL, each job's output in a folder below that.

The sweep works in a staging folder, its jobs in folders below it; all of them may be deleted, as a run's.  The command
holds a lease on the sweep's URL as on a run's, and each job, in whatever process, one on its own.  ``sweep.json`` is
uploaded before the first job starts, so that any machine can continue the sweep; the other files at the end.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from runner.core.cleanup import at_cleanup
from runner.core.errors import ConfigError, RunnerError, StoreError
from runner.core.layout import FORMAT_FOLDERS, RunLayout
from runner.output.remote.run import FAILED_UPLOAD_S
from runner.output.remote.stale_workers import STALE_WORKER_S, wait_for_stale_jobs
from runner.storage.lease import Lease
from runner.storage.object_store import ObjectStore

if TYPE_CHECKING:
    from runner.config.schema import RunConfig

log = logging.getLogger(__name__)


def open_remote_sweep(folder: Path, config: RunConfig) -> RemoteSweep:
    """Acquire a sweep's URL for this command, empty the staging folder, and download sweep.json into it.

    Args:
        folder: the staging folder of the URL.
        config: of the sweep; its ``output.dir`` is the URL.

    Raises:
        ConfigError: another command holds the URL, it can't be used, or it holds something other than a sweep.
        StoreError: the store doesn't answer.
    """
    sweep = RemoteSweep(folder, config)
    at_cleanup(sweep.release)
    return sweep


class RemoteSweep:
    """A sweep's own files in an object store, while this command holds them; see ``open_remote_sweep``.

    Args:
        folder: the staging folder.
        config: of the sweep.
    """

    def __init__(self, folder: Path, config: RunConfig) -> None:
        assert config.output.dir is not None
        self._folder = folder
        self._layout = RunLayout(folder)
        self._store = ObjectStore(config.output.dir, config.output.upload_timeout_s)
        self._lease = Lease(self._store)
        self._lease.acquire()
        try:
            self._lease.confirm()
            has_sweep = self._check_url()
            wait_for_stale_jobs(folder, config.engine.shutdown_timeout_s + STALE_WORKER_S)
            if folder.exists():
                shutil.rmtree(folder)
            folder.mkdir(parents=True)
            if has_sweep:
                self._store.get(RunLayout.sweep, self._layout.sweep)
        except BaseException:
            self._lease.release()
            raise

    def upload_state(self) -> None:
        """Upload sweep.json.

        Raises:
            StoreError: it could not be uploaded.
        """
        self._store.put(self._layout.sweep, RunLayout.sweep)

    def upload_files(self, is_finished: bool) -> bool:
        """Upload the sweep's own files, sweep.json last.

        Args:
            is_finished: whether the sweep is; one that was stopped waits less for the store.

        Returns:
            Whether the store has all of them; otherwise an error is logged, and they remain in the staging folder.
        """
        timeout_s = None if is_finished else min(FAILED_UPLOAD_S, self._store.timeout_s)
        paths = [path for path in self._folder.iterdir() if path.is_file() and path != self._layout.sweep]
        paths += [path for path in self._layout.plots.rglob("*") if path.is_file()]
        names = [path.relative_to(self._folder).as_posix() for path in paths if not path.name.endswith(".tmp")]
        try:
            if not self._lease.is_held():
                raise StoreError(f"{self._store.url} was acquired by another command: stopped uploading")
            self._store.map(lambda name: self._store.put(self._folder / name, name, timeout_s), names)
            self._store.put(self._layout.sweep, RunLayout.sweep, timeout_s)
        except (RunnerError, OSError) as error:
            log.error("could not upload all sweep files; they remain in %s: %s", self._folder, error)
            return False
        return True

    def release(self) -> None:
        """Release the sweep; do nothing the second time."""
        self._lease.release()

    def _check_url(self) -> bool:
        """Return whether the URL holds a sweep; False where it holds nothing.

        Raises:
            ConfigError: it holds a run or something else.
        """
        listed = self._store.list_folder()
        state = self._store.list_recursive(RunLayout.state) if RunLayout.state in listed else {}
        if state.keys() - {RunLayout.lease} or any(name in listed for name in (RunLayout.result, *FORMAT_FOLDERS)):
            raise ConfigError(f"output.dir={self._store.url} holds a run: choose another folder for a sweep")
        others = sorted(name for name in listed if name != RunLayout.state)
        if others and RunLayout.sweep not in listed:
            raise ConfigError(f"output.dir={self._store.url} holds something else ({others[0]}): choose another folder")
        return RunLayout.sweep in listed
