"""NVML's answers, with a stand-in for its library."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace

import pytest

from runner.devices import nvml

MIB = 1 << 20


class FakeNvml:
    """GPUs whose memory is told by their number, and processes that hold some of it."""

    NVMLError = RuntimeError

    def __init__(self, processes: list[SimpleNamespace] | None = None) -> None:
        self._processes = processes

    def nvmlInit(self) -> None:
        pass

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid: bytes) -> int:
        if uuid != b"GPU-7":
            raise self.NVMLError("no such device")
        return 7

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:
        return SimpleNamespace(total=1000 * (handle + 1) * MIB, free=100 * (handle + 1) * MIB, used=30 * MIB)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[SimpleNamespace]:
        if self._processes is None:
            raise self.NVMLError("not supported")
        return self._processes


def test_a_gpu_is_cudas_among_the_visible_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-7,GPU-8")
    assert [nvml.total_mib(index) for index in range(3)] == [4000, 8000, None]
    assert [nvml.free_mib(index) for index in range(3)] == [400, 800, None]


def test_a_process_has_its_own_memory_or_that_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    own = SimpleNamespace(pid=os.getpid(), usedGpuMemory=20 * MIB)
    other = SimpleNamespace(pid=os.getpid() + 1, usedGpuMemory=10 * MIB)
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml([other, own]))
    assert nvml.process_mib(0) == 20
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml())
    assert nvml.process_mib(0) == 30


def test_memory_of_several_processes_adds_up(monkeypatch: pytest.MonkeyPatch) -> None:
    running = [SimpleNamespace(pid=pid, usedGpuMemory=pid * MIB) for pid in (1, 2, 4)]
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(running))
    assert nvml.process_mib(0, (1, 4, 9)) == 5


@pytest.mark.parametrize(
    ("visible", "gpus"), [(None, [1, 2]), ("2,0,1", [0, 2]), ("", []), ("1,GPU-8", [0, 1]), ("1", [0])]
)
def test_usable_gpus_are_the_visible_ones_with_room(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, gpus: list[int]
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml())
    monkeypatch.setattr(nvml, "MIN_GPU_FREE_MIB", 150)
    monkeypatch.setattr(nvml, "describe_gpus", lambda: [None] * 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert nvml.usable_gpus() == gpus


def test_without_nvml_memory_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert (nvml.total_mib(0), nvml.free_mib(0), nvml.process_mib(0), nvml.power_w(0)) == (None,) * 4
