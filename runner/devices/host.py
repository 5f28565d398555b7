"""Facts about this machine without TensorFlow: processor, cores, memory, versions."""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
import sys
from functools import lru_cache
from pathlib import Path

import psutil

from runner.core.version import VERSION
from runner.devices.cgroup import ControlGroups

MIB = 1 << 20

_CONTROL_GROUPS = ControlGroups()

CORES = "VGGISH_RUNNER_CORES"
"""Environment variable: number of cores that a process and its children may use."""

_CORES_A_WRITER = 4

_MAX_WRITERS = 4

_WIDE_ROW = 1000

_PACKAGES = ("tensorflow", "tensorflow-metal", "numpy", "soundfile", "soxr", "pyarrow", "hydra-core", "mlflow")


@lru_cache(maxsize=1)
def cpu_name() -> str:
    """Return the processor's model name."""
    for line in _lines("/proc/cpuinfo"):
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


@lru_cache(maxsize=1)
def cpu_flags() -> frozenset[str]:
    """Return the processor's instruction-set flags by Linux's names; empty where they can't be read."""
    for line in _lines("/proc/cpuinfo"):
        if line.startswith(("flags", "Features")):
            return frozenset(line.split(":", 1)[1].split())
    return frozenset()


def usable_cores() -> int:
    """Return the cores that this process may use: by affinity, by ``CORES``, and by its group's limit, rounded up."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    share = os.environ.get(CORES, "")
    if share.isdecimal() and int(share):
        cores = min(cores, int(share))
    limit = _CONTROL_GROUPS.cores()
    return cores if limit is None else max(1, min(cores, math.ceil(limit)))


def take_share_of_cores(place: int, count: int) -> None:
    """Keep this process, and those that it starts, to its share of the cores, as one of ``count`` processes.

    The cores of a process are neighbors, which mostly share a socket and its memory.  Where processes can't be kept to
    cores, or there are fewer than processes, they only count on their share.
    """
    os.environ[CORES] = str(max(1, usable_cores() // count))
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        share = len(cores) // count
        if own := cores[place * share : (place + 1) * share]:
            os.sched_setaffinity(0, own)


def usable_memory_mib() -> int:
    """Return the main memory in MiB, or the control group's limit where that is smaller."""
    total = int(psutil.virtual_memory().total)
    return min(total, _CONTROL_GROUPS.memory_bytes() or total) // MIB


def peak_rss_mib() -> float:
    """Return the largest resident set of this process so far, in MiB."""
    for line in _lines("/proc/self/status"):  # Linux; its ru_maxrss includes the parent's before exec
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    if sys.platform == "win32":
        return float(psutil.Process().memory_info().peak_wset) / MIB
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / MIB if sys.platform == "darwin" else peak / 1024


def peak_own_mib() -> float:
    """Return ``peak_rss_mib`` without memory shared with other processes (on Linux, which counts it apart)."""
    shared = next((line for line in _lines("/proc/self/status") if line.startswith("RssShmem:")), "RssShmem: 0 kB")
    return peak_rss_mib() - int(shared.split()[1]) / 1024


def host_facts() -> dict[str, str | int]:
    """Return the description of the host that a run records."""
    return {
        "name": platform.node(),
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cores": usable_cores(),
        "memory_mib": usable_memory_mib(),
    }


def versions() -> dict[str, str]:
    """Return the versions of Python, this package and those that its numbers depend on."""
    return dict(_versions())


@lru_cache(maxsize=1)
def _versions() -> dict[str, str]:
    installed = {"python": platform.python_version(), "runner": VERSION}
    for package in _PACKAGES:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def writers_for(cores: int, row_values: int = 0) -> int:
    """Return the shards to write at a time on a machine.

    One for every four cores, four at most; twice as many where the rows of a model have over a thousand values, which
    take ten times as long to write as VGGish's.
    """
    writers = max(1, min(_MAX_WRITERS, cores // _CORES_A_WRITER))
    return writers * 2 if row_values > _WIDE_ROW else writers
