"""A clock for leases."""

from __future__ import annotations

import time


def clock() -> float:
    """Seconds, by a clock that goes on while the machine sleeps, where there is one."""
    which = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if which is None else time.clock_gettime(which)
