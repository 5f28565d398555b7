"""The fence of an output: until when its holder may write, by a clock that does not stop in sleep."""

from __future__ import annotations

import time
from typing import Protocol


class Fence(Protocol):
    """Limits how long a process may write to an output in an object store."""

    def seconds_left(self) -> float:
        """Return for how many seconds this process may still write; 0 or less until the lease is renewed.

        Raises:
            StoreError: another command holds the output.
        """
        ...


def clock() -> float:
    """Return seconds of a clock that continues while the machine sleeps, where the system has one."""
    clock_id = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock_id is None else time.clock_gettime(clock_id)
