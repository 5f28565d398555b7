"""Temporary folders of processes that may be killed: each is held by a lock, and those of the dead are removed."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from pathlib import Path

from filelock import FileLock, Timeout

_LOCK = "owner.lock"

_YOUNG_S = 60.0
"""A folder that is younger may not have its lock yet."""


class HeldFolder:
    """A temporary folder, for as long as this process lives or until ``remove``.

    Args:
        prefix: of its name; folders of that prefix whose processes are dead are removed.
    """

    def __init__(self, prefix: str) -> None:
        for old in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
            with contextlib.suppress(OSError, Timeout):  # OSError: another user's, or gone
                if time.time() - old.stat().st_mtime > _YOUNG_S:
                    with FileLock(old / _LOCK, timeout=0):
                        shutil.rmtree(old, ignore_errors=True)
        self.path = Path(tempfile.mkdtemp(prefix=prefix))
        self._lock = FileLock(self.path / _LOCK)
        self._lock.acquire()

    def remove(self) -> None:
        """Remove it with all that is in it."""
        self._lock.release()
        shutil.rmtree(self.path, ignore_errors=True)
