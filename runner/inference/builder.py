"""Construction of sessions: device, memory policy, programs; the same for runs and notebooks."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from runner.contract.result import DeviceReport, WeightsReport
from runner.devices.host import usable_cores, versions
from runner.devices.probe import detect_available_devices
from runner.devices.selection import choose_device
from runner.inference.gpu_memory import GpuMemory, apply_gpu_memory
from runner.inference.memory import plan_memory
from runner.inference.precision import choose_precision
from runner.inference.session import EmbeddingSession, SessionMetadata
from runner.inference.tensorflow_import import import_tensorflow
from runner.models.base import Target

if TYPE_CHECKING:
    from runner.config.schema import MemoryConfig
    from runner.contract.result import Decision
    from runner.core.model_spec import ModelSpec
    from runner.devices.selection import DeviceChoice
    from runner.inference.memory import MemoryPlan
    from runner.inference.precision import PrecisionChoice
    from runner.models.base import EmbeddingModel, LoadedWeights


@dataclass(frozen=True)
class DeviceRequest:
    """The requested device and precision."""

    name: str = "auto"
    index: int | str = 0
    strict: bool = False
    precision: str = "float32"


@dataclass(frozen=True)
class Placement:
    """Device, precision and memory plan of sessions; ``gpu_memory`` are the allocator's settings in effect."""

    device: DeviceChoice
    precision: PrecisionChoice
    memory: MemoryPlan
    gpu_memory: GpuMemory


def place_on_device(request: DeviceRequest, memory: MemoryConfig, spec: ModelSpec) -> Placement:
    """Choose device and precision and apply the memory policy, once per process, before TensorFlow uses a device."""
    import_tensorflow()
    import tensorflow as tf

    devices = detect_available_devices()
    device = choose_device(request.name, devices, index=request.index, strict=request.strict)
    cores = usable_cores()
    gpu_memory = apply_gpu_memory(device, fraction=memory.gpu_memory_fraction, allow_growth=memory.gpu_allow_growth)
    tf.config.set_soft_device_placement(True)
    tf.config.threading.set_intra_op_parallelism_threads(cores)
    tf.config.threading.set_inter_op_parallelism_threads(min(2, cores))
    precision = choose_precision(request.precision, device.device, possible=spec.precisions)
    plan = memory_plan(device, precision, memory, gpu_memory, spec)
    return Placement(device=device, precision=precision, memory=plan, gpu_memory=gpu_memory)


def memory_plan(
    device: DeviceChoice, precision: PrecisionChoice, memory: MemoryConfig, gpu_memory: GpuMemory, spec: ModelSpec
) -> MemoryPlan:
    """Return the memory policy's effective settings on the chosen devices."""
    return plan_memory(
        memory,
        device.effective,
        usable_cores(),
        len(device.indices),
        spec=spec,
        precision=precision.effective,
        gpu_mib=gpu_memory.available_mib,
    )


def build_sessions(
    placement: Placement,
    model: EmbeddingModel,
    loaded: LoadedWeights,
    *,
    cache: Path | None = None,
    timed: Callable[[str, float], None] | None = None,
    dtypes: Sequence[str] = ("float32",),
) -> list[EmbeddingSession]:
    """Build a session on each of the placed devices, and compile their programs.

    Args:
        placement: from ``place_on_device``.
        model: the model.
        loaded: its weights; their arrays are emptied.
        cache: folder of measurements of this machine; None to measure anew.
        timed: called with the seconds of each step: ``calibration``, ``weights`` and ``compile``.
        dtypes: of the windows to compile for.
    """
    start = time.perf_counter()
    target = Target(placement.device.effective, placement.precision.effective)
    algorithm = model.choose_algorithm(target, cache)
    calibrated = time.perf_counter()
    metadata = _session_metadata(placement, loaded, algorithm)
    sessions = []
    for ordinal in range(len(placement.device.indices)):
        is_last = ordinal == len(placement.device.others)
        arrays = loaded.arrays if is_last else dict(loaded.arrays)
        program = model.make_program(arrays, replace(target, ordinal=ordinal), algorithm)
        sessions.append(EmbeddingSession(program, placement.memory.batch_size, metadata))
    built = time.perf_counter()
    with ThreadPoolExecutor(len(sessions)) as threads:
        list(threads.map(lambda session: [session.warm_up(dtype) for dtype in dtypes], sessions))  # raises their errors
    if timed:
        timed("calibration", calibrated - start)
        timed("weights", built - calibrated)
        timed("compile", time.perf_counter() - built)
    return sessions


def build_session(placement: Placement, model: EmbeddingModel, loaded: LoadedWeights) -> EmbeddingSession:
    """Build a session on the first of the placed devices; ``loaded``'s arrays are emptied."""
    (session,) = build_sessions(replace(placement, device=replace(placement.device, others=())), model, loaded)
    return session


def _session_metadata(placement: Placement, loaded: LoadedWeights, conv: Decision | None) -> SessionMetadata:
    return SessionMetadata(
        device=DeviceReport.of(placement.device),
        precision=placement.precision.decision,
        weights=replace(WeightsReport.of(loaded.choice), checksum=loaded.checksum, smoke=loaded.smoke),
        conv=conv,
        gpu_memory=placement.gpu_memory,
        versions=versions(),
    )
