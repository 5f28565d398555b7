"""Builds a session: device chosen, memory policy applied, weights loaded; one path for runs and notebooks."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from runner.config import MemoryConfig
from runner.devices import DeviceChoice, DeviceType, choose_device, detect_available_devices
from runner.hardware import usable_cores, versions
from runner.memory import MemoryPlan, apply_gpu_memory, plan_memory, shared_memory_free
from runner.precision import PrecisionChoice, choose_precision
from runner.vggish.checkpoint import load_checkpoint, random_weights, weights_checksum
from runner.vggish.session import SessionMetadata, VGGishSession
from runner.weights import WeightsChoice

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DeviceRequest:
    """What is asked of the device."""

    name: str = "auto"
    index: int = 0
    strict: bool = False
    precision: str = "float32"


@dataclass(frozen=True)
class Placement:
    """Where and how a session will run; ``gpu_memory`` is what took effect of the policy on the device."""

    device: DeviceChoice
    precision: PrecisionChoice
    memory: MemoryPlan
    gpu_memory: dict[str, object]


def place(request: DeviceRequest, memory: MemoryConfig) -> Placement:
    """Choose device and precision and apply the memory policy; once per process, before TensorFlow touches a device."""
    import tensorflow as tf

    devices = detect_available_devices()
    device = choose_device(request.name, devices, index=request.index, strict=request.strict)
    cores = usable_cores()
    gpu_memory = apply_gpu_memory(device, fraction=memory.gpu_memory_fraction, allow_growth=memory.gpu_allow_growth)
    tf.config.set_soft_device_placement(True)
    tf.config.threading.set_intra_op_parallelism_threads(cores)
    tf.config.threading.set_inter_op_parallelism_threads(min(2, cores))
    return Placement(
        device=device,
        precision=choose_precision(request.precision, device.device),
        memory=plan_memory(memory, device.effective, cores, shared_memory_free()),
        gpu_memory=gpu_memory,
    )


def build_session(
    placement: Placement, weights: WeightsChoice, timed: Callable[[str, float], None] | None = None
) -> VGGishSession:
    """Load the weights onto the placed device and compile the program.

    Args:
        placement: as ``place`` gives it.
        weights: which weights.
        timed: told the seconds of each step, ``weights`` and ``compile``.
    """
    start = time.perf_counter()
    arrays = random_weights(weights.seed or 0) if weights.source == "random" else load_checkpoint(str(weights.path))
    metadata = SessionMetadata(
        device=placement.device.to_dict(),
        precision=placement.precision.to_dict(),
        memory={"batch_size": placement.memory.batch_size, **placement.gpu_memory},
        weights={
            "requested": weights.requested,
            "source": weights.source,
            "path": weights.path,
            "seed": weights.seed,
            "reason": weights.reason,
            "meaningless": weights.meaningless,
            "checksum": weights_checksum(arrays),
        },
        versions=versions(),
    )
    session = VGGishSession(arrays, placement.device, placement.precision, placement.memory.batch_size, metadata)
    loaded = time.perf_counter()
    compile_s = session.warm_up()
    if timed:
        timed("weights", loaded - start)
        timed("compile", compile_s)
    return session


def load_vggish_model(
    device_preference: DeviceType | str = DeviceType.AUTO,
    gpu_memory_fraction: float = 0.8,
    gpu_allow_growth: bool = True,
    *,
    weights: str = "audioset",
    seed: int = 0,
    precision: str = "float32",
    batch_size: int | None = None,
    models: str | Path | None = None,
) -> VGGishSession:
    """A ready VGGish session, for notebooks and scripts.

    Args:
        device_preference: auto, cpu, gpu or metal; an absent device falls back to the CPU with a warning.
        gpu_memory_fraction: share of the GPU's memory to take at most, 0 < x <= 1.
        gpu_allow_growth: take GPU memory on demand instead of up front.
        weights: ``audioset`` (downloaded once), ``random``, or the path of a checkpoint.
        seed: of random weights.
        precision: float32, tf32, bfloat16, float16 or auto.
        batch_size: examples per call of the program; chosen by device when None.
        models: folder for downloaded weights; the project's or the user's own when None.

    Returns:
        A session whose ``metadata`` carry device, precision, memory and weights, as requested and as in effect.

    Raises:
        WeightsError: the weights can't be had or are not VGGish's.
        ValueError: an argument out of range.
        RuntimeError: TensorFlow already uses its devices in this process, so they can't be configured any more.
    """
    from runner.config import AudiosetWeights, FileWeights, RandomWeights, WeightsConfig
    from runner.paths import default_models
    from runner.weights import resolve_weights

    if not 0.0 < gpu_memory_fraction <= 1.0:
        raise ValueError(f"gpu_memory_fraction={gpu_memory_fraction} is not a share of the memory: use 0 < x <= 1")
    wanted: WeightsConfig
    if weights == "random":
        wanted = RandomWeights(seed=seed)
    else:
        wanted = AudiosetWeights() if weights == "audioset" else FileWeights(path=weights)
    chosen = resolve_weights(wanted, Path(models) if models else default_models(), is_demo=False)
    policy = MemoryConfig(
        name="custom",
        gpu_memory_fraction=gpu_memory_fraction,
        gpu_allow_growth=gpu_allow_growth,
        batch_size=batch_size,
        batch_size_by_device={"cpu": 64, "gpu": 512, "metal": 128},
    )
    placement = place(DeviceRequest(DeviceType(device_preference).value, precision=precision), policy)
    for warning in filter(
        None, (placement.device.fallback_reason and placement.device.reason, placement.precision.warning)
    ):
        log.warning("%s", warning)
    return build_session(placement, chosen)
