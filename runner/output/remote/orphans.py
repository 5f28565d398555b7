"""Workers whose command was killed, and who are still at work in the folder of a run in an object store."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock, Timeout

from runner.core.errors import ConfigError
from runner.core.layout import LOCK, STATE
from runner.core.paths import WORKING_FOLDERS

ORPHAN_S = 60.0
"""How long the worker of a killed command may take to end, past its grace."""


def stale_worker_lock(folder: Path) -> Path:
    """The lock of a working folder's worker: beside it, as the folder may be deleted while a worker lives.

    Those of a sweep's jobs are beside the sweep's working folder.
    """
    outermost = next((each for each in (folder, *folder.parents) if each.parent.name == WORKING_FOLDERS), folder)
    return outermost.with_name(f"{'.'.join((outermost.name, *folder.relative_to(outermost).parts))}.lock")


def wait_for_stale_worker(folder: Path, patience_s: float) -> None:
    """Wait until the worker of a killed command on this machine, if there is one, has left the working folder.

    Raises:
        ConfigError: it does not end.
    """
    _wait_for(stale_worker_lock(folder), folder, patience_s)


def wait_for_orphans(sweep_folder: Path, patience_s: float) -> None:
    """Wait for those of a sweep's jobs, and for jobs that a launcher began; raises as ``wait_for_stale_worker``
    does."""
    workers = sweep_folder.parent.glob(f"{sweep_folder.name}.*.lock")
    for lock in (*workers, *sweep_folder.glob(f"*/{STATE}/{LOCK}")):
        _wait_for(lock, sweep_folder, patience_s)


def _wait_for(path: Path, folder: Path, patience_s: float) -> None:
    lock = FileLock(path, timeout=patience_s)
    try:
        lock.acquire()
    except Timeout:
        raise ConfigError(f"a process of an earlier command is still at work on {folder}: end it") from None
    lock.release()
