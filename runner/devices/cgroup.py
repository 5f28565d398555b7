"""Limits of processors and memory that Linux's control groups set, and what their processes use: version 2 and 1.

A container, Slurm or systemd may nest groups; the tightest limit of a process's own group and those above it holds.
Source: docs.kernel.org/admin-guide/cgroup-v2.html and cgroup-v1/.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_NO_LIMIT = 1 << 60
"""Version 1 has no word for none, but a number of bytes near 2^63."""


@dataclass(frozen=True)
class Groups:
    """The groups of a process.

    Args:
        root: where the kernel's groups are mounted.
        own: the file that names the process's groups.
    """

    root: Path = Path("/sys/fs/cgroup")
    own: Path = Path("/proc/self/cgroup")

    def cores(self) -> float | None:
        """The processors' worth of time that the process may have; None without a limit."""
        limits = []
        for folder in self._folders(""):
            quota, _, period = _text(folder / "cpu.max").partition(" ")
            limits += [int(quota) / int(period)] if quota.isdecimal() and period.isdecimal() else []
        for folder in self._folders("cpu"):
            quota, period = _text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")
            limits += [int(quota) / int(period)] if quota.isdecimal() and period.isdecimal() else []
        return min(limits, default=None)

    def memory_bytes(self) -> int | None:
        """The memory that the process may have; None without a limit."""
        found = [_text(folder / "memory.max") for folder in self._folders("")]
        found += [_text(folder / "memory.limit_in_bytes") for folder in self._folders("memory")]
        return min((int(each) for each in found if each.isdecimal() and int(each) < _NO_LIMIT), default=None)

    def used_s(self) -> float | None:
        """Processor seconds of the innermost group with a limit of processors, all its processes; None without one."""
        for folder in self._folders(""):
            if _text(folder / "cpu.max").partition(" ")[0].isdecimal():
                stat = dict(line.split()[:2] for line in _text(folder / "cpu.stat").splitlines() if " " in line)
                return int(stat["usage_usec"]) / 1e6 if "usage_usec" in stat else None
        used = [folder / "cpuacct.usage" for folder in self._folders("cpuacct")]
        limited = [_text(folder / "cpu.cfs_quota_us").isdecimal() for folder in self._folders("cpu")]
        for path, limit in zip(used, limited, strict=False):
            if limit and _text(path).isdecimal():
                return int(_text(path)) / 1e9
        return None

    def _folders(self, controller: str) -> Iterator[Path]:
        """The folders of the process's group and those above it, innermost first, that there are.

        Args:
            controller: of version 1; empty for version 2.
        """
        for line in _text(self.own).splitlines():
            _, names, path = (*line.split(":", 2), "", "")[:3]
            if controller not in names.split(","):
                continue
            mounts = [self.root / names, self.root / controller] if controller else [self.root]
            mount = next((each for each in mounts if each.is_dir()), None)
            if mount is None:
                return
            inner = mount / path.strip("/")
            # In a container the path may be the host's, and what is mounted the group itself
            yield from (each for each in (inner, *inner.parents) if each.is_relative_to(mount) and each.is_dir())
            return


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
