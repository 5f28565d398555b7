"""Devices of this machine, by TensorFlow."""

from __future__ import annotations

import logging
import platform
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from runner.devices import nvml
from runner.devices.detection import (
    CUDA_LIBRARIES,
    DeviceInfo,
    DeviceType,
    GpuDetails,
    MachineFacts,
    cuda_device,
    has_nvidia_driver,
    metal_incompatibility,
    metal_plugin_version,
    missing_libraries,
    why_no_cuda,
    why_no_metal,
)
from runner.devices.host import cpu_name
from runner.devices.selection import choose_device

log = logging.getLogger(__name__)


def gather_facts() -> MachineFacts:
    """Collect the facts about this machine's devices; imports TensorFlow (seconds)."""
    import tensorflow as tf

    gpus = [_details(number, gpu) for number, gpu in enumerate(tf.config.list_physical_devices("GPU"))]
    built_with_cuda = bool(tf.test.is_built_with_cuda())
    driver = has_nvidia_driver()
    probe_libraries = driver and built_with_cuda and not gpus
    return MachineFacts(
        system=platform.system(),
        machine=platform.machine(),
        cpu=cpu_name(),
        tensorflow=str(tf.__version__),
        built_with_cuda=built_with_cuda,
        gpus=gpus,
        metal_plugin=metal_plugin_version(),
        nvidia_driver=driver,
        missing_cuda_libraries=missing_libraries(CUDA_LIBRARIES) if probe_libraries else (),
    )


def _details(number: int, gpu: Any) -> GpuDetails:
    """Describe TensorFlow's physical device."""
    import tensorflow as tf

    told = tf.config.experimental.get_device_details(gpu)
    details = GpuDetails(gpu.name, told.get("device_name"), told.get("compute_capability"))
    if details.is_metal:
        return details
    return replace(details, memory_free_mib=nvml.free_mib(number), memory_mib=nvml.total_mib(number))


def detect_available_devices(facts: MachineFacts | None = None) -> list[DeviceInfo]:
    """List the devices of this machine, the absent kinds included, each with its reason.

    Args:
        facts: about the machine; collected when None.

    Returns:
        An entry for each device, and one for each kind that is absent.
    """
    facts = facts or gather_facts()
    devices = [DeviceInfo(DeviceType.CPU, True, facts.cpu, "every machine has one")]
    cuda = [gpu for gpu in facts.gpus if not gpu.is_metal]
    metal = [gpu for gpu in facts.gpus if gpu.is_metal]
    if cuda:
        devices += [cuda_device(gpu) for gpu in cuda]
    else:
        devices.append(DeviceInfo(DeviceType.GPU, False, "NVIDIA GPU", why_no_cuda(facts)))
    if metal and not (incompatibility := metal_incompatibility(facts)):
        plugin = f"tensorflow-metal {facts.metal_plugin or 'of unknown version'}"
        devices += [DeviceInfo(DeviceType.METAL, True, f"{facts.cpu} (Metal)", plugin, gpu) for gpu in metal]
    else:
        devices.append(
            DeviceInfo(DeviceType.METAL, False, "Metal GPU", incompatibility if metal else why_no_metal(facts))
        )
    return devices


def log_device_info(devices: Sequence[DeviceInfo] | None = None, logger: logging.Logger = log) -> None:
    """Log a line for each device of this machine, and for each absent kind with the reason."""
    for info in detect_available_devices() if devices is None else devices:
        logger.info("%s %-5s %s: %s", "✓" if info.available else "✗", info.type.value, info.name, info.reason)


def get_tf_session_config(
    device_preference: DeviceType | str = DeviceType.AUTO,
    gpu_memory_fraction: float = 0.8,
    allow_growth: bool = True,
    *,
    index: int = 0,
) -> Any:
    """Return a ``tf.compat.v1.ConfigProto`` that puts a v1 Session on the preferred device, or on the CPU without it.

    Args:
        device_preference: auto, cpu, gpu or metal; see ``choose_device``.
        gpu_memory_fraction: share of the GPU's memory that the process may take, 0 < x <= 1 (CUDA only).
        allow_growth: take GPU memory on demand instead of up front.
        index: index of the GPU, where there are several.

    Raises:
        ValueError: ``gpu_memory_fraction`` is out of range.
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
