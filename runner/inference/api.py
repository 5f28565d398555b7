"""The model as a Python object: ``load_vggish_model``."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from runner.config.schema import MemoryConfig
from runner.devices.detection import DeviceType
from runner.inference.builder import DeviceRequest, build_session, place_on_device
from runner.models.vggish.model import VGGish
from runner.weights.selection import WeightsRequest

if TYPE_CHECKING:
    from runner.config.schema import WeightsConfig
    from runner.inference.session import EmbeddingSession
    from runner.models.base import EmbeddingModel

log = logging.getLogger(__name__)


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
) -> EmbeddingSession:
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
    from runner.config.schema import AudiosetWeights, FileWeights, RandomWeights
    from runner.core.paths import default_models

    if not 0.0 < gpu_memory_fraction <= 1.0:
        raise ValueError(f"gpu_memory_fraction={gpu_memory_fraction} is not a share of the memory: use 0 < x <= 1")
    wanted: WeightsConfig
    if weights == "random":
        wanted = RandomWeights(seed=seed)
    else:
        wanted = AudiosetWeights() if weights == "audioset" else FileWeights(path=weights)
    request = DeviceRequest(DeviceType(device_preference).value, precision=precision)
    policy = MemoryConfig(
        name="custom",
        gpu_memory_fraction=gpu_memory_fraction,
        gpu_allow_growth=gpu_allow_growth,
        batch_size=batch_size,
        default_batch_size={"cpu": 128, "gpu": 512, "metal": 128},
        host_limit_mib=None,
    )
    return load_session(VGGish(), wanted, Path(models) if models else default_models(), request, policy)


def load_session(
    model: EmbeddingModel, weights: WeightsConfig, models: Path, request: DeviceRequest, policy: MemoryConfig
) -> EmbeddingSession:
    """Return a ready session of a model on the first of the placed devices.

    Args:
        model: the model.
        weights: the source of its weights.
        models: folder for downloaded weights.
        request: device and precision.
        policy: the memory policy.

    Raises:
        WeightsError: the weights can't be had or are not the model's.
    """
    chosen = model.choose_weights(WeightsRequest(weights, models))
    placement = place_on_device(request, policy, model.spec)
    for warning in filter(
        None, (placement.device.fallback_reason and placement.device.reason, placement.precision.warning)
    ):
        log.warning("%s", warning)
    return build_session(placement, model, model.load(chosen))
