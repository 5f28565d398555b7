"""TensorFlow's GPU allocator: its limits, and the memory it took."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from runner.devices import nvml
from runner.devices.detection import DeviceType
from runner.inference.memory import MIB

if TYPE_CHECKING:
    from runner.devices.selection import DeviceChoice


_OUT_OF_MEMORY_PHRASES = (
    "out of memory",
    "resource_exhausted",
    "resource exhausted",
    "alloc_failed",  # cuBLAS's and cuDNN's own
    "autotuning failed",  # XLA: no algorithm could be tried (seen on a GPU with 4 GiB to give)
    "failed to determine best cudnn convolution algorithm",
    "no algorithm worked",
)


@dataclass(frozen=True)
class GpuMemory:
    """The settings of TensorFlow's GPU allocator in effect.

    Attributes:
        limit_mib: The limit of each device; None for no limit.
        allow_growth: Whether memory is taken as it is needed; None for a device that is not CUDA's.
        available_mib: The part of the limit that is free; None if it is unknown.
        note: A requested setting that can't be enforced.
    """

    limit_mib: int | None = None
    allow_growth: bool | None = None
    available_mib: int | None = None
    note: str | None = None


def apply_gpu_memory(choice: DeviceChoice, *, fraction: float, allow_growth: bool) -> GpuMemory:
    """Make the chosen devices the only visible ones and set their allocators.

    To be called once per process, before TensorFlow uses a device.
    """
    import tensorflow as tf

    if choice.effective is DeviceType.CPU:
        tf.config.set_visible_devices([], "GPU")
        return GpuMemory()
    present = tf.config.list_physical_devices("GPU")
    gpus = [present[index] for index in choice.indices]
    tf.config.set_visible_devices(gpus, "GPU")
    if choice.effective is DeviceType.METAL:
        return GpuMemory(note="Metal takes memory as it needs: fraction and growth were requested, not enforced")
    totals = [nvml.total_mib(index) for index in choice.indices]
    known = [total for total in totals if total is not None]
    if len(known) < len(totals):
        for gpu in gpus:
            tf.config.experimental.set_memory_growth(gpu, allow_growth)
        note = "gpu_memory_fraction is not enforced: the GPU's size is unknown; pip install 'vggish-runner[cuda]'"
        return GpuMemory(allow_growth=allow_growth, note=note)
    # A logical device's limit silently drops the growth setting; the environment variable still holds.
    os.environ["TF_FORCE_GPU_ALLOW_GROWTH"] = "true" if allow_growth else "false"
    limit = int(min(known) * fraction)
    for gpu in gpus:
        tf.config.set_logical_device_configuration(gpu, [tf.config.LogicalDeviceConfiguration(memory_limit=limit)])
    settings = GpuMemory(limit, allow_growth)
    free = [mib for index in choice.indices if (mib := nvml.free_mib(index)) is not None]
    if free:
        settings = replace(settings, available_mib=min(limit, min(free)))
        if min(free) < limit:
            note = (
                f"the GPU has {min(free):,} of {min(known):,} MiB free, less than the {limit:,} that memory."
                f"gpu_memory_fraction={fraction:g} allows: other programs hold the rest (nvidia-smi lists them)"
            )
            settings = replace(settings, note=note)
    return settings


def gpu_memory_metrics(choice: DeviceChoice) -> dict[str, float]:
    """Return, of the GPU with the most, the peak of tensors' memory and the memory that the process holds."""
    import tensorflow as tf

    if choice.effective is not DeviceType.GPU:
        return {}
    peaks = [tf.config.experimental.get_memory_info(f"GPU:{number}")["peak"] for number in range(len(choice.indices))]
    held = [mib for index in choice.indices if (mib := nvml.process_mib(index)) is not None]
    metrics = {"device_memory_peak_mib": max(peaks) / MIB}
    if held:
        metrics["device_memory_reserved_mib"] = max(held)
    return metrics


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error of TensorFlow says that the device's memory did not suffice."""
    import tensorflow as tf

    if isinstance(error, tf.errors.ResourceExhaustedError):
        return True
    text = str(error).lower()
    return isinstance(error, tf.errors.OpError) and any(phrase in text for phrase in _OUT_OF_MEMORY_PHRASES)
