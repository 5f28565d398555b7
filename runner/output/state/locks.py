"""Locks of a run's folder: the command's and the worker's."""

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
from runner.core.layout import HOLDER, LOCK, STATE, WORKER_LOCK
from runner.core.paths import display_location

_claims: dict[Path, FileLock] = {}


def acquire_run_lock(folder: Path, output_dir: str | None = None) -> None:
    """Take a run's folder for this process, until it ends; ``output_dir`` is that of its configuration.

    Raises:
        ConfigError: another command has it.
    """
    folder = folder.absolute()
    if folder in _claims:
        return
    state = folder / STATE
    make_folder(state)
    lock = FileLock(state / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ConfigError(
            f"output.dir={display_location(output_dir, folder)} is in use by another command ({_holder(state)}): "
            f"wait for it, "
            "or name another folder"
        ) from None
    _claims[folder] = lock
    write_atomic(state / HOLDER, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))


def release(folder: Path) -> None:
    """Give a claimed folder up."""
    if lock := _claims.pop(folder.absolute(), None):
        lock.release()


def _holder(state: Path) -> str:
    try:
        found = json.loads((state / HOLDER).read_text(encoding="utf-8"))
        return f"process {found['pid']} on {found['host']}"
    except (OSError, ValueError, KeyError):
        return "of unknown process"


_PATIENCE_S = 20.0
"""How long past its grace a worker whose command was killed may take to end."""


@contextlib.contextmanager
def worker_lock(run_dir: Path, grace_s: float, lock_file: Path | None = None) -> Iterator[None]:
    """Wait for the worker of a killed command, which still finishes its shards, and keep the next one out.

    ``lock_file`` is where the lock is, if not in the run's folder.
    """
    lock = FileLock(lock_file or run_dir / STATE / WORKER_LOCK, timeout=grace_s + _PATIENCE_S)
    try:
        lock.acquire()
    except Timeout:
        raise ResumeError(f"another worker is still at work on {run_dir}: wait for it to end, or end it") from None
    try:
        yield
    finally:
        lock.release()
