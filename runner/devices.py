"""Which devices this machine has, which one a run takes, and why.

``gather_facts`` asks the machine (and imports TensorFlow); everything else is pure, so that every platform's answers
are tested on any platform.  Metal is not run on hardware by this project's authors.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import logging
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from runner import nvml
from runner.errors import DeviceError
from runner.hardware import cpu_name

log = logging.getLogger(__name__)

CUDA_LIBRARIES = (
    "libcudart.so.12",
    "libcublas.so.12",
    "libcublasLt.so.12",
    "libcufft.so.11",
    "libcusolver.so.11",
    "libcusparse.so.12",
    "libcudnn.so.9",
)
"""What TensorFlow's CUDA build opens at run time; one missing library hides every GPU."""

GPU_LEAST_MIB = 1024
"""Free memory that a GPU must have: CUDA, the weights and a small batch."""
_FREE_IT = "end the programs that hold the rest (nvidia-smi lists them)"

METAL_LAST_TENSORFLOW = (2, 19)
"""tensorflow-metal 1.2.0 lacks symbols that TensorFlow 2.20 and later ask for."""

_INSTALL_CUDA = "pip install 'vggish-runner[cuda]'"
_INSTALL_METAL = "pip install 'vggish-runner[metal]'"


class DeviceType(str, Enum):
    """A kind of compute device; AUTO stands for the best of those present."""

    AUTO = "auto"
    CPU = "cpu"
    GPU = "gpu"
    METAL = "metal"


ALL = "all"
"""The ``device.index`` that takes every device of the kind."""

AUTO_ORDER = (DeviceType.METAL, DeviceType.GPU, DeviceType.CPU)


@dataclass(frozen=True)
class DeviceInfo:
    """One device, or one kind of device that is absent.

    ``reason`` says why it is (un)available and, if absent, what to do; ``details`` holds what TensorFlow knows of it.
    """

    type: DeviceType
    available: bool
    name: str
    reason: str
    details: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        return {
            "type": self.type.value,
            "available": self.available,
            "name": self.name,
            "reason": self.reason,
            "details": dict(self.details),
        }


@dataclass(frozen=True)
class MachineFacts:
    """What the device decisions rest on; ``gpus`` are TensorFlow's details of each physical GPU, in its order."""

    system: str
    machine: str
    cpu: str
    tensorflow: str
    built_with_cuda: bool
    gpus: Sequence[Mapping[str, Any]] = ()
    metal_plugin: str | None = None
    nvidia_driver: bool = False
    missing_cuda_libraries: Sequence[str] = ()


@dataclass(frozen=True)
class DeviceChoice:
    """The device that a run takes: what was asked, what it got, and why.

    ``index`` is its number among its kind; with ``device.index=all``, ``indices`` holds those of all of them.
    """

    requested: DeviceType
    device: DeviceInfo
    index: int
    reason: str
    fallback_reason: str | None
    considered: Sequence[DeviceInfo]
    others: tuple[int, ...] = ()

    @property
    def indices(self) -> tuple[int, ...]:
        """Numbers, among their kind, of all devices in use."""
        return (self.index, *self.others)

    @property
    def effective(self) -> DeviceType:
        """The kind of device in use."""
        return self.device.type

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for result.json."""
        return {
            "requested": self.requested.value,
            "effective": self.effective.value,
            "name": self.device.name,
            "index": self.index,
            "count": len(self.indices),
            "reason": self.reason,
            "fallback_reason": self.fallback_reason,
            "details": dict(self.device.details),
            "considered": [info.to_dict() for info in self.considered],
        }


def gather_facts() -> MachineFacts:
    """Ask the platform and TensorFlow what is there; imports TensorFlow (seconds)."""
    import tensorflow as tf

    gpus = [
        {"device": gpu.name, **tf.config.experimental.get_device_details(gpu)}
        for gpu in tf.config.list_physical_devices("GPU")
    ]
    for number, gpu in enumerate(gpus):
        if gpu.get("device_name") != "METAL" and (free := nvml.free_mib(number)) is not None:
            gpu |= {"memory_free_mib": free, "memory_mib": nvml.total_mib(number)}
    built_with_cuda = bool(tf.test.is_built_with_cuda())
    driver = _nvidia_driver_present()
    probe_libraries = driver and built_with_cuda and not gpus
    return MachineFacts(
        system=platform.system(),
        machine=platform.machine(),
        cpu=cpu_name(),
        tensorflow=str(tf.__version__),
        built_with_cuda=built_with_cuda,
        gpus=gpus,
        metal_plugin=_metal_plugin_version(),
        nvidia_driver=driver,
        missing_cuda_libraries=_missing_libraries(CUDA_LIBRARIES) if probe_libraries else (),
    )


def detect_available_devices(facts: MachineFacts | None = None) -> list[DeviceInfo]:
    """List the devices of this machine, the absent kinds included, each with its reason.

    Args:
        facts: what the machine has; asked of the machine itself when None.

    Returns:
        One entry per device present (several GPUs give several), and one per kind that is absent.
    """
    facts = facts or gather_facts()
    devices = [DeviceInfo(DeviceType.CPU, True, facts.cpu, "every machine has one")]
    cuda = [gpu for gpu in facts.gpus if gpu.get("device_name") != "METAL"]
    metal = [gpu for gpu in facts.gpus if gpu.get("device_name") == "METAL"]
    if cuda:
        devices += [_cuda_device(gpu) for gpu in cuda]
    else:
        devices.append(DeviceInfo(DeviceType.GPU, False, "NVIDIA GPU", _why_no_cuda(facts)))
    if metal and not (trouble := _metal_pair_trouble(facts)):
        plugin = f"tensorflow-metal {facts.metal_plugin or 'of unknown version'}"
        devices += [DeviceInfo(DeviceType.METAL, True, f"{facts.cpu} (Metal)", plugin, gpu) for gpu in metal]
    else:
        devices.append(DeviceInfo(DeviceType.METAL, False, "Metal GPU", trouble if metal else _why_no_metal(facts)))
    return devices


def choose_device(
    requested: DeviceType | str, devices: Sequence[DeviceInfo], *, index: int | str = 0, strict: bool = False
) -> DeviceChoice:
    """Decide which of ``devices`` a run takes; ``index`` picks one of its kind, or ``all`` of them.

    ``auto`` prefers Metal, then CUDA, then the CPU.  A named device that is absent gives the CPU and a
    ``fallback_reason``.

    Raises:
        DeviceError: the device asked for is absent and ``strict`` is set.
    """
    requested = DeviceType(requested)
    cpu = next(info for info in devices if info.type is DeviceType.CPU)
    if requested is DeviceType.AUTO:
        best = next(kind for kind in AUTO_ORDER if _present(devices, kind))
        preferred = AUTO_ORDER[: AUTO_ORDER.index(best)]
        passed_over = [info for kind in preferred for info in devices if info.type is kind]
        reason = f"auto chose {best.value}, the best device present"
        if passed_over:
            reason += "; " + "; ".join(f"no {info.type.value}: {info.reason}" for info in passed_over)
        wanted = best
    else:
        wanted, reason = requested, f"device={requested.value} was asked for"
    if wanted is DeviceType.CPU:
        return DeviceChoice(requested, cpu, 0, reason, None, devices)
    candidates = [info for info in devices if info.type is wanted]
    present = [number for number, info in enumerate(candidates) if info.available]
    if index == ALL and present:
        first, *others = present
        reason += f"; device.index=all: {len(present)} of them"
        return DeviceChoice(requested, candidates[first], first, reason, None, devices, tuple(others))
    if index != ALL and int(index) in present:
        return DeviceChoice(requested, candidates[int(index)], int(index), reason, None, devices)
    if present and int(index) < len(candidates):
        others_present = " or ".join(f"device.index={number}" for number in present)
        missing = f"{candidates[int(index)].reason} (number {index}; {others_present} has room)"
    elif present:
        missing = f"device.index={index}, but there are only {len(candidates)} (0 to {len(candidates) - 1})"
    else:
        missing = candidates[0].reason
    fallback = f"{wanted.value} is not available: {missing}"
    if strict:
        raise DeviceError(f"{fallback} (device.strict=true forbids the fallback to the CPU)")
    return DeviceChoice(requested, cpu, 0, f"fell back to the CPU, because {fallback}", fallback, devices)


def surely_absent() -> dict[DeviceType, str]:
    """The kinds of device that this machine can't have, with the reason: known without TensorFlow, so in no time."""
    facts = MachineFacts(
        platform.system(),
        platform.machine(),
        cpu_name(),
        importlib.metadata.version("tensorflow"),
        built_with_cuda=True,
        metal_plugin=_metal_plugin_version(),
        nvidia_driver=_nvidia_driver_present(),
    )
    absent = {}
    if facts.system == "Darwin" or not facts.nvidia_driver:
        absent[DeviceType.GPU] = _why_no_cuda(facts)
    if facts.system != "Darwin" or facts.machine != "arm64" or facts.metal_plugin is None:
        absent[DeviceType.METAL] = _why_no_metal(facts)
    return absent


def log_device_info(devices: Sequence[DeviceInfo] | None = None, logger: logging.Logger = log) -> None:
    """Log a line for each device of this machine, absent ones with what is missing."""
    for info in detect_available_devices() if devices is None else devices:
        logger.info("%s %-5s %s: %s", "✓" if info.available else "✗", info.type.value, info.name, info.reason)


def get_tf_session_config(
    device_preference: DeviceType | str = DeviceType.AUTO,
    gpu_memory_fraction: float = 0.8,
    allow_growth: bool = True,
    *,
    index: int = 0,
) -> Any:
    """A ``tf.compat.v1.ConfigProto`` that puts a v1 Session on the preferred device, or on the CPU if it is absent.

    Args:
        device_preference: auto, cpu, gpu or metal; decided as ``choose_device`` does.
        gpu_memory_fraction: share of the GPU's memory that the process may take, 0 < x <= 1 (CUDA only).
        allow_growth: take GPU memory on demand instead of up front.
        index: which of several GPUs.
    """
    import tensorflow as tf

    if not 0.0 < gpu_memory_fraction <= 1.0:
        raise ValueError(f"gpu_memory_fraction={gpu_memory_fraction} is not a share of the memory: use 0 < x <= 1")
    choice = choose_device(device_preference, detect_available_devices(), index=index)
    if choice.fallback_reason:
        log.warning("%s", choice.reason)
    config = tf.compat.v1.ConfigProto(allow_soft_placement=True)
    if choice.effective is DeviceType.CPU:
        config.device_count["GPU"] = 0
        return config
    config.gpu_options.allow_growth = allow_growth
    if choice.effective is DeviceType.GPU:
        config.gpu_options.per_process_gpu_memory_fraction = gpu_memory_fraction
        config.gpu_options.visible_device_list = str(choice.index)
    return config


def _present(devices: Sequence[DeviceInfo], kind: DeviceType) -> list[DeviceInfo]:
    return [info for info in devices if info.type is kind and info.available]


def _cuda_device(gpu: Mapping[str, Any]) -> DeviceInfo:
    details = dict(gpu)
    capability = details.get("compute_capability")
    if capability is not None:
        details["compute_capability"] = list(capability)
    shown = f", compute capability {'.'.join(map(str, capability))}" if capability else ""
    name = str(gpu.get("device_name", "NVIDIA GPU"))
    free = details.get("memory_free_mib")
    if free is not None and free < GPU_LEAST_MIB:
        why = f"only {free:,} of its {details['memory_mib']:,} MiB are free, {GPU_LEAST_MIB:,} are needed: {_FREE_IT}"
        return DeviceInfo(DeviceType.GPU, False, name, why, details)
    return DeviceInfo(DeviceType.GPU, True, name, f"CUDA device{shown}", details)


def _why_no_cuda(facts: MachineFacts) -> str:
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


def _why_no_metal(facts: MachineFacts) -> str:
    if facts.system != "Darwin":
        return "Metal needs macOS on Apple Silicon"
    if facts.machine != "arm64":
        return "tensorflow-metal has no build for Intel Macs; use device=cpu"
    if sys.version_info >= (3, 13) and facts.metal_plugin is None:
        return "tensorflow-metal has no build for Python 3.13; make the environment with Python 3.10 to 3.12"
    if facts.metal_plugin is None:
        return f"tensorflow-metal is not installed; {_INSTALL_METAL}"
    return _metal_pair_trouble(facts) or "tensorflow-metal is installed, but TensorFlow found no Metal device"


def _metal_pair_trouble(facts: MachineFacts) -> str:
    if _version(facts.tensorflow)[:2] > METAL_LAST_TENSORFLOW:
        return (
            f"tensorflow-metal {facts.metal_plugin} does not work with TensorFlow {facts.tensorflow}; "
            "pip install 'tensorflow<2.20'"
        )
    return ""


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:3] if part.isdigit())


def _metal_plugin_version() -> str | None:
    try:
        return importlib.metadata.version("tensorflow-metal")
    except importlib.metadata.PackageNotFoundError:
        return None


def _nvidia_driver_present() -> bool:
    if Path("/proc/driver/nvidia/version").exists() or Path("/dev/nvidiactl").exists() or Path("/dev/dxg").exists():
        return True
    return not _missing_libraries(("nvcuda.dll",) if sys.platform == "win32" else ("libcuda.so.1",))


def _missing_libraries(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in names if not opens(name))


def opens(library: str) -> bool:
    """Whether the system finds a shared library by its name."""
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
