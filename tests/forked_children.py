"""Children of a forked command that are forks as well: a run's worker, its decode processes, a launcher's jobs.

Started afresh, each imports for up to a second what the tests' fork server has.  ``begin`` leaves a fork of the process
behind, before it has threads, and has ``subprocess`` and ``multiprocessing`` ask it for the Python processes that
``_is_forked`` names.  They are children of the process that asked, with the arguments (``/proc/PID/cmdline`` too),
folder, environment, file descriptors, blocked signals and exit status of fresh ones.  Linux only; elsewhere they are
fresh.
"""

from __future__ import annotations

import _posixsubprocess
import atexit
import contextlib
import ctypes
import fcntl
import json
import os
import runpy
import signal
import socket
import struct
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

MODULES = ("tests.double.command", "tests.double.worker", "submitit.local._local", "submitit.core._submit")
"""Those that start others."""
ROOM_FOR_ARGUMENTS = "-" * 4096
"""An argument of the fork server's that is overwritten with those of its forks."""
_CLONE = {"x86_64": 56, "aarch64": 220}
"""Numbers of the system call."""
_CLONE_PARENT = 0x8000
_SIZE = struct.Struct("!I")
_EXEC = _posixsubprocess.fork_exec


def begin() -> None:
    """Leave the fork behind that later children of this process, which has no threads yet, are forks of."""
    if not sys.platform.startswith("linux") or os.uname().machine not in _CLONE:
        return
    ours, theirs = socket.socketpair()
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # whatever a whole group is sent
    if os.fork() == 0:
        ours.close()
        try:
            _serve(theirs)
        finally:
            os._exit(1)  # the process that asks is gone
    theirs.close()
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    import subprocess

    _posixsubprocess.fork_exec = subprocess._fork_exec = _Fork(ours)  # type: ignore[attr-defined]


def become(words: Sequence[str], cwd: str, env: Mapping[str, str], new_session: bool) -> None:
    """Make of this fork the process ``python WORDS``, but for its file descriptors."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if new_session:
        os.setsid()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    path = [cwd, *env.get("PYTHONPATH", "").split(os.pathsep)]
    sys.path[:1] = [folder for folder in path if folder and folder not in sys.path[1:]]
    time.tzset()
    _name([sys.executable, *words])


def run(words: Sequence[str]) -> NoReturn:
    """Be the process ``python WORDS``, of ``-m MODULE …`` or ``-c CODE …``, to its end.

    Threads are waited for and exit functions called, but the modules are not torn down, which takes 0.3 s.
    """
    status = 0
    try:
        if "-m" in words:
            sys.argv = list(words[words.index("-m") + 1 :])
            if sys.argv[0] in MODULES:
                begin()
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        else:
            code, *arguments = words[words.index("-c") + 1 :]
            sys.argv = ["-c", *arguments]
            exec(code, {"__name__": "__main__"})
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if not isinstance(end.code, int | None):
            print(end.code, file=sys.stderr)
    except KeyboardInterrupt:
        raise
    except BaseException:
        traceback.print_exc()
        status = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status & 0xFF)


def _is_forked(words: Sequence[str]) -> bool:
    if words[0] != sys.executable:
        return False
    return any(word in MODULES or word.startswith("from multiprocessing.") for word in words[1:])


def _name(words: Sequence[str]) -> None:
    """Have the command line that others see of this process be this one, as far as there is room."""
    with contextlib.suppress(OSError):
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        start, end = int(fields[45]), int(fields[46])
        line = "\0".join(words).encode(errors="surrogateescape")[: end - start - 1]
        ctypes.memset(start, 0, end - start)
        ctypes.memmove(start, line, len(line))


class _Fork:
    """``_posixsubprocess.fork_exec``, which asks the fork that was left behind where it can."""

    def __init__(self, line: socket.socket) -> None:
        self._line, self._lock = line, threading.Lock()

    def __call__(self, arguments: Sequence[Any], *options: Any) -> int:
        words = [os.fsdecode(word) for word in arguments]
        if not _is_forked(words):
            return _EXEC(arguments, *options)
        _, _, kept, cwd, env, stdin, _, _, stdout, _, stderr, _, for_error, _, new_session, *_ = options
        numbers = {place: place if number < 0 else number for place, number in enumerate((stdin, stdout, stderr))}
        numbers |= {number: number for number in kept if number != for_error}
        asked = {
            "words": words[1:],
            "cwd": os.fsdecode(cwd) if cwd else os.getcwd(),
            "env": dict(os.environ) if env is None else dict(os.fsdecode(each).split("=", 1) for each in env),
            "new_session": bool(new_session),
            "blocked": [int(each) for each in signal.pthread_sigmask(signal.SIG_BLOCK, [])],
            "numbers": list(numbers),
        }
        data = json.dumps(asked).encode()
        with self._lock:
            socket.send_fds(self._line, [_SIZE.pack(len(data))], list(numbers.values()))
            self._line.sendall(data)
            return _SIZE.unpack(self._line.recv(_SIZE.size, socket.MSG_WAITALL))[0]


def _serve(line: socket.socket) -> NoReturn:
    """Fork what is asked for until nobody can ask any more."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in range(3):  # whoever reads what the process writes waits for its end alone
        os.dup2(nothing, number)
    os.close(nothing)
    _name([sys.executable, "-m", __name__])
    while True:
        head, streams, _, _ = socket.recv_fds(line, _SIZE.size, 64)
        if not head:
            os._exit(0)
        asked = json.loads(line.recv(_SIZE.unpack(head)[0], socket.MSG_WAITALL))
        pid = _fork_sibling()
        if pid == 0:
            line.close()
            _be(asked, list(streams))
        line.sendall(_SIZE.pack(pid))
        for stream in streams:
            os.close(stream)


def _fork_sibling() -> int:
    """``os.fork`` in a process of one thread, whose child is a child of this process's parent."""
    ctypes.pythonapi.PyOS_BeforeFork()
    pid: int = ctypes.PyDLL(None).syscall(_CLONE[os.uname().machine], _CLONE_PARENT | signal.SIGCHLD, 0, 0, 0, 0)
    (ctypes.pythonapi.PyOS_AfterFork_Parent if pid else ctypes.pythonapi.PyOS_AfterFork_Child)()
    return pid


def _be(asked: dict[str, Any], streams: list[int]) -> NoReturn:
    """Be the process that was asked for, to its end."""
    above = max(asked["numbers"]) + 1
    held = [fcntl.fcntl(stream, fcntl.F_DUPFD, above) for stream in streams]
    for stream in streams:
        os.close(stream)
    for stream, number in zip(held, asked["numbers"], strict=True):
        os.dup2(stream, number)
        os.close(stream)
    become(asked["words"], asked["cwd"], asked["env"], asked["new_session"])
    signal.pthread_sigmask(signal.SIG_SETMASK, asked["blocked"])
    run(asked["words"])
