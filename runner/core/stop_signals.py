"""Signals that stop a run: Ctrl-C, SIGTERM, and SIGHUP when the terminal is closed.

systemd, Slurm, containers and ``timeout`` send them to all processes of a run at once.  The command and its worker each
finish the current shards; decode processes ignore the signals, and exit when the worker tells them to or has exited.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

log = logging.getLogger(__name__)

STOP_SIGNALS = tuple(
    number for name in ("SIGINT", "SIGTERM", "SIGHUP") if (number := getattr(signal, name, None)) is not None
)

INTERRUPTED = 130
"""Exit status of a command that Ctrl-C ended."""

_SIGHUP = getattr(signal, "SIGHUP", None)

REQUEUE_SIGNAL: int | None = getattr(signal, "SIGUSR2", None)
"""The signal that Slurm sends to all processes of Submitit's jobs before a time limit or a preemption (``--signal``).

Submitit's own handler requeues the job immediately.  It has to wait for the current shards, as a stop has.
"""

_ONE_REQUEST_S = 0.2
"""``timeout`` sends its signal to its child and to the group at once: within so short a time that is one request."""

_PR_SET_PDEATHSIG = 1

_terminals = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]


@contextmanager
def held_back() -> Iterator[None]:
    """Start processes with the signals blocked, until they ``take`` or ``ignore`` them.

    The requeue signal stays blocked there: only the command handles it.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    assert REQUEUE_SIGNAL is not None
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (*STOP_SIGNALS, REQUEUE_SIGNAL))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def install_handler(handler: Callable[[int, FrameType | None], None]) -> dict[int, Any]:
    """Install a handler of the signals (main thread only); return the earlier handlers.

    A SIGHUP that nohup ignores stays ignored; the requeue signal is handled where Submitit handles it.
    """
    numbers = [number for number in STOP_SIGNALS if number != _SIGHUP or signal.getsignal(number) != signal.SIG_IGN]
    if REQUEUE_SIGNAL is not None and callable(signal.getsignal(REQUEUE_SIGNAL)):
        numbers.append(REQUEUE_SIGNAL)
    before = {int(number): signal.signal(number, handler) for number in numbers}
    _unblock()
    return before


def ignore() -> None:
    """Ignore the signals in this process."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    _unblock()


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends, whatever it is stuck in (Linux only)."""
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def die_of(number: int) -> None:
    """End this process immediately, as if it had never handled the signal."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def leave_terminal() -> None:
    """Discard output from now on: writing to a closed terminal is an error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in _terminals:
        os.dup2(nowhere, descriptor)
    os.close(nowhere)


def _unblock() -> None:
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


class Requests:
    """Counts requests to stop, by signals.

    Attributes:
        count: of the requests.
        signal: the last one; SIGTERM if only the worker of this process got one.
    """

    def __init__(self) -> None:
        self.count = 0
        self.signal = signal.SIGTERM
        self._at = 0.0

    def add(self, number: int) -> bool:
        """Count a signal; return whether it is a new request.

        The same signal may arrive twice at once, and systemd sends SIGHUP after SIGTERM: neither is a new request.
        """
        now = time.monotonic()
        if self.count and (number == _SIGHUP or now - self._at < _ONE_REQUEST_S):
            return False
        self.count, self.signal, self._at = self.count + 1, signal.Signals(number), now
        return True


class StopSignal:
    """Stops the worker early: on ``stop`` on standard input, the command's end, or a signal.

    A second signal ends the worker immediately.

    Args:
        end_at_once: called for a request before ``begin``, when there is nothing to finish.
    """

    def __init__(self, end_at_once: Callable[[], None]) -> None:
        self._end_at_once = end_at_once
        self._stop: Callable[[], None] | None = None
        self._lock = threading.Lock()
        self._asked = threading.Event()
        self._requests = Requests()
        self._reasons: queue.SimpleQueue[str] = queue.SimpleQueue()  # a signal handler may put to it
        self.install_handlers()
        threading.Thread(target=self._read, name="stdin", daemon=True).start()
        threading.Thread(target=self._wait, name="stop", daemon=True).start()

    def install_handlers(self) -> None:
        """Handle the signals (the main thread only): at the start, and again when a library has set its own handler."""
        if threading.current_thread() is threading.main_thread():
            install_handler(self._handle)

    def begin(self, stop: Callable[[], None]) -> None:
        """Call ``stop`` on a request from now on; immediately, if there was one already."""
        with self._lock:
            self._stop = stop
            if self._asked.is_set():
                stop()

    def is_set(self) -> bool:
        """Return whether there was a request to stop."""
        return self._asked.is_set()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self._requests.add(number):
            return
        if self._requests.count > 1:
            die_of(number)
        self._reasons.put(signal.Signals(number).name)

    def _read(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            sys.stdin.readline()
        self._reasons.put("the command")

    def _wait(self) -> None:
        while True:
            reason = self._reasons.get()
            with self._lock:
                if self._asked.is_set():
                    continue
                log.info("asked to stop by %s", reason)
                self._asked.set()
                (self._stop or self._end_at_once)()
