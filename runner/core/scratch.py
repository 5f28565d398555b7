"""Temporary folders of processes that may be killed: each has a lock, and those of dead processes are removed."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from pathlib import Path

from filelock import FileLock, Timeout

_LOCK = "owner.lock"

_MIN_AGE_S = 60.0
"""A younger folder may not have its lock yet."""


class HeldFolder:
    """A temporary folder that exists until ``remove``, or until another process finds this one dead.

    Args:
        prefix: of its name; folders with this prefix whose processes are dead are removed.

    Attributes:
        path: of the folder.
    """

    def __init__(self, prefix: str) -> None:
        for old in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
            with contextlib.suppress(OSError, Timeout):  # OSError: it is another user's, or was removed
                if time.time() - old.stat().st_mtime > _MIN_AGE_S:
                    with FileLock(old / _LOCK, timeout=0):
                        shutil.rmtree(old, ignore_errors=True)
        self.path = Path(tempfile.mkdtemp(prefix=prefix))
        self._lock = FileLock(self.path / _LOCK)
        self._lock.acquire()

    def remove(self) -> None:
        """Remove the folder with all its files."""
        self._lock.release()
        shutil.rmtree(self.path, ignore_errors=True)
