"""What the NVIDIA driver says of a GPU's memory: by NVML (nvidia-ml-py), else by nvidia-smi, else nothing."""

from __future__ import annotations

import logging
import os
import subprocess
from typing import Any

log = logging.getLogger(__name__)

_MIB = 1 << 20


def total_mib(index: int) -> int | None:
    """Memory of CUDA device ``index`` in MiB; honours CUDA_VISIBLE_DEVICES."""
    if (found := _ask(index)) is not None:
        nvml, handle = found
        return int(nvml.nvmlDeviceGetMemoryInfo(handle).total) // _MIB
    answer = _smi(index, "--query-gpu=memory.total")
    return int(answer[0][0]) if answer else None


def free_mib(index: int) -> int | None:
    """Memory of CUDA device ``index`` that no process holds, in MiB."""
    if (found := _ask(index)) is not None:
        nvml, handle = found
        return int(nvml.nvmlDeviceGetMemoryInfo(handle).free) // _MIB
    answer = _smi(index, "--query-gpu=memory.free")
    return int(answer[0][0]) if answer else None


def process_mib(index: int) -> float | None:
    """Memory that this process holds on CUDA device ``index`` in MiB, CUDA's own share included.

    A driver that doesn't tell processes apart (in some containers and virtual machines) says what all of them hold.
    """
    if (found := _ask(index)) is not None:
        nvml, handle = found
        try:
            for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle):
                if process.pid == os.getpid() and process.usedGpuMemory:
                    return float(process.usedGpuMemory) / _MIB
        except nvml.NVMLError as error:
            log.debug("NVML does not list processes: %s", error)
        return float(nvml.nvmlDeviceGetMemoryInfo(handle).used) / _MIB
    for pid, used in _smi(index, "--query-compute-apps=pid,used_memory"):
        if pid == str(os.getpid()) and used.isdigit():
            return float(used)
    answer = _smi(index, "--query-gpu=memory.used")
    return float(answer[0][0]) if answer else None


def power_w(index: int) -> float | None:
    """What CUDA device ``index`` draws now, in watts; None where NVML does not tell."""
    if (found := _ask(index)) is None:
        return None
    nvml, handle = found
    try:
        return float(nvml.nvmlDeviceGetPowerUsage(handle)) / 1000
    except nvml.NVMLError:
        return None


def energy_j(index: int) -> float | None:
    """What CUDA device ``index`` has used since its driver was loaded, in joules; None where NVML does not tell."""
    if (found := _ask(index)) is None:
        return None
    nvml, handle = found
    try:
        return float(nvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1000
    except nvml.NVMLError:
        return None


def describe_gpus() -> list[dict[str, Any]]:
    """Every NVIDIA GPU: ``name``, ``memory_mib``, ``driver``, ``compute_capability``; empty where nothing tells."""
    query = "--query-gpu=name,memory.total,driver_version,compute_cap"
    try:
        command = ["nvidia-smi", query, "--format=csv,noheader,nounits"]
        out = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[cell.strip() for cell in line.split(",")] for line in out.splitlines() if line.strip()]
    return [
        {
            "name": name,
            "memory_mib": int(memory) if memory.isdigit() else 0,
            "driver": driver,
            "compute_capability": cap,
        }
        for name, memory, driver, cap in rows
    ]


def _name(index: int) -> str:
    visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return visible[index] if index < len(visible) else str(index)


def _ask(index: int) -> tuple[Any, Any] | None:
    """NVML and the device's handle; None where there is no NVML."""
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
        log.debug("NVML gave nothing: %s", error)
        return None


def _smi(index: int, query: str) -> list[list[str]]:
    """nvidia-smi's rows for a query; empty where it gave none."""
    command = ["nvidia-smi", f"--id={_name(index)}", query, "--format=csv,noheader,nounits"]
    try:
        out = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [[cell.strip() for cell in line.split(",")] for line in out.splitlines() if line.strip()]
