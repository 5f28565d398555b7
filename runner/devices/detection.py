"""Kinds of devices, and why one is absent: decisions from facts about the machine, without TensorFlow.

``probe.gather_facts`` collects the facts; the decisions are pure, so that those of every platform are tested on any.
This project's authors have not run Metal on hardware.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from runner.devices.host import cpu_name

CUDA_LIBRARIES = (
    "libcudart.so.12",
    "libcublas.so.12",
    "libcublasLt.so.12",
    "libcufft.so.11",
    "libcusolver.so.11",
    "libcusparse.so.12",
    "libcudnn.so.9",
)
"""Libraries that TensorFlow's CUDA build opens at run time; one missing library hides every GPU."""

MIN_GPU_FREE_MIB = 1024
"""Least free memory of a GPU: for CUDA, the weights and a small batch."""

_FREE_IT = "end the programs that hold the rest (nvidia-smi lists them)"

METAL_LAST_TENSORFLOW = (2, 19)
"""tensorflow-metal 1.2.0 lacks symbols that TensorFlow 2.20 and later need."""

_INSTALL_CUDA = "pip install 'vggish-runner[cuda]'"

_INSTALL_METAL = "pip install 'vggish-runner[metal]'"


class DeviceType(str, Enum):
    """A kind of compute device; AUTO stands for the best of those present."""

    AUTO = "auto"
    CPU = "cpu"
    GPU = "gpu"
    METAL = "metal"


@dataclass(frozen=True)
class GpuDetails:
    """A GPU as TensorFlow and NVML describe it; None where neither says.

    Attributes:
        device: TensorFlow's name of it.
        device_name: its model; ``METAL`` for Apple's.
        compute_capability: CUDA's, as (9, 0).
        memory_free_mib: its memory that no process holds.
        memory_mib: all its memory.
    """

    device: str | None = None
    device_name: str | None = None
    compute_capability: tuple[int, ...] | None = None
    memory_free_mib: int | None = None
    memory_mib: int | None = None

    @property
    def is_metal(self) -> bool:
        """Whether it is Apple's."""
        return self.device_name == "METAL"


@dataclass(frozen=True)
class DeviceInfo:
    """One device, or one kind of device that is absent.

    Attributes:
        type: kind of device.
        available: whether a run can use it.
        name: model of the device.
        reason: why it is available, or unavailable and what to do about it.
        details: of a GPU.
    """

    type: DeviceType
    available: bool
    name: str
    reason: str
    details: GpuDetails | None = None


@dataclass(frozen=True)
class MachineFacts:
    """Facts that decide about devices; ``gpus`` are all physical GPUs, in TensorFlow's order."""

    system: str
    machine: str
    cpu: str
    tensorflow: str
    built_with_cuda: bool
    gpus: Sequence[GpuDetails] = ()
    metal_plugin: str | None = None
    nvidia_driver: bool = False
    missing_cuda_libraries: Sequence[str] = ()


def unavailable_devices() -> dict[DeviceType, str]:
    """Return the kinds of device that this machine can't have, with the reason; without TensorFlow, in milliseconds."""
    facts = MachineFacts(
        platform.system(),
        platform.machine(),
        cpu_name(),
        importlib.metadata.version("tensorflow"),
        built_with_cuda=True,
        metal_plugin=metal_plugin_version(),
        nvidia_driver=has_nvidia_driver(),
    )
    absent = {}
    if facts.system == "Darwin" or not facts.nvidia_driver:
        absent[DeviceType.GPU] = why_no_cuda(facts)
    if facts.system != "Darwin" or facts.machine != "arm64" or facts.metal_plugin is None:
        absent[DeviceType.METAL] = why_no_metal(facts)
    return absent


def cuda_device(gpu: GpuDetails) -> DeviceInfo:
    """Describe a CUDA GPU; one without free memory is unavailable."""
    capability, free = gpu.compute_capability, gpu.memory_free_mib
    shown = f", compute capability {'.'.join(map(str, capability))}" if capability else ""
    name = gpu.device_name or "NVIDIA GPU"
    if free is not None and free < MIN_GPU_FREE_MIB:
        why = f"only {free:,} of its {gpu.memory_mib:,} MiB are free, {MIN_GPU_FREE_MIB:,} are needed: {_FREE_IT}"
        return DeviceInfo(DeviceType.GPU, False, name, why, gpu)
    return DeviceInfo(DeviceType.GPU, True, name, f"CUDA device{shown}", gpu)


def why_no_cuda(facts: MachineFacts) -> str:
    """Return the reason why there is no CUDA device, and what to do."""
    if facts.system == "Darwin":
        return "macOS has no CUDA; use device=metal on Apple Silicon"
    if not facts.nvidia_driver:
        return "no NVIDIA driver was found; install the driver if this machine has an NVIDIA GPU"
    if facts.system == "Windows":
        return "TensorFlow has no CUDA build for Windows; run inside WSL 2"
    if not facts.built_with_cuda:
        return f"TensorFlow {facts.tensorflow} was built without CUDA; {_INSTALL_CUDA}"
    if facts.missing_cuda_libraries:
        return f"CUDA libraries not found: {', '.join(facts.missing_cuda_libraries)}; {_INSTALL_CUDA}"
    return "TensorFlow found no GPU although driver and libraries are there; check nvidia-smi and CUDA_VISIBLE_DEVICES"


def why_no_metal(facts: MachineFacts) -> str:
    """Return the reason why there is no Metal device, and what to do."""
    if facts.system != "Darwin":
        return "Metal needs macOS on Apple Silicon"
    if facts.machine != "arm64":
        return "tensorflow-metal has no build for Intel Macs; use device=cpu"
    if sys.version_info >= (3, 13) and facts.metal_plugin is None:
        return "tensorflow-metal has no build for Python 3.13; make the environment with Python 3.10 to 3.12"
    if facts.metal_plugin is None:
        return f"tensorflow-metal is not installed; {_INSTALL_METAL}"
    return metal_incompatibility(facts) or "tensorflow-metal is installed, but TensorFlow found no Metal device"


def metal_incompatibility(facts: MachineFacts) -> str:
    """Return why plugin and TensorFlow don't work together; empty where they do."""
    if _version(facts.tensorflow)[:2] > METAL_LAST_TENSORFLOW:
        return (
            f"tensorflow-metal {facts.metal_plugin} does not work with TensorFlow {facts.tensorflow}; "
            "pip install 'tensorflow<2.20'"
        )
    return ""


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:3] if part.isdigit())


def metal_plugin_version() -> str | None:
    """Return the version of tensorflow-metal; None where it is not installed."""
    try:
        return importlib.metadata.version("tensorflow-metal")
    except importlib.metadata.PackageNotFoundError:
        return None


def has_nvidia_driver() -> bool:
    """Whether an NVIDIA driver is installed."""
    if Path("/proc/driver/nvidia/version").exists() or Path("/dev/nvidiactl").exists() or Path("/dev/dxg").exists():
        return True
    return not missing_libraries(("nvcuda.dll",) if sys.platform == "win32" else ("libcuda.so.1",))


def missing_libraries(names: Sequence[str]) -> tuple[str, ...]:
    """Return the shared libraries that can't be loaded."""
    return tuple(name for name in names if not can_load_library(name))


def can_load_library(library: str) -> bool:
    """Whether the system finds a shared library by its name."""
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
