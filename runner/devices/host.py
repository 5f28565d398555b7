"""Facts about this machine that need no TensorFlow: processor, cores, memory, versions."""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import psutil

from runner.devices.cgroup import Groups

MIB = 1 << 20

_GROUPS = Groups()

CORES = "VGGISH_RUNNER_CORES"
"""Environment variable: the share of this machine's cores that is a process's own, and its children's."""

_PACKAGES = ("tensorflow", "tensorflow-metal", "numpy", "soundfile", "soxr", "pyarrow", "hydra-core", "mlflow")


@lru_cache(maxsize=1)
def cpu_name() -> str:
    """The processor's model name."""
    for line in _lines("/proc/cpuinfo"):
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


@lru_cache(maxsize=1)
def cpu_flags() -> frozenset[str]:
    """The processor's instruction-set flags as Linux names them; empty where they can't be read."""
    for line in _lines("/proc/cpuinfo"):
        if line.startswith(("flags", "Features")):
            return frozenset(line.split(":", 1)[1].split())
    return frozenset()


def usable_cores() -> int:
    """Cores that this process may use: its affinity, its cgroup's limit rounded up, and its share if it has one."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    share = os.environ.get(CORES, "")
    affinity = min(affinity, int(share)) if share.isdecimal() and int(share) else affinity
    limit = _GROUPS.cores()
    return affinity if limit is None else max(1, min(affinity, math.ceil(limit)))


def usable_memory_mib() -> int:
    """Main memory in MiB, or the cgroup's limit where that is smaller."""
    total = int(psutil.virtual_memory().total)
    return min(total, _GROUPS.memory_bytes() or total) // MIB


def peak_rss_mib() -> float:
    """The largest resident set of this process so far, in MiB."""
    for line in _lines("/proc/self/status"):  # Linux; its ru_maxrss counts what the parent had before exec
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    if sys.platform == "win32":
        return float(psutil.Process().memory_info().peak_wset) / MIB
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / MIB if sys.platform == "darwin" else peak / 1024


def peak_own_mib() -> float:
    """``peak_rss_mib`` without memory shared with other processes (where the system tells it apart: Linux)."""
    shared = next((line for line in _lines("/proc/self/status") if line.startswith("RssShmem:")), "RssShmem: 0 kB")
    return peak_rss_mib() - int(shared.split()[1]) / 1024


def host_facts() -> dict[str, Any]:
    """What a run records of its host."""
    return {
        "name": platform.node(),
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cores": usable_cores(),
        "memory_mib": usable_memory_mib(),
    }


def versions() -> dict[str, str]:
    """Versions of Python, this package and those that its numbers depend on."""
    import runner

    found = {"python": platform.python_version(), "runner": runner.__version__}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
