"""The signals that ask for an end: Ctrl-C, SIGTERM, and SIGHUP when a terminal is gone.

systemd, Slurm, containers and ``timeout`` send them to all processes of a run at once.  The command and its worker each
finish what is under way; decode processes ignore them, and end when they are told to or when the worker is gone.
"""

from __future__ import annotations

import contextlib
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

log = logging.getLogger("runner.engines.worker")

STOP_SIGNALS = tuple(
    number for name in ("SIGINT", "SIGTERM", "SIGHUP") if (number := getattr(signal, name, None)) is not None
)

INTERRUPTED = 130
"""Exit status of a command that Ctrl-C ended."""

_SIGHUP = getattr(signal, "SIGHUP", None)

REQUEUE_SIGNAL: int | None = getattr(signal, "SIGUSR2", None)
"""What Submitit has Slurm send before a time limit or a preemption (``--signal``), to every process of a job.

Submitit's own handler queues the job again on the spot.  It has to wait for the shards under way, as a stop has.
"""

_ONE_REQUEST_S = 0.2
"""``timeout`` sends its signal to its child and to the group at once: that is one request, as nobody is so quick."""

_terminals = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]


@contextmanager
def held_back() -> Iterator[None]:
    """Processes that this thread starts begin with the signals blocked, until they ``take`` or ``ignore`` them.

    The one for queueing again stays blocked there: it is the command's to see to.
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


def take(handler: Callable[[int, FrameType | None], None]) -> dict[int, Any]:
    """Have the signals handled (main thread only); what handled them before.

    A SIGHUP that nohup ignores stays so; the one for queueing again is taken where Submitit handles it.
    """
    wanted = [number for number in STOP_SIGNALS if number != _SIGHUP or signal.getsignal(number) != signal.SIG_IGN]
    if REQUEUE_SIGNAL is not None and callable(signal.getsignal(REQUEUE_SIGNAL)):
        wanted.append(REQUEUE_SIGNAL)
    before = {int(number): signal.signal(number, handler) for number in wanted}
    _let_in()
    return before


def ignore() -> None:
    """Ignore the signals, for the life of this process."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    _let_in()


def die_of(number: int) -> None:
    """End this process on the spot, as if it had never handled the signal."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def leave_terminal() -> None:
    """Print no more: the terminal is gone, and writing to it would be an error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in _terminals:
        os.dup2(nowhere, descriptor)
    os.close(nowhere)


def _let_in() -> None:
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


class Requests:
    """Counts how often an end was asked for by signals."""

    def __init__(self) -> None:
        self.count = 0
        self.signal = signal.SIGTERM
        """The last one; SIGTERM where this process got none: then its worker alone did."""
        self._at = 0.0

    def add(self, number: int) -> bool:
        """Take note of a signal; whether it is one request more.

        The same one may come twice at once, and systemd sends SIGHUP behind SIGTERM: that asks for nothing new.
        """
        now = time.monotonic()
        if self.count and (number == _SIGHUP or now - self._at < _ONE_REQUEST_S):
            return False
        self.count, self.signal, self._at = self.count + 1, signal.Signals(number), now
        return True


class StopSignal:
    """In the worker: asks for an early end on ``stop`` on standard input, the parent's end, or a signal.

    A second signal ends the worker on the spot.

    Args:
        end_at_once: called when an end is asked for before ``begin``: there is nothing to finish.
    """

    def __init__(self, end_at_once: Callable[[], None]) -> None:
        self._end_at_once = end_at_once
        self._stop: Callable[[], None] | None = None
        self._lock = threading.Lock()
        self._asked = threading.Event()
        self._requests = Requests()
        self._reasons: queue.SimpleQueue[str] = queue.SimpleQueue()  # may be put to by a signal's handler
        self.take_signals()
        threading.Thread(target=self._read, name="stdin", daemon=True).start()
        threading.Thread(target=self._wait, name="stop", daemon=True).start()

    def take_signals(self) -> None:
        """Handle the signals (the main thread only): at the start, and again when a library has set its own handler."""
        if threading.current_thread() is threading.main_thread():
            take(self._handle)

    def begin(self, stop: Callable[[], None]) -> None:
        """Something is under way from now on: ``stop`` is called when an end is asked for, now if it was already."""
        with self._lock:
            self._stop = stop
            if self._asked.is_set():
                stop()

    def is_set(self) -> bool:
        """Whether an end was asked for."""
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
