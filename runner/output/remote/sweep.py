"""A sweep in an object store: its own files right below the URL, each job's output in a folder of its own below that.

The sweep works in a folder of this machine, its jobs in folders below it, which may be deleted as a run's may.  The
command holds the sweep's URL by the same object that a run is held by; each job, in whatever process, holds its own.
``sweep.json`` is in the store before the first job begins, so that any machine goes on with the sweep; the rest is put
at the end.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from runner.core.cleanup import at_cleanup
from runner.core.errors import ConfigError, RunnerError, StoreError
from runner.core.layout import FOLDERS, HOLDER_OBJECT, PLOTS, RESULT, STATE, SWEEP_FILE
from runner.output.remote.commits import FAILED_PUT_S
from runner.output.remote.orphans import ORPHAN_S, wait_for_orphans
from runner.storage.lease import Lease
from runner.storage.object_store import Store

if TYPE_CHECKING:
    from runner.config.schema import RunConfig

log = logging.getLogger(__name__)

_open: list[SweepOutput] = []


def take(folder: Path, config: RunConfig) -> SweepOutput:
    """Take a sweep's URL for this command, empty the working folder, and get sweep.json into it.

    Args:
        folder: the working folder, which is that of the URL.
        config: of the sweep; its ``output.dir`` is the URL.

    Raises:
        ConfigError: another command has the URL, it can't be used, or it holds something that is no sweep.
        StoreError: the store doesn't answer.
    """
    output = SweepOutput(folder, config)
    _open.append(output)
    at_cleanup(release_all)
    return output


def release_all() -> None:
    """Give up every sweep that this command still has."""
    for output in list(_open):
        output.release()


class SweepOutput:
    """A sweep's own files in an object store, for as long as this command has them; see ``take``.

    Args:
        folder: the working folder.
        config: of the sweep.
    """

    def __init__(self, folder: Path, config: RunConfig) -> None:
        assert config.output.dir is not None
        self._folder = folder
        self._store = Store(config.output.dir, config.output.upload_timeout_s)
        self._hold = Lease(self._store)
        self._hold.take()
        try:
            self._hold.confirm()
            has_sweep = self._check()
            wait_for_orphans(folder, config.engine.shutdown_timeout_s + ORPHAN_S)
            if folder.exists():
                shutil.rmtree(folder)
            folder.mkdir(parents=True)
            if has_sweep:
                self._store.get(SWEEP_FILE, folder / SWEEP_FILE)
        except BaseException:
            self._hold.release()
            raise

    def put_record(self) -> None:
        """Put sweep.json; raises StoreError."""
        self._store.put(self._folder / SWEEP_FILE, SWEEP_FILE)

    def put_files(self, finished: bool) -> bool:
        """Put the sweep's own files, sweep.json last.

        Args:
            finished: whether the sweep is; one that was stopped gives each file less time.

        Returns:
            Whether the store has them all; why not is told, and they stay in the working folder.
        """
        limit = None if finished else min(FAILED_PUT_S, self._store.timeout_s)
        paths = [path for path in self._folder.iterdir() if path.is_file() and path.name != SWEEP_FILE]
        paths += [path for path in (self._folder / PLOTS).rglob("*") if path.is_file()]
        names = [path.relative_to(self._folder).as_posix() for path in paths if not path.name.endswith(".tmp")]
        try:
            if not self._hold.is_held():
                raise StoreError(f"{self._store.url} was taken by another command: nothing more is put there")
            self._store.each(lambda name: self._store.put(self._folder / name, name, limit), names)
            self._store.put(self._folder / SWEEP_FILE, SWEEP_FILE, limit)
        except (RunnerError, OSError) as error:
            log.error("could not upload all sweep files; they remain in %s: %s", self._folder, error)
            return False
        return True

    def release(self) -> None:
        """Give the sweep up."""
        self._hold.release()
        if self in _open:
            _open.remove(self)

    def _check(self) -> bool:
        """Whether the URL holds a sweep; False where it holds nothing.

        Raises:
            ConfigError: it holds a run or something else.
        """
        top = self._store.top()
        of_a_run = [name for name in self._store.sizes(STATE) if name != HOLDER_OBJECT] if STATE in top else []
        if of_a_run or any(name in top for name in (RESULT, *FOLDERS)):
            raise ConfigError(f"output.dir={self._store.url} holds a run: name another folder for a sweep")
        others = sorted(name for name in top if name != STATE)
        if others and SWEEP_FILE not in top:
            raise ConfigError(f"output.dir={self._store.url} holds something else ({others[0]}): name another folder")
        return SWEEP_FILE in top
