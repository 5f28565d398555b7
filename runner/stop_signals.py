"""The signals that ask for an end: Ctrl-C, SIGTERM, and SIGHUP when a terminal is gone.

systemd, Slurm, containers and ``timeout`` send them to all processes of a run at once.  The command and its worker each
finish what is under way; decode processes ignore them, and end when they are told to or when the worker is gone.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = tuple(
    number for name in ("SIGINT", "SIGTERM", "SIGHUP") if (number := getattr(signal, name, None)) is not None
)
_SIGHUP = getattr(signal, "SIGHUP", None)
Handler = Callable[[int, FrameType | None], None]


@contextmanager
def held_back() -> Iterator[None]:
    """Processes that this thread starts begin with the signals blocked, until they ``take`` or ``ignore`` them."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def take(handler: Handler) -> dict[int, object]:
    """Have the signals handled (main thread only); what handled them before.  A SIGHUP that nohup ignores stays so."""
    wanted = [number for number in STOP_SIGNALS if number != _SIGHUP or signal.getsignal(number) != signal.SIG_IGN]
    before = {int(number): signal.signal(number, handler) for number in wanted}
    _let_in()
    return before


def ignore() -> None:
    """Ignore the signals, for the life of this process."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    _let_in()


def _let_in() -> None:
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
