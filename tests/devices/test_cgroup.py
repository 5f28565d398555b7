"""Limits of control groups, in trees of our own: nested, version 2 and 1, and in a container's view of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from runner.devices.cgroup import ControlGroups
from runner.devices.load import BackgroundLoad


def groups(tmp_path: Path, own: str, files: dict[str, str]) -> ControlGroups:
    root = tmp_path / "cgroup"
    root.mkdir()
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    (tmp_path / "own").write_text(own + "\n")
    return ControlGroups(root, tmp_path / "own")


def test_the_tightest_limit_of_nested_groups_holds(tmp_path: Path) -> None:
    control_groups = groups(
        tmp_path,
        "0::/slurm/job_7/step_0",
        {
            "slurm/cpu.max": "800000 100000",
            "slurm/job_7/cpu.max": "250000 100000",
            "slurm/job_7/memory.max": str(4 << 30),
            "slurm/job_7/step_0/cpu.max": "max 100000",
            "slurm/job_7/step_0/memory.max": "max",
            "slurm/job_7/cpu.stat": "usage_usec 3500000\nuser_usec 1",
        },
    )
    assert (control_groups.cores(), control_groups.memory_bytes(), control_groups.used_s()) == (2.5, 4 << 30, 3.5)


def test_version_1_has_a_folder_a_controller(tmp_path: Path) -> None:
    control_groups = groups(
        tmp_path,
        "5:cpu,cpuacct:/docker/abc\n3:memory:/docker/abc\n0::/",
        {
            "cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "150000",
            "cpu,cpuacct/docker/abc/cpu.cfs_period_us": "100000",
            "cpu,cpuacct/docker/abc/cpuacct.usage": "2000000000",
            "cpu,cpuacct/cpu.cfs_quota_us": "-1",
            "memory/docker/abc/memory.limit_in_bytes": str(1 << 30),
            "memory/memory.limit_in_bytes": "9223372036854771712",
        },
    )
    assert (control_groups.cores(), control_groups.memory_bytes(), control_groups.used_s()) == (1.5, 1 << 30, 2.0)


def test_in_a_container_the_group_itself_is_mounted(tmp_path: Path) -> None:
    control_groups = groups(tmp_path, "3:memory:/docker/abc\n0::/", {"memory/memory.limit_in_bytes": str(1 << 30)})
    assert control_groups.memory_bytes() == 1 << 30


@pytest.mark.parametrize("own", ["", "0::/gone", "nonsense"])
def test_without_limits_there_are_none(tmp_path: Path, own: str) -> None:
    control_groups = groups(tmp_path, own, {})
    assert (control_groups.cores(), control_groups.memory_bytes(), control_groups.used_s()) == (None, None, None)
    assert ControlGroups(tmp_path / "none", tmp_path / "none").cores() is None


def test_load_of_the_groups_other_processes_is_a_share_of_its_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, busy = [0.0], [0.0]
    monkeypatch.setattr("runner.profiling.sampler.time.perf_counter", lambda: now[0])
    monkeypatch.setattr("runner.devices.load._busy_s", lambda: (busy[0], 64))
    control_groups = groups(tmp_path, "0::/", {"cpu.max": "200000 100000", "cpu.stat": "usage_usec 0"})
    load = BackgroundLoad(control_groups)
    now[0], busy[0] = 10.0, 10.0 + 320.0  # the run took 10 s; the machine is half busy with others, elsewhere
    (tmp_path / "cgroup/cpu.stat").write_text("usage_usec 15000000")
    assert load.share(10.0) == pytest.approx(0.25)  # 5 s of the group's 20
    (tmp_path / "cgroup/cpu.stat").write_text("usage_usec 10000000")
    assert load.share(10.0) == 0.0
    busy[0] = 10.0 + 630.0  # of 64 processors one is left for the two that the group may have
    assert load.share(10.0) == pytest.approx(0.5)
