"""The memory policy: batch size, queue and decode processes that fit into the memory of host and GPU."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from runner.audio.framing import slot_bytes
from runner.devices.detection import DeviceType
from runner.devices.host import writers_for

if TYPE_CHECKING:
    from runner.config.schema import MemoryConfig
    from runner.core.model_spec import ModelSpec

MIB = 1 << 20

IN_FLIGHT_ON_CUDA = 4
"""Batches in flight on a GPU: while one computes, the next are copied and their kernels launched (measured on an H100:
167,000, 200,000, 218,000 and 236,000 × realtime with one to four)."""

_WORKER_BASE_MIB = 1230
"""TensorFlow, the weights and a chunk of convolutions, before any batch (measured on Linux, float32)."""

_CUDA_HOST_MIB = 1000
"""Host memory of CUDA's libraries besides that (measured on an H100); no policy can reduce it."""

_FEW_CORES = 8

_DECODER_MIB = 70

_WRITER_MIB = 200
"""A process that writes shards (measured on Linux: 126 on two cores, 196 on the host of an H200)."""

_ACTIVATION_MIB_PER_EXAMPLE = 0.2
"""Activations of one example in a batch on a CPU (measured)."""

_MIN_SAMPLES = 8 * 15_600
"""Samples of a batch (8 of VGGish's windows) down to which it is cut."""

_MIN_GPU_SAMPLES = 256 * 15_600
"""Samples of a batch (conservative's, of VGGish) down to which a GPU's is cut before decode processes are, and below
them last of all: otherwise ``balanced`` cuts the batch to 8 windows on a machine of 64 cores, which leaves a GPU
idle."""

_GPU_BASE_MIB = 700

_GPU_MIB_PER_EXAMPLE = {"float32": 15.0, "tf32": 8.0, "float16": 6.0, "bfloat16": 6.0}
"""Memory of an example in a batch on a GPU by precision, XLA's trials of algorithms included (measured on an H100)."""

MAX_BATCH = 2048
"""Larger activations than 2**31 elements are illegal memory accesses on a GPU; conv1's have 393,216 an example."""


@dataclass(frozen=True)
class MemoryPlan:
    """The policy's effective settings on a machine.

    Attributes:
        batch_size: examples of a batch.
        queue_depth: batches that may wait for a replica.
        decode_workers: decode processes.
        host_limit_mib: the policy's limit of host memory.
        in_flight: batches that all devices have at once.
        writer_processes: processes that write shards; 0: the worker's threads do.
        notes: a message for each setting that was cut.
    """

    batch_size: int
    queue_depth: int
    decode_workers: int
    host_limit_mib: int | None
    in_flight: int = 1
    writer_processes: int = 0
    notes: tuple[str, ...] = ()

    @property
    def spare_slots(self) -> int:
        """Slots besides those that decode processes fill: batches that wait, and batches in flight."""
        return self.queue_depth + self.in_flight


def default_decode_workers(device: DeviceType, cores: int) -> int:
    """Return the number of decode processes for a device.

    On a CPU they share the cores with the network, and wait when they are ahead of it: enough of them that compressed
    audio, of which a core decodes no more than it embeds, never leaves the network waiting.  With a GPU they have the
    cores for themselves, as the worker needs few.
    """
    if device is DeviceType.CPU:
        return max(min(cores, _FEW_CORES), cores // 2)
    return cores


def planned_decode_workers(memory: MemoryConfig, device: DeviceType, cores: int) -> int:
    """Return the number of decode processes that a policy has for a device, before anything is cut."""
    by_kind = memory.default_decode_workers.get(device.value)
    return memory.decode_workers or (min(by_kind, cores) if by_kind else default_decode_workers(device, cores))


def plan_memory(
    memory: MemoryConfig,
    device: DeviceType,
    cores: int,
    devices: int = 1,
    *,
    spec: ModelSpec,
    precision: str = "float32",
    gpu_mib: int | None = None,
) -> MemoryPlan:
    """Return the policy's effective settings; queue, writers, batch and decode processes are cut to the limit.

    They are cut in this order, but on a GPU the batch below ``_MIN_GPU_SAMPLES`` last of all.

    Args:
        memory: the policy; a batch size ``auto`` starts from the device's default.
        device: kind of device in use.
        cores: usable cores.
        devices: devices in use.
        spec: the model's, for its windows and rows.
        precision: number format of the network.
        gpu_mib: memory of each GPU that the run may take; None where that is unknown.
    """
    batch = memory.batch_size if isinstance(memory.batch_size, int) else memory.default_batch_size[device.value]
    notes = []
    if batch > MAX_BATCH:
        notes.append(f"batch_size cut from {batch} to {MAX_BATCH}: larger activations overflow 2**31 elements")
        batch = MAX_BATCH
    if device is DeviceType.GPU and gpu_mib is not None:
        asked_for = batch
        while batch > 1 and _GPU_BASE_MIB + batch * _GPU_MIB_PER_EXAMPLE[precision] > gpu_mib:
            batch //= 2
        if batch < asked_for:
            notes.append(f"batch_size cut from {asked_for} to {batch}: the GPU has {gpu_mib:,} MiB for this run")
    writers = memory.writer_processes
    if writers is None:
        writers = writers_for(cores, spec.width) if device is DeviceType.GPU else 0
    limit_mib = memory.host_limit_of(device.value)
    plan = MemoryPlan(
        batch_size=batch,
        queue_depth=memory.queue_depth,
        decode_workers=planned_decode_workers(memory, device, cores),
        host_limit_mib=limit_mib,
        in_flight=devices * (IN_FLIGHT_ON_CUDA if device is DeviceType.GPU else 1),
        writer_processes=writers,
        notes=tuple(notes),
    )
    return plan if limit_mib is None else _cut_to_limit(plan, limit_mib, device, devices, spec.window_samples)


def _cut_to_limit(
    plan: MemoryPlan, limit_mib: int, device: DeviceType, devices: int, window_samples: int
) -> MemoryPlan:
    """Return the plan with queue, writers, batch and decode processes cut until it fits into the host's memory."""
    least_batch = max(1, _MIN_SAMPLES // window_samples)
    least_gpu_batch = max(least_batch, _MIN_GPU_SAMPLES // window_samples)
    batch, depth, workers, writers = plan.batch_size, plan.queue_depth, plan.decode_workers, plan.writer_processes
    activations = _ACTIVATION_MIB_PER_EXAMPLE if device is DeviceType.CPU else 0.0

    def is_too_much() -> bool:
        slots = (workers + depth + plan.in_flight) * slot_bytes(batch, window_samples) / MIB
        processes = workers * _DECODER_MIB + writers * _WRITER_MIB
        return _WORKER_BASE_MIB + batch * activations + slots + processes > limit_mib

    while is_too_much() and depth > 1:
        depth -= 1
    while is_too_much() and writers:
        writers -= 1
    while is_too_much() and batch > (least_gpu_batch if device is DeviceType.GPU else least_batch):
        batch //= 2
    while is_too_much() and workers > devices:
        workers -= 1
    while is_too_much() and batch > least_batch:
        batch //= 2
    while is_too_much() and workers > 1:
        workers -= 1
    cuts = {
        "batch_size": (plan.batch_size, batch),
        "queue_depth": (plan.queue_depth, depth),
        "decode_workers": (plan.decode_workers, workers),
        "writer_processes": (plan.writer_processes, writers),
    }
    notes = (
        f"{name} cut from {before} to {after}: memory.host_limit_mib is {limit_mib}"
        for name, (before, after) in cuts.items()
        if before != after
    )
    return replace(
        plan,
        batch_size=batch,
        queue_depth=depth,
        decode_workers=workers,
        writer_processes=writers,
        notes=(*plan.notes, *notes),
    )


def ceiling_mib(memory: MemoryConfig, device: DeviceType) -> int | None:
    """Return the limit of the worker's host memory with a device: the policy's, and CUDA's libraries."""
    limit_mib = memory.host_limit_of(device.value)
    if limit_mib is None:
        return None
    return limit_mib + (_CUDA_HOST_MIB if device is DeviceType.GPU else 0)
