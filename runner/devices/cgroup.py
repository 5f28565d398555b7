"""Limits of processors and memory of Linux control groups, versions 2 and 1, and the processor time they used.

A container, Slurm or systemd may nest groups; the tightest limit of a process's own group and those above it holds.
Source: docs.kernel.org/admin-guide/cgroup-v2.html and cgroup-v1/.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_NO_LIMIT = 1 << 60
"""Version 1 states no limit as a number of bytes near 2^63."""


@dataclass(frozen=True)
class ControlGroups:
    """The control groups of a process.

    Args:
        root: folder where the kernel mounts groups.
        own: file that names the process's groups.
    """

    root: Path = Path("/sys/fs/cgroup")
    own: Path = Path("/proc/self/cgroup")

    def cores(self) -> float | None:
        """Return the processors that the process may use, as a fraction of time; None without a limit."""
        limits = []
        for folder in self._folders(""):
            quota, _, period = _text(folder / "cpu.max").partition(" ")
            limits += [int(quota) / int(period)] if quota.isdecimal() and period.isdecimal() else []
        for folder in self._folders("cpu"):
            quota, period = _text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")
            limits += [int(quota) / int(period)] if quota.isdecimal() and period.isdecimal() else []
        return min(limits, default=None)

    def memory_bytes(self) -> int | None:
        """Return the memory that the process may use; None without a limit."""
        limits = [_text(folder / "memory.max") for folder in self._folders("")]
        limits += [_text(folder / "memory.limit_in_bytes") for folder in self._folders("memory")]
        return min((int(limit) for limit in limits if limit.isdecimal() and int(limit) < _NO_LIMIT), default=None)

    def used_s(self) -> float | None:
        """Return the processor seconds of all processes in the innermost group with a limit; None without a limit."""
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
        """Yield the existing folders of the process's group and those above it, innermost first.

        Args:
            controller: of version 1; empty for version 2.
        """
        for line in _text(self.own).splitlines():
            _, names, path = (*line.split(":", 2), "", "")[:3]
            if controller not in names.split(","):
                continue
            mounts = [self.root / names, self.root / controller] if controller else [self.root]
            mount = next((folder for folder in mounts if folder.is_dir()), None)
            if mount is None:
                return
            inner = mount / path.strip("/")
            # In a container the path may be the host's, and the mount the group itself
            folders = (inner, *inner.parents)
            yield from (folder for folder in folders if folder.is_relative_to(mount) and folder.is_dir())
            return


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
