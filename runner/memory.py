"""The memory policy: what a run may take on the host, and how TensorFlow is told about the GPU's share."""

from __future__ import annotations

import logging
import os
import subprocess
from dataclasses import dataclass
from typing import Any

from runner.config import MemoryConfig
from runner.devices import DeviceChoice, DeviceType
from runner.vggish.constants import EXAMPLE_SAMPLES

log = logging.getLogger(__name__)

MIB = 1 << 20
WINDOW_BYTES = EXAMPLE_SAMPLES * 4
SLOT_WINDOWS = 64
"""Windows of one shared-memory slot, through which a decode process hands over waveform (3.8 MiB)."""
SLOTS_PER_WORKER = 2
"""One slot being filled while the other is emptied."""
_WORKER_BASE_MIB = 1230
"""TensorFlow, the weights and a chunk of convolutions, before any batch (measured on Linux, float32)."""
_FEW_CORES = 8
_DECODER_MIB = 70
_ACTIVATION_MIB_PER_EXAMPLE = 0.2
"""What one example in a batch costs the CPU in activations (measured)."""
MAX_BATCH = 2048
"""More than 2**31 elements in one activation is an illegal memory access on a GPU; conv1 gives 393,216 an example."""


@dataclass(frozen=True)
class MemoryPlan:
    """What the policy comes to on this machine: the effective settings, and a note for each that was cut."""

    batch_size: int
    queue_depth: int
    decode_workers: int
    host_memory_mib: int | None
    notes: tuple[str, ...] = ()

    @property
    def queue_mib(self) -> float:
        """Host memory of the batches that wait ahead of the device, and of the one being filled."""
        return (self.queue_depth + 1) * self.batch_size * WINDOW_BYTES / MIB


def default_decode_workers(device: DeviceType, cores: int) -> int:
    """Decode processes for a device.

    On a CPU they share the cores with the network, and wait when they are ahead of it: enough of them that compressed
    audio, of which a core decodes no more than it embeds, never leaves the network waiting.
    """
    if device is DeviceType.CPU:
        return max(min(cores, _FEW_CORES), cores // 2)
    return max(1, cores - 1)


def plan_memory(memory: MemoryConfig, device: DeviceType, cores: int, shm_free: int | None = None) -> MemoryPlan:
    """Turn the policy into effective settings: queue, then batch, then decode processes shrink to fit the ceiling.

    Args:
        memory: the policy.
        device: the kind of device in use.
        cores: usable cores.
        shm_free: bytes free for shared memory; None if there is no limit of its own.
    """
    batch = memory.batch_size or memory.batch_size_by_device[device.value]
    depth = memory.queue_depth
    workers = memory.decode_workers or default_decode_workers(device, cores)
    notes = []
    if batch > MAX_BATCH:
        notes.append(f"batch_size cut from {batch} to {MAX_BATCH}: larger activations overflow 2**31 elements")
        batch = MAX_BATCH
    per_worker = SLOTS_PER_WORKER * SLOT_WINDOWS * WINDOW_BYTES
    if shm_free is not None and workers * per_worker > shm_free // 2:
        fits = max(1, shm_free // 2 // per_worker)
        notes.append(f"decode_workers cut from {workers} to {fits}: shared memory has {shm_free // MIB} MiB free")
        workers = fits
    ceiling = memory.host_memory_mib
    if ceiling is not None:
        activations = _ACTIVATION_MIB_PER_EXAMPLE if device is DeviceType.CPU else 0.0

        def needed() -> float:
            queue = (depth + 1) * batch * WINDOW_BYTES / MIB
            return _WORKER_BASE_MIB + batch * activations + queue + workers * (per_worker / MIB + _DECODER_MIB)

        asked = (batch, depth, workers)
        while needed() > ceiling and depth > 1:
            depth -= 1
        while needed() > ceiling and batch > 8:
            batch //= 2
        while needed() > ceiling and workers > 1:
            workers -= 1
        for name, before, after in zip(
            ("batch_size", "queue_depth", "decode_workers"), asked, (batch, depth, workers), strict=True
        ):
            if before != after:
                notes.append(f"{name} cut from {before} to {after}: memory.host_memory_mib is {ceiling}")
    return MemoryPlan(batch, depth, workers, ceiling, tuple(notes))


def shared_memory_free() -> int | None:
    """Bytes free in the file system that shared memory lives in; None where it has no limit of its own."""
    try:
        stats = os.statvfs("/dev/shm")
    except (AttributeError, OSError):
        return None
    return stats.f_bavail * stats.f_frsize


def apply_gpu_memory(choice: DeviceChoice, *, fraction: float, allow_growth: bool) -> dict[str, Any]:
    """Make the chosen device the only visible one and set its allocator; once per process, before TensorFlow uses it.

    Returns:
        What took effect: ``gpu_memory_limit_mib`` (None: no cap) and ``gpu_allow_growth`` (None: not a CUDA device),
        and under ``note`` what was asked for but is not enforced.
    """
    import tensorflow as tf

    if choice.effective is DeviceType.CPU:
        tf.config.set_visible_devices([], "GPU")
        return {"gpu_memory_limit_mib": None, "gpu_allow_growth": None}
    gpu = tf.config.list_physical_devices("GPU")[choice.index]
    tf.config.set_visible_devices([gpu], "GPU")
    if choice.effective is DeviceType.METAL:
        note = "Metal takes memory as it needs: fraction and growth were requested, not enforced"
        return {"gpu_memory_limit_mib": None, "gpu_allow_growth": None, "note": note}
    total = gpu_total_mib(choice.index)
    if total is None:
        tf.config.experimental.set_memory_growth(gpu, allow_growth)
        note = "the GPU's size could not be read (nvidia-ml-py, nvidia-smi): gpu_memory_fraction is not enforced"
        return {"gpu_memory_limit_mib": None, "gpu_allow_growth": allow_growth, "note": note}
    limit = int(total * fraction)
    # A logical device's limit drops the growth setting without a word; the environment variable still holds.
    os.environ["TF_FORCE_GPU_ALLOW_GROWTH"] = "true" if allow_growth else "false"
    tf.config.set_logical_device_configuration(gpu, [tf.config.LogicalDeviceConfiguration(memory_limit=limit)])
    return {"gpu_memory_limit_mib": limit, "gpu_allow_growth": allow_growth}


def gpu_total_mib(index: int) -> int | None:
    """Memory of CUDA device ``index`` in MiB by NVML, else by nvidia-smi, else None; honours CUDA_VISIBLE_DEVICES."""
    visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    name = visible[index] if index < len(visible) else str(index)
    query = ["nvidia-smi", f"--id={name}", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        import pynvml

        pynvml.nvmlInit()
        handle = (
            pynvml.nvmlDeviceGetHandleByIndex(int(name))
            if name.isdigit()
            else pynvml.nvmlDeviceGetHandleByUUID(name.encode())
        )
        return int(pynvml.nvmlDeviceGetMemoryInfo(handle).total) // MIB
    except Exception as error:  # NVML has many ways of being absent; nvidia-smi is the second source
        log.debug("NVML gave nothing: %s", error)
    try:
        return int(subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout.split()[0])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None
