"""What leases go by: a clock, and what ends the writes of who lost one."""

from __future__ import annotations

import time
from typing import Protocol


class Fence(Protocol):
    """What says how long a command may write."""

    def left(self) -> float:
        """For how many seconds more nobody else has the output; 0 or less where that has to be renewed first.

        Raises:
            StoreError: another has it.
        """
        ...


def clock() -> float:
    """Seconds, by a clock that goes on while the machine sleeps, where there is one."""
    which = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if which is None else time.clock_gettime(which)
