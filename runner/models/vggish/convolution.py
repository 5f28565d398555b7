"""Choice of the deep convolutions' algorithm: by device and precision, and on a CPU in float32 by measuring."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from runner.contract.result import Decision
from runner.core.cache import remembered
from runner.devices.detection import DeviceType
from runner.devices.host import cpu_name, usable_cores, versions
from runner.devices.instruction_sets import instruction_sets
from runner.vggish import network, winograd
from runner.vggish.constants import VARIABLE_SHAPES

CALIBRATION_EXAMPLES = 16

_CALIBRATION_RUNS = 3

_IMAGE = (12, 8)
"""Height and width of conv4_1's input."""

_MIN_SPEEDUP = 1.1
"""Least speedup for which Winograd is used: its sums are in another order."""


def choose_convolution(
    requested: str,
    device: DeviceType,
    precision: str,
    seconds: Callable[[], tuple[float, float]] | None = None,
) -> Decision:
    """Choose between ``direct`` and ``winograd``.

    Args:
        requested: auto, direct or winograd.
        device: kind of device in use.
        precision: in effect.
        seconds: returns the measured seconds of (direct, winograd); ``calibrate`` when None.
    """
    if requested == "direct":
        return Decision(requested, "direct", "model.conv=direct was asked for")
    possible = device is DeviceType.CPU and precision == "float32"
    if not possible:
        why = (
            f"the {device.value} has its own algorithms"
            if device is not DeviceType.CPU
            else f"Winograd's sums are too coarse in {precision}"
        )
        return Decision(requested, "direct", why)
    if requested == "winograd":
        return Decision(requested, "winograd", "model.conv=winograd was asked for")
    direct, fast = (seconds or calibrate)()
    ratio = direct / fast
    effective = "winograd" if ratio >= _MIN_SPEEDUP else "direct"
    measured = f"conv4_1 of {CALIBRATION_EXAMPLES} examples: {1e3 * fast:.1f} ms, directly {1e3 * direct:.1f} ms"
    return Decision(requested, effective, f"Winograd is {ratio:.2f} × as fast here ({measured})")


def remembered_calibration(folder: Path) -> tuple[float, float]:
    """Return the result of ``calibrate`` on this machine with this TensorFlow, cached in ``folder``.

    A model name of a processor may stand for several generations (of a virtual machine it often does): the instruction
    sets in use are part of the key.
    """
    key = f"{cpu_name()} ({instruction_sets()}), {usable_cores()} cores, TensorFlow {versions()['tensorflow']}"
    direct, fast = remembered(folder / "calibration.json", key, calibrate, _is_pair)
    return float(direct), float(fast)


def _is_pair(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(isinstance(seconds, float) and seconds > 0 for seconds in value)
    )


def calibrate() -> tuple[float, float]:
    """Measure the median seconds of conv4_1 on a chunk of examples on the CPU: (direct, Winograd)."""
    import tensorflow as tf

    inputs, outputs = VARIABLE_SHAPES["vggish/conv4/conv4_1/weights"][2:]
    rng = np.random.default_rng(0)
    images, kernel, transformed = (
        tf.constant(rng.standard_normal(shape, np.float32))
        for shape in (
            (CALIBRATION_EXAMPLES, *_IMAGE, inputs),
            (3, 3, inputs, outputs),
            (winograd.INPUTS_A_TILE, inputs, outputs),
        )
    )
    biases = tf.zeros(outputs)
    programs = (
        tf.function(lambda x: network.convolution(x, kernel, biases, pool=False), autograph=False),
        tf.function(lambda x: winograd.convolution(x, transformed, biases, _IMAGE, 1, pool=False), autograph=False),
    )
    arguments: tuple[Any, ...] = (images, tf.reshape(images, [-1, inputs]))
    timings: tuple[list[float], list[float]] = ([], [])
    with tf.device("/CPU:0"):
        for run in range(_CALIBRATION_RUNS + 1):
            for program, x, seconds in zip(programs, arguments, timings, strict=True):
                start = time.perf_counter()
                program(x).numpy()
                if run:  # the first one traces and compiles
                    seconds.append(time.perf_counter() - start)
    direct, fast = (statistics.median(seconds) for seconds in timings)
    return direct, fast
