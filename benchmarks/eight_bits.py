"""VGGish with convolutions of 8 bits, an experiment: ``python -m benchmarks.eight_bits AUDIO`` prints speed and error.

INT8 by oneDNN's operations in TensorFlow: unsigned activations with one scale a layer, which a part of the clips
calibrates by their maxima, and weights with a scale a channel.  conv1 and the dense layers stay in float32, or
bfloat16 where the CPU multiplies it.  Run it under ``ONEDNN_MAX_CPU_ISA`` for other CPUs; the weights are random.
E4M3 is there for its error only, as no CPU multiplies it: activations and weights are rounded to it with the same
scales, and convolved in float32 (``benchmarks.gpu_stages --float8`` has a GPU's speed).

The probe is logistic regression on the clips' means, as in ``evaluate=probe``; labels are the clips' folders.  Two
convolutions are timed alone as well.
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

LAYERS = (("conv2", 1), ("conv3/conv3_1", 0), ("conv3/conv3_2", 1), ("conv4/conv4_1", 0), ("conv4/conv4_2", 1))
"""INT8 layers, and whether a 2×2 max-pool follows."""

ALONE = {"conv3_2": (24, 16, 256, 256), "conv4_2": (12, 8, 512, 512)}
"""Height, width, inputs and outputs of the convolutions that are timed alone."""

_BATCH = 64

_ROUNDS = 5

_FOLDS = 5


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("audio", type=Path, help="folder of clips")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from runner.devices.instruction_sets import instruction_sets
    from runner.statistics.frechet import Gaussian, frechet_distance

    windows, clips = _windows(parser.parse_args().audio)
    has_bfloat16 = bool(instruction_sets().bfloat16_units)
    programs = _programs(windows[::9], has_bfloat16)
    timed = windows[:256]
    calls = {name: functools.partial(program, timed) for name, program in programs.items()}
    speeds = _examples_per_core_s(calls, len(timed))
    exact, *_ = embeddings = [program(windows).astype(np.float64) for program in programs.values()]
    print(f"{len(windows)} windows; {instruction_sets().restriction or 'no limit'}")
    for (name, speed), rows in zip(speeds.items(), embeddings, strict=True):
        error = np.abs(rows - exact).max() / np.abs(exact).max()
        cosine = ((rows * exact).sum(1) / np.linalg.norm(rows, axis=1) / np.linalg.norm(exact, axis=1)).min()
        fad = frechet_distance(Gaussian.of_rows(exact), Gaussian.of_rows(rows))
        print(
            f"{name:20s} {speed:5.0f} examples/core-s  rel_err {error:.1e}  min cosine {cosine:.5f}  FAD {fad:.3f}  "
            f"probe {_probe(rows, clips)}"
        )
    for layer, shape in ALONE.items():
        convolutions = _convolutions_alone(*shape, has_bfloat16)
        flop = 2 * 9 * shape[0] * shape[1] * shape[2] * shape[3]
        speeds = _examples_per_core_s(convolutions, _BATCH)
        print(layer, ", ".join(f"{name} {speed * flop / 1e9:,.0f}" for name, speed in speeds.items()), "GFLOP/core-s")


def _examples_per_core_s(calls: dict[str, Callable[[], Any]], examples: int) -> dict[str, float]:
    speeds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(_ROUNDS + 1):
        for name, call in calls.items():
            busy = time.process_time()
            call()
            if number:  # the first round compiles
                speeds[name].append(examples / (time.process_time() - busy))
    return {name: statistics.median(values) for name, values in speeds.items()}


def _probe(rows: np.ndarray, clips: list[tuple[str, int]]) -> str:
    """Return the accuracy of logistic regression on the clips' means; ``clips`` are their labels and windows."""
    from runner.evaluation.data import prepare
    from runner.evaluation.probe import probe
    from runner.evaluation.sample import Sample

    labels = [label for label, _ in clips]
    if len(set(labels)) < 2:
        return "(one label)"
    names = [str(number) for number in range(len(clips))]
    means = [own.mean(0) for own in np.split(rows, np.cumsum([count for _, count in clips])[:-1])]
    sample = Sample(
        names, [0.0] * len(names), names, [None] * len(names), [(label,) for label in labels],
        np.stack(means).astype(np.float32), "clip", len(names), 0,
    )  # fmt: skip
    scores, _ = probe(prepare(sample, _FOLDS, 0))
    accuracy = scores["probe_accuracy"]
    return f"{np.mean(accuracy):.1%} (folds differ by {np.std(accuracy):.1%})"


def _windows(folder: Path) -> tuple[np.ndarray, list[tuple[str, int]]]:
    """Return all clips' windows, and for each clip its label and the number of its windows."""
    import soundfile
    import soxr

    windows: list[np.ndarray] = []
    clips = []
    for path in sorted(path for path in folder.rglob("*") if path.suffix in (".wav", ".ogg", ".flac")):
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
        mono = soxr.resample(samples.mean(axis=1), rate, 16_000)
        own = [mono[first : first + 15_600] for first in range(0, len(mono) - 15_599, 15_360)]
        windows += own
        clips += [(path.parent.name, len(own))] if own else []
    return np.stack(windows).astype(np.float32), clips


def _programs(sample: np.ndarray, has_bfloat16: bool) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    import tensorflow as tf

    from benchmarks.instruction_sets import make_program
    from runner.vggish import frontend, network
    from runner.vggish.arrays import random_weights

    arrays = random_weights(0)
    dtype = tf.bfloat16 if has_bfloat16 else tf.float32
    dense = {name: tf.cast(array, tf.float32 if "/fc2/" in name else dtype) for name, array in arrays.items()}
    maxima = _maxima(arrays, frontend.log_mel(tf.constant(sample), "float32"))
    features = _int8_features(arrays, maxima)

    def int8(windows: Any) -> Any:
        return network.fully_connected(dense, tf.cast(features(frontend.folded_log_mel(windows)), dtype))

    def float8(windows: Any) -> Any:
        x = _convolution(arrays, frontend.log_mel(windows, "float32")[..., None], "conv1", 1)
        for (layer, pool), top in zip(LAYERS, maxima, strict=False):
            tops = np.abs(arrays[f"vggish/{layer}/weights"]).max(axis=(0, 1, 2))
            kernel = _rounded_to_float8(arrays[f"vggish/{layer}/weights"], tops)
            x = network.convolution(
                _rounded_to_float8(x, top), kernel, tf.constant(arrays[f"vggish/{layer}/biases"]), pool=bool(pool)
            )
        return network.fully_connected(
            {name: tf.cast(array, tf.float32) for name, array in dense.items()}, tf.reshape(x, [-1, network.FEATURES])
        )

    def batches(computation: Callable[[Any], Any]) -> Callable[[np.ndarray], np.ndarray]:
        function = tf.function(computation, autograph=False, reduce_retracing=True)
        return lambda rows: np.concatenate(
            [function(tf.constant(rows[i : i + _BATCH])) for i in range(0, len(rows), _BATCH)]
        )

    programs = {"float32, winograd": make_program("float32", "winograd").computation("windows")}
    if has_bfloat16:
        programs["bfloat16"] = make_program("bfloat16", "direct").computation("windows")
    return {name: batches(program) for name, program in (programs | {"int8": int8, "float8, rounded": float8}).items()}


def _convolutions_alone(
    height: int, width: int, inputs: int, outputs: int, has_bfloat16: bool
) -> dict[str, Callable[[], Any]]:
    """Return a 3×3 convolution with its bias and ReLU in each format, on a batch of its own format."""
    import tensorflow as tf

    from runner.vggish import network

    rng = np.random.default_rng(0)
    weights = rng.uniform(-1, 1, (3, 3, inputs, outputs)).astype(np.float32)
    biases = np.zeros(outputs, np.float32)

    def floats(x: Any) -> Any:
        return network.convolution(x, tf.cast(weights, x.dtype), tf.cast(biases, x.dtype), pool=False)

    def int8(x: Any) -> Any:
        return _int8_convolution(x, weights, biases, 1.0, float(inputs))

    def on(computation: Callable[[Any], Any], rows: Any) -> Callable[[], Any]:
        return functools.partial(tf.function(computation, autograph=False), rows)

    rows = tf.constant(rng.uniform(0, 1, (_BATCH, height, width, inputs)), tf.float32)
    as_int8 = tf.bitcast(tf.cast(rows * 255, tf.uint8), tf.quint8)
    formats = {"float32": on(floats, rows), "int8": on(int8, as_int8)}
    return formats | ({"bfloat16": on(floats, tf.cast(rows, tf.bfloat16))} if has_bfloat16 else {})


def _convolution(arrays: dict[str, np.ndarray], x: Any, layer: str, pool: int) -> Any:
    import tensorflow as tf

    from runner.vggish import network

    weights, biases = (tf.constant(arrays[f"vggish/{layer}/{name}"]) for name in ("weights", "biases"))
    return network.convolution(x, weights, biases, pool=bool(pool))


def _maxima(arrays: dict[str, np.ndarray], examples: Any) -> list[float]:
    """Return the largest activations after conv1 and each of ``LAYERS``."""
    x = _convolution(arrays, examples[..., None], "conv1", 1)
    maxima = [float(np.max(x))]
    for layer in LAYERS:
        x = _convolution(arrays, x, *layer)
        maxima.append(float(np.max(x)))
    return maxima


def _rounded_to_float8(values: Any, largest: Any) -> Any:
    """Round to E4M3, scaled so that ``largest`` is its largest number, 448."""
    import tensorflow as tf

    scaled = tf.clip_by_value(values * (448.0 / largest), -448.0, 448.0)
    return tf.cast(tf.cast(scaled, tf.dtypes.experimental.float8_e4m3fn), tf.float32) * (largest / 448.0)


def _int8_convolution(x: Any, weights: np.ndarray, biases: np.ndarray, top: float, out_top: float) -> Any:
    """Convolve quint8 activations up to ``top`` with float32 weights, rounded to a scale a channel; return quint8
    activations up to ``out_top``."""
    import tensorflow as tf

    tops = np.abs(weights).max(axis=(0, 1, 2))
    rounded = np.round(weights / tops * 127).astype(np.int8).view(tf.qint8.as_numpy_dtype)
    return tf.raw_ops.QuantizedConv2DWithBiasAndReluAndRequantize(
        input=x, filter=tf.constant(rounded, tf.qint8), bias=biases, min_input=0.0, max_input=top, min_filter=-tops,
        max_filter=tops, min_freezed_output=0.0, max_freezed_output=out_top, strides=[1] * 4, padding="SAME",
        out_type=tf.quint8,
    )[0]  # fmt: skip


def _int8_features(arrays: dict[str, np.ndarray], maxima: list[float]) -> Callable[[Any], Any]:
    """Return the function from log-mel [n, 96, 64] to features [n, 12288] by INT8 convolutions from conv2 on."""
    import tensorflow as tf

    from runner.vggish import network

    def features(examples: Any) -> Any:
        x = _convolution(arrays, examples[..., None], "conv1", 1) * (255 / maxima[0])
        x = tf.bitcast(tf.cast(tf.minimum(x + 0.5, 255.0), tf.uint8), tf.quint8)
        for (layer, pool), top, out_top in zip(LAYERS, maxima, maxima[1:], strict=False):
            weights, biases = (arrays[f"vggish/{layer}/{name}"] for name in ("weights", "biases"))
            x = _int8_convolution(x, weights, biases, top, out_top)
            if pool:
                x, *_ = tf.raw_ops.QuantizedMaxPool(
                    input=x, min_input=0.0, max_input=out_top, ksize=[1, 2, 2, 1], strides=[1, 2, 2, 1], padding="SAME"
                )
        return tf.reshape(tf.cast(tf.bitcast(x, tf.uint8), tf.float32) * (maxima[-1] / 255), [-1, network.FEATURES])

    return features


if __name__ == "__main__":
    main()
