"""Builds a session: device chosen, memory policy applied, weights loaded; one path for runs and notebooks."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runner.config import MemoryConfig
from runner.convolution import ConvolutionChoice, choose_convolution
from runner.devices import DeviceChoice, DeviceType, choose_device, detect_available_devices
from runner.errors import WeightsError
from runner.hardware import usable_cores, versions
from runner.memory import MemoryPlan, apply_gpu_memory, plan_memory
from runner.parity import AnswerCache, Answers, fixed_signals
from runner.precision import PrecisionChoice, choose_precision
from runner.smoke import smoke_figures, smoke_misses, smoke_windows
from runner.vggish.checkpoint import load_checkpoint, weights_checksum
from runner.vggish.postprocess import PcaParameters, load_pca, random_pca
from runner.vggish.reference import reference_embeddings
from runner.vggish.session import SessionMetadata, VGGishSession
from runner.weights import DrawnWeights, WeightsChoice, draw_weights

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DeviceRequest:
    """What is asked of the device."""

    name: str = "auto"
    index: int | str = 0
    strict: bool = False
    precision: str = "float32"


@dataclass(frozen=True)
class Placement:
    """Where and how a session will run; ``gpu_memory`` is what took effect of the policy on the device."""

    device: DeviceChoice
    precision: PrecisionChoice
    memory: MemoryPlan
    gpu_memory: dict[str, Any]


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
    precision = choose_precision(request.precision, device.device)
    plan = plan_for(device, precision, memory, gpu_memory)
    return Placement(device=device, precision=precision, memory=plan, gpu_memory=gpu_memory)


def plan_for(
    device: DeviceChoice, precision: PrecisionChoice, memory: MemoryConfig, gpu_memory: Mapping[str, Any]
) -> MemoryPlan:
    """What the memory policy comes to on the devices chosen, with the memory that they have."""
    return plan_memory(
        memory,
        device.effective,
        usable_cores(),
        len(device.indices),
        precision=precision.effective,
        gpu_mib=gpu_memory.get("gpu_memory_available_mib"),
    )


@dataclass(frozen=True)
class LoadedWeights:
    """Weights in memory.

    ``arrays`` are float32 by checkpoint name (``build_session`` empties them); ``checksum`` is of their values;
    ``pca`` is None where none was asked for; ``smoke`` holds the figures of the release's smoke test, which is run on
    the released weights only.
    """

    choice: WeightsChoice
    arrays: dict[str, NDArray[np.float32]]
    checksum: str
    pca: PcaParameters | None
    smoke: dict[str, float] | None = None


def load_weights(choice: WeightsChoice, drawn: DrawnWeights | None = None, kept: Path | None = None) -> LoadedWeights:
    """Read the weights, and put the released ones to their smoke test.

    Args:
        choice: which weights.
        drawn: random ones, if ``draw_weights`` has made them already.
        kept: folder of the reference's answers, which the smoke test is about; they are computed now when None.

    Raises:
        WeightsError: a file is not what it should be, or the released weights don't give the known answers.
    """
    if choice.source == "random":
        drawn = drawn or draw_weights(choice)
        assert drawn is not None
        return LoadedWeights(choice, drawn.arrays, drawn.checksum, random_pca(choice.seed or 0))
    arrays = load_checkpoint(str(choice.path))
    pca = load_pca(choice.pca_path) if choice.pca_path else None
    smoke, checksum = None, weights_checksum(arrays)
    if choice.source == "audioset" and pca is not None:
        answers = _reference_answers(arrays, checksum, smoke_windows(), kept)[0]
        smoke = smoke_figures(answers, pca)
        if misses := smoke_misses(smoke):
            raise WeightsError(
                f"{choice.path} fails the release's smoke test (a 1 kHz sine: {'; '.join(misses)}): the file or this "
                "machine's TensorFlow gives wrong numbers; delete the file to have it downloaded again, or use "
                "weights=file for a checkpoint of your own"
            )
    return LoadedWeights(choice, arrays, checksum, pca, smoke)


def _reference_answers(
    arrays: Mapping[str, NDArray[np.float32]],
    checksum: str,
    windows: NDArray[np.float32],
    kept: Path | None,
    precision: str = "float32",
) -> tuple[NDArray[np.float32], bool]:
    """The reference's answers to windows, and whether they were known already."""

    def compute(windows: NDArray[np.float32]) -> NDArray[np.float32]:
        return reference_embeddings(arrays, windows, precision)

    return AnswerCache(kept).get(checksum, windows, compute, precision) if kept else (compute(windows), False)


def parity_answers(weights: LoadedWeights, folder: Path, precision: str) -> Answers:
    """What a device is expected to answer on the fixed signals in a precision.

    Args:
        weights: with their arrays.
        folder: where answers are kept.
        precision: in effect.

    Raises:
        WeightsError: the weights give NaN or infinity.
    """
    signals = fixed_signals()
    exact, known = _reference_answers(weights.arrays, weights.checksum, signals, folder)
    if not np.isfinite(exact).all():
        raise WeightsError(f"{weights.choice.path} gives NaN or infinity on ordinary sound: get another checkpoint")
    if precision == "float32":
        return Answers(exact, exact, known)
    rounded, also = _reference_answers(weights.arrays, weights.checksum, signals, folder, precision)
    return Answers(exact, rounded, known and also)


def build_sessions(
    placement: Placement,
    loaded: LoadedWeights,
    *,
    conv: str = "auto",
    calibration: Callable[[], tuple[float, float]] | None = None,
    timed: Callable[[str, float], None] | None = None,
    dtypes: Sequence[str] = ("float32",),
) -> list[VGGishSession]:
    """Put the weights onto the placed devices, one session each, and compile their programs.

    Args:
        placement: as ``place`` gives it.
        loaded: the weights; their arrays are emptied.
        conv: algorithm of the deep convolutions: auto, direct or winograd.
        calibration: gives seconds of (direct, winograd) for ``auto``; measured now when None.
        timed: told the seconds of each step: ``calibration``, ``weights`` and ``compile``.
        dtypes: of the windows to compile for.
    """
    start = time.perf_counter()
    chosen = choose_convolution(conv, placement.device.effective, placement.precision.effective, calibration)
    calibrated = time.perf_counter()
    devices = range(len(placement.device.indices))
    sessions = [
        VGGishSession(
            loaded.arrays if ordinal == devices[-1] else dict(loaded.arrays),
            placement.device,
            placement.precision,
            placement.memory.batch_size,
            _session_metadata(placement, loaded, chosen),
            chosen.effective,
            ordinal,
        )
        for ordinal in devices
    ]
    placed = time.perf_counter()
    with ThreadPoolExecutor(len(sessions)) as threads:
        for _ in threads.map(lambda session: [session.warm_up(dtype) for dtype in dtypes], sessions):
            pass
    if timed:
        timed("calibration", calibrated - start)
        timed("weights", placed - calibrated)
        timed("compile", time.perf_counter() - placed)
    return sessions


def build_session(placement: Placement, loaded: LoadedWeights, *, conv: str = "auto") -> VGGishSession:
    """A session on the first of the placed devices; ``loaded``'s arrays are emptied."""
    (session,) = build_sessions(replace(placement, device=replace(placement.device, others=())), loaded, conv=conv)
    return session


def _session_metadata(placement: Placement, loaded: LoadedWeights, conv: ConvolutionChoice) -> SessionMetadata:
    weights = loaded.choice
    return SessionMetadata(
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
            "checksum": loaded.checksum,
            "smoke": loaded.smoke,
        },
        model={"conv": conv.to_dict()},
        versions=versions(),
    )


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
        batch_size_by_device={"cpu": 128, "gpu": 512, "metal": 128},
    )
    placement = place(DeviceRequest(DeviceType(device_preference).value, precision=precision), policy)
    for warning in filter(
        None, (placement.device.fallback_reason and placement.device.reason, placement.precision.warning)
    ):
        log.warning("%s", warning)
    return build_session(placement, load_weights(chosen))
