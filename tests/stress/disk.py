"""What a process does to the files below a folder: noted, and with the n-th call made to fail.

A preloaded C library (tests/stress/disk_shim.c) stands between the process and the C library.  SQLite's tests put a
file
system of their own below the engine, and ALICE records system calls; a preloaded library is the nearest to both that
sees pyarrow's writes, which never come through Python, and needs no rights.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).with_name("disk_shim.c")
KINDS = {
    "o": "open",
    "w": "write",
    "f": "fsync",
    "r": "rename",
    "u": "unlink",
    "m": "mkdir",
    "l": "link",
    "t": "truncate",
    "c": "close",
    "d": "rmdir",
}
ONCE, FROM_THEN_ON, HALF = range(3)
"""How calls fail: one; that and all after it (but not those that let go); a write's first half is done, no more."""
_HEADER = struct.Struct("<c3xiqIII4x")


@dataclass(frozen=True)
class Call:
    """A call: what, the descriptor (-2 where the call failed), its number (flags, offset or size), paths and data."""

    kind: str
    fd: int
    number: int
    path: str
    second: str
    data: bytes

    @property
    def is_counted(self) -> bool:
        """Whether it may fail: all but the closing of files that were only read."""
        return self.kind != "close" or self.number != 0


def why_not() -> str | None:
    """Why this machine can't watch a process's calls; None where it can."""
    if not sys.platform.startswith("linux"):
        return "needs Linux"
    return None if shutil.which("gcc") else "needs gcc"


def build(folder: Path) -> Path:
    """Compile the library."""
    library = folder / "disk_shim.so"
    subprocess.run(["gcc", "-O1", "-shared", "-fPIC", "-o", library, SOURCE, "-lpthread"], check=True)
    return library


class Watch:
    """Watches this process, which has the library preloaded.

    Args:
        folder: whose files are watched.
        log: where calls are noted; a file that is not below ``folder``.
    """

    def __init__(self, folder: Path, log: Path) -> None:
        self._library = ctypes.CDLL(None)
        self._folder, self._log = folder, log

    def begin(self, fail: tuple[int, int, int] | None = None) -> None:
        """Count from 1 on; ``fail``: the number of the call that fails, its errno, and how."""
        self._descriptor = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        self._library.disk_watch(os.fsencode(self._folder), self._descriptor)
        if fail:
            self._library.disk_fail(ctypes.c_long(fail[0]), fail[1], fail[2])

    def end(self) -> list[Call]:
        """The calls since ``begin``."""
        self._library.disk_rest()
        os.close(self._descriptor)
        return calls_of(self._log.read_bytes())


def calls_of(log: bytes) -> list[Call]:
    """What the library noted."""
    calls, at = [], 0
    while at < len(log):
        kind, fd, number, *sizes = _HEADER.unpack_from(log, at)
        at += _HEADER.size
        parts = []
        for size in sizes:
            parts.append(log[at : at + size])
            at += size
        path, second = (os.fsdecode(part) for part in parts[:2])
        calls.append(Call(KINDS[kind.decode()], fd, number, path, second, parts[2]))
    return calls
