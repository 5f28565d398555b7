"""Waits for the workers of killed commands, which still work in the staging folder of an output in an object store."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock, Timeout

from runner.core.errors import ConfigError
from runner.core.layout import RunLayout
from runner.core.paths import WORKING_FOLDERS

STALE_WORKER_S = 60.0
"""How long the worker of a killed command may take to exit, past its shutdown timeout."""


def stale_worker_lock(folder: Path) -> Path:
    """Return the lock of a staging folder's worker.

    It is next to the folder, which may be deleted while a worker lives; the locks of a sweep's jobs are next to the
    sweep's staging folder.
    """
    staging = next((parent for parent in (folder, *folder.parents) if parent.parent.name == WORKING_FOLDERS), folder)
    return staging.with_name(f"{'.'.join((staging.name, *folder.relative_to(staging).parts))}.lock")


def wait_for_stale_worker(folder: Path, timeout_s: float) -> None:
    """Wait until the worker of a killed command on this machine, if any, has left the staging folder.

    Raises:
        ConfigError: it did not exit in time.
    """
    _wait_for(stale_worker_lock(folder), folder, timeout_s)


def wait_for_stale_jobs(sweep_folder: Path, timeout_s: float) -> None:
    """Wait for the workers of a sweep's jobs, and for jobs that a launcher started.

    Raises:
        ConfigError: one did not exit in time.
    """
    workers = sweep_folder.parent.glob(f"{sweep_folder.name}.*.lock")
    for lock in (*workers, *sweep_folder.glob(f"*/{RunLayout.run_lock}")):
        _wait_for(lock, sweep_folder, timeout_s)


def _wait_for(path: Path, folder: Path, timeout_s: float) -> None:
    lock = FileLock(path, timeout=timeout_s)
    try:
        lock.acquire()
    except Timeout:
        raise ConfigError(f"a process of an earlier command is still running in {folder}: stop it") from None
    lock.release()
