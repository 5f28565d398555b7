"""The interruption of a command by Ctrl-C or a signal, for its threads and its cleanup.

Python raises an exception in the main thread alone.  Other threads look for the interruption while they wait for a
store; otherwise the main thread, which waits for its threads to end, would wait for answers that nobody needs.
"""

from __future__ import annotations

import threading
import time

CHECK_S = 0.2
"""How often a waiting thread looks for an interruption; a signal handler can't set an Event, whose lock may be held."""

_CLEANUP_S = 10.0
"""How long the requests of a cleanup may take together."""

_ends_threads = False
_interruptions = 0
_cleanup_ends_at: float | None = None


class Interrupted(BaseException):
    """The command was interrupted: nobody needs the result of this thread."""


def begin_command() -> None:
    """Forget the interruptions of an earlier command of this process."""
    global _interruptions, _cleanup_ends_at
    begin_cleanup()
    _interruptions, _cleanup_ends_at = 0, None


def interrupt() -> None:
    """End the threads that wait for a store, and at the second time the cleanup too; called by signal handlers."""
    global _ends_threads, _interruptions, _cleanup_ends_at
    _ends_threads, _interruptions = True, _interruptions + 1
    if _interruptions > 1:
        _cleanup_ends_at = time.monotonic()


def begin_cleanup() -> None:
    """Allow threads again: those of the interrupted work have ended."""
    global _ends_threads
    _ends_threads = False


def check_interruption() -> None:
    """Raise Interrupted if the command was interrupted and this is not the main thread."""
    if _ends_threads and threading.current_thread() is not threading.main_thread():
        raise Interrupted


def pause(seconds: float) -> None:
    """Sleep; raises Interrupted as ``check_interruption`` does."""
    ends_at = time.monotonic() + seconds
    while (left_s := ends_at - time.monotonic()) > 0:
        time.sleep(min(left_s, CHECK_S))
        check_interruption()


def cleanup_limit_s(limit_s: float) -> float:
    """Return the time limit of a request of the cleanup, in seconds: after an interruption all share ten seconds."""
    global _cleanup_ends_at
    if not _interruptions:
        return limit_s
    if _cleanup_ends_at is None:
        _cleanup_ends_at = time.monotonic() + _CLEANUP_S
    return max(0.0, round(min(limit_s, _cleanup_ends_at - time.monotonic()), 1))
