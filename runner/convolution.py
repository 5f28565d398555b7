"""Which algorithm the deep convolutions take: decided by device and precision, on a CPU in float32 by the stopwatch."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runner.devices import DeviceType
from runner.vggish import network, winograd

CALIBRATION_EXAMPLES = 16
_CALIBRATION_RUNS = 3
_WORTH_IT = 1.1
"""Winograd is taken if it is faster by this factor at least: its sums are in another order for nothing otherwise."""


@dataclass(frozen=True)
class ConvolutionChoice:
    """Algorithm asked for, in effect, and why."""

    requested: str
    effective: str
    reason: str

    def to_dict(self) -> dict[str, str]:
        """Plain values, fit for result.json."""
        return asdict(self)


def choose_convolution(
    requested: str,
    device: DeviceType,
    precision: str,
    weights: Mapping[str, NDArray[np.float32]],
    seconds: Callable[[Mapping[str, NDArray[np.float32]]], tuple[float, float]] | None = None,
) -> ConvolutionChoice:
    """Decide between ``direct`` and ``winograd``.

    Args:
        requested: auto, direct or winograd.
        device: the kind of device in use.
        precision: in effect.
        weights: float32 arrays by checkpoint name.
        seconds: measures (direct, winograd); ``calibrate`` when None.
    """
    if requested == "direct":
        return ConvolutionChoice(requested, "direct", "model.conv=direct was asked for")
    possible = device is DeviceType.CPU and precision == "float32"
    if not possible:
        why = (
            f"the {device.value} has its own algorithms"
            if device is not DeviceType.CPU
            else f"Winograd's sums are too coarse in {precision}"
        )
        return ConvolutionChoice(requested, "direct", why)
    if requested == "winograd":
        return ConvolutionChoice(requested, "winograd", "model.conv=winograd was asked for")
    direct, fast = (seconds or calibrate)(weights)
    ratio = direct / fast
    effective = "winograd" if ratio >= _WORTH_IT else "direct"
    measured = f"conv4_2 of {CALIBRATION_EXAMPLES} examples: {1e3 * fast:.1f} ms, directly {1e3 * direct:.1f} ms"
    return ConvolutionChoice(requested, effective, f"Winograd is {ratio:.2f} × as fast here ({measured})")


def calibrate(weights: Mapping[str, NDArray[np.float32]]) -> tuple[float, float]:
    """Median seconds of conv4_2 with its max-pool on a chunk of examples on the CPU: (direct, Winograd)."""
    import tensorflow as tf

    layer = "vggish/conv4/conv4_2"
    kernel, biases = (tf.constant(weights[f"{layer}/{part}"]) for part in ("weights", "biases"))
    transformed = tf.constant(winograd.transform_filters(weights[f"{layer}/weights"]))
    shape = (CALIBRATION_EXAMPLES, 12, 8, kernel.shape[2])
    images = tf.constant(np.random.default_rng(0).standard_normal(shape, np.float32))
    programs = (
        tf.function(lambda x: network.convolution(x, kernel, biases, pool=True)),
        tf.function(lambda x: winograd.convolution(x, transformed, biases, (12, 8), 1, pool=True)),
    )
    given: tuple[Any, ...] = (images, tf.reshape(images, [-1, shape[3]]))
    taken: tuple[list[float], list[float]] = ([], [])
    with tf.device("/CPU:0"):
        for run in range(_CALIBRATION_RUNS + 1):
            for program, x, seconds in zip(programs, given, taken, strict=True):
                start = time.perf_counter()
                program(x).numpy()
                if run:  # the first one traces and compiles
                    seconds.append(time.perf_counter() - start)
    direct, fast = (statistics.median(seconds) for seconds in taken)
    return direct, fast
