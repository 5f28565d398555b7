"""Memory, power and energy of NVIDIA GPUs by NVML (nvidia-ml-py, of the extra ``cuda``); None without it.

The index of a GPU is CUDA's, which honors CUDA_VISIBLE_DEVICES.
"""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from runner.devices.detection import MIN_GPU_FREE_MIB

log = logging.getLogger(__name__)

_MIB = 1 << 20


@dataclass(frozen=True)
class NvidiaGpu:
    """A GPU as nvidia-smi lists it; ``memory_mib`` is 0 where it does not say, ``compute_capability`` is as ``9.0``."""

    name: str
    memory_mib: int
    driver: str
    compute_capability: str


def total_mib(index: int) -> int | None:
    """Return the memory of a GPU in MiB."""
    if (device := _device(index)) is None:
        return None
    nvml, handle = device
    return int(nvml.nvmlDeviceGetMemoryInfo(handle).total) // _MIB


def free_mib(index: int) -> int | None:
    """Return the memory of a GPU that no process holds, in MiB."""
    if (device := _device(index)) is None:
        return None
    nvml, handle = device
    return int(nvml.nvmlDeviceGetMemoryInfo(handle).free) // _MIB


def usable_gpus() -> list[int]:
    """Return the indices of the GPUs that have memory for a run, as far as that is known; none without nvidia-smi."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = len(describe_gpus() if visible is None else _names(visible))
    return [index for index in range(count) if (free := free_mib(index)) is None or free >= MIN_GPU_FREE_MIB]


def process_mib(index: int, pids: Collection[int] = ()) -> float | None:
    """Return the memory that processes, this one by default, hold on a GPU in MiB, CUDA's own share included.

    Where the driver doesn't tell processes apart (in some containers and virtual machines) it is that of all processes.
    """
    if (device := _device(index)) is None:
        return None
    nvml, handle = device
    try:
        own = pids or (os.getpid(),)
        running = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
        if held := sum(process.usedGpuMemory or 0 for process in running if process.pid in own):
            return float(held) / _MIB
    except nvml.NVMLError as error:
        log.debug("NVML does not list processes: %s", error)
    return float(nvml.nvmlDeviceGetMemoryInfo(handle).used) / _MIB


def power_w(index: int) -> float | None:
    """Return the present power of a GPU in watts."""
    if (device := _device(index)) is None:
        return None
    nvml, handle = device
    try:
        return float(nvml.nvmlDeviceGetPowerUsage(handle)) / 1000
    except nvml.NVMLError:
        return None


def energy_j(index: int) -> float | None:
    """Return the energy that a GPU has used since its driver was loaded, in joules."""
    if (device := _device(index)) is None:
        return None
    nvml, handle = device
    try:
        return float(nvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1000
    except nvml.NVMLError:
        return None


def describe_gpus() -> list[NvidiaGpu]:
    """List the NVIDIA GPUs by nvidia-smi, which comes with the driver; none without it."""
    query = "--query-gpu=name,memory.total,driver_version,compute_cap"
    try:
        command = ["nvidia-smi", query, "--format=csv,noheader,nounits"]
        out = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[cell.strip() for cell in line.split(",")] for line in out.splitlines() if line.strip()]
    return [
        NvidiaGpu(name, int(memory) if memory.isdigit() else 0, driver, capability)
        for name, memory, driver, capability in rows
    ]


def _names(visible: str) -> list[str]:
    """Return the names in a value of CUDA_VISIBLE_DEVICES."""
    return [name.strip() for name in visible.split(",") if name.strip()]


def _name(index: int) -> str:
    visible = _names(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
    return visible[index] if index < len(visible) else str(index)


def _device(index: int) -> tuple[Any, Any] | None:
    """Return NVML and the device's handle; None without NVML or the device."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        name = _name(index)
        if name.isdigit():
            return pynvml, pynvml.nvmlDeviceGetHandleByIndex(int(name))
        return pynvml, pynvml.nvmlDeviceGetHandleByUUID(name.encode())
    except pynvml.NVMLError as error:
        log.debug("NVML does not know GPU %d: %s", index, error)
        return None
