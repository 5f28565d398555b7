"""How busy other programs keep the processors."""

from __future__ import annotations

import contextlib
import os
import time
from typing import Any

import psutil

from runner.devices.cgroup import Groups


class BackgroundLoad:
    """The share of the processors that this process may use which other programs took since it was made.

    Counted are the processors of its affinity, as a job of Slurm has.  In a group with a limit (a container) others
    take nothing as long as they leave as much as the limit, and the group's other processes count.

    Args:
        groups: where the groups are.
    """

    def __init__(self, groups: Groups | None = None) -> None:
        self._groups = groups or Groups()
        self._since = time.perf_counter()
        self._busy, self._cores = _busy_s()
        self._used = self._groups.used_s()

    def share(self, own_cpu_s: float) -> float:
        """Of all that it may use, 0 to 1; ``own_cpu_s`` is the processor time that the run itself took."""
        elapsed = max(time.perf_counter() - self._since, 1e-9)
        limit = min(self._groups.cores() or self._cores, self._cores)
        beside = (_busy_s()[0] - self._busy - own_cpu_s) / elapsed
        taken = max(0.0, beside - (self._cores - limit)) / limit
        used = self._groups.used_s()
        if used is not None and self._used is not None:
            taken = max(taken, (used - self._used - own_cpu_s) / elapsed / limit)
        return min(1.0, max(0.0, taken))


def family_cpu_s() -> float:
    """The processor time of this process and of those that it started and that still run."""
    found = time.process_time()
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it has ended
            times = child.cpu_times()
            found += times.user + times.system
    return found


def _busy_s() -> tuple[float, int]:
    """The seconds that the processors of this process's affinity were busy, and how many they are."""
    every: list[Any] = psutil.cpu_times(percpu=True)
    own = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(len(every)))
    if max(own, default=0) >= len(every):  # numbered otherwise: some are offline
        own = set(range(len(every)))
    return sum(_busy_of(every[number]) for number in own), max(len(own), 1)


def _busy_of(times: Any) -> float:
    idle = times.idle + getattr(times, "iowait", 0.0)
    guest = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)  # counted under user as well
    return float(sum(times) - idle - guest)
