"""Load of the processors by other programs."""

from __future__ import annotations

import contextlib
import os
import time
from typing import Any

import psutil

from runner.devices.cgroup import ControlGroups


class BackgroundLoad:
    """Measures the share of this process's processors that other programs take, from its making on.

    The processors are those of its affinity, as a job of Slurm has.  In a control group with a limit (a container)
    other programs take nothing as long as they leave as much as the limit, but the group's other processes count.

    Args:
        groups: the process's control groups.
    """

    def __init__(self, groups: ControlGroups | None = None) -> None:
        self._groups = groups or ControlGroups()
        self._since = time.perf_counter()
        self._busy, self._cores = _busy_s()
        self._used = self._groups.used_s()

    def share(self, own_cpu_s: float) -> float:
        """Return the share, 0 to 1; ``own_cpu_s`` is the processor time that the run itself took."""
        elapsed = max(time.perf_counter() - self._since, 1e-9)
        limit = min(self._groups.cores() or self._cores, self._cores)
        others = (_busy_s()[0] - self._busy - own_cpu_s) / elapsed
        share = max(0.0, others - (self._cores - limit)) / limit
        used = self._groups.used_s()
        if used is not None and self._used is not None:
            share = max(share, (used - self._used - own_cpu_s) / elapsed / limit)
        return min(1.0, max(0.0, share))


def family_cpu_s() -> float:
    """Return the processor time of this process and of its descendants that still run."""
    cpu_s = time.process_time()
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it has ended
            times = child.cpu_times()
            cpu_s += times.user + times.system
    return cpu_s


def _busy_s() -> tuple[float, int]:
    """Return the busy seconds of the processors of this process's affinity, and their number."""
    cores: list[Any] = psutil.cpu_times(percpu=True)
    own = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(len(cores)))
    if max(own, default=0) >= len(cores):  # numbered otherwise: some are offline
        own = set(range(len(cores)))
    return sum(_busy_of(cores[number]) for number in own), max(len(own), 1)


def _busy_of(times: Any) -> float:
    idle = times.idle + getattr(times, "iowait", 0.0)
    guest = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)  # counted under user as well
    return float(sum(times) - idle - guest)
