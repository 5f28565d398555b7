"""Locks of a run's folder: the command's and the worker's.

They are the system's (flock), so that the locks of dead processes are free.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from runner.core.errors import ConfigError, ResumeError
from runner.core.files import make_folder, write_atomic
from runner.core.layout import RunLayout
from runner.core.paths import display_location

_WORKER_EXIT_S = 20.0
"""How long past its shutdown timeout the worker of a killed command may take to exit."""

_held: dict[Path, FileLock] = {}
"""The run locks of this process, by folder."""


def acquire_run_lock(folder: Path, output_dir: str | None = None) -> None:
    """Lock a run's folder for this process, until ``release_run_lock`` or its end.

    Args:
        folder: the run's; its state folder is made if it is missing.
        output_dir: of the configuration, for messages.

    Raises:
        ConfigError: another command holds it.
    """
    folder = folder.absolute()
    if folder in _held:
        return
    layout = RunLayout(folder)
    make_folder(layout.state)
    lock = FileLock(layout.run_lock, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ConfigError(
            f"output.dir={display_location(output_dir, folder)} is locked by {_lock_owner(layout)}: "
            "wait for it, or choose another output.dir"
        ) from None
    _held[folder] = lock
    write_atomic(layout.lock_owner, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))


def release_run_lock(folder: Path) -> None:
    """Release the lock of a run's folder, if this process holds it."""
    if lock := _held.pop(folder.absolute(), None):
        lock.release()


def _lock_owner(layout: RunLayout) -> str:
    try:
        owner = json.loads(layout.lock_owner.read_text(encoding="utf-8"))
        return f"process {owner['pid']} on {owner['host']}"
    except (OSError, ValueError, KeyError):
        return "an unknown process"


@contextlib.contextmanager
def worker_lock(run_dir: Path, shutdown_timeout_s: float, path: Path | None = None) -> Iterator[None]:
    """Hold the lock of the only worker in a run's folder.

    The worker of a killed command still finishes its shards; this one waits for it.

    Args:
        run_dir: the run's folder.
        shutdown_timeout_s: how long that worker may take to finish its shards.
        path: of the lock, where it is not in the run's folder.

    Raises:
        ResumeError: another worker did not exit in time.
    """
    lock = FileLock(path or RunLayout(run_dir).worker_lock, timeout=shutdown_timeout_s + _WORKER_EXIT_S)
    try:
        lock.acquire()
    except Timeout:
        raise ResumeError(f"another worker is still running in {run_dir}: wait for it, or stop it") from None
    try:
        yield
    finally:
        lock.release()
