"""Where a GPU's time goes in VGGish, stage by stage: ``python -m benchmarks.gpu_stages``.

Every stage is a program of its own, compiled by XLA, on data that is on the GPU: three ways to compute log-mel, each
layer with its pooling, the network, and the whole.  Microseconds an example are medians of interleaved rounds; they add
up to more than the whole, where XLA fuses the ends of stages and keeps their results in its caches.  ``--float8`` adds
convolutions of 8-bit floats (E4M3), to which XLA gives cuDNN's kernels, with their results in float32 and in E4M3.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from runner.vggish.arrays import random_weights
from runner.vggish.constants import EXAMPLE_SAMPLES, FLOP_AN_EXAMPLE, VARIABLE_SHAPES

IMAGES = {"conv2": (48, 32), "conv3_1": (24, 16), "conv3_2": (24, 16), "conv4_1": (12, 8), "conv4_2": (12, 8)}
"""Height and width of each layer's input; conv1, which has one channel, is part of the network only."""

POOLED = ("conv2", "conv3_2", "conv4_2")

MEASURED_S = 0.25


@dataclass
class Stage:
    """A compiled function, its input, and the multiplications and additions of an example."""

    function: Callable[[Any], Any]
    rows: Any
    flop: float | None = None

    def seconds(self) -> float:
        """Measure one call: many in a row, until the GPU is done with them."""
        import tensorflow as tf

        calls, start = 0, time.perf_counter()
        while not calls or time.perf_counter() - start < MEASURED_S:
            for _ in range(20):
                self.function(self.rows)
            tf.test.experimental.sync_devices()
            calls += 20
        return (time.perf_counter() - start) / calls


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", default="float16", choices=("float16", "bfloat16"))
    parser.add_argument("--only", nargs="*", help="stages")
    parser.add_argument("--float8", nargs="*", default=[], choices=list(IMAGES), help="layers")
    options = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    stages = _stages(options.batch, options.precision)
    for layer in options.float8:
        stages |= _float8(layer, options.batch)
    working = {}
    for name, stage in stages.items():
        if options.only and name not in options.only:
            continue
        try:
            stage.seconds()  # compiles
        except Exception as error:
            print(f"{name:34s} failed: {str(error).splitlines()[0][:150]}", flush=True)
        else:
            working[name] = stage
    seconds: dict[str, list[float]] = {name: [] for name in working}
    for _ in range(options.rounds):
        for name, stage in working.items():
            seconds[name].append(stage.seconds())
    print(f"{'':34s} {'µs an example':>14s} {'TFLOP/s':>8s}")
    for name, stage in working.items():
        example = statistics.median(seconds[name]) / options.batch
        rate = f"{stage.flop / example / 1e12:8.0f}" if stage.flop else ""
        print(f"{name:34s} {example * 1e6:14.3f} {rate}")


def _stages(batch: int, precision: str) -> dict[str, Stage]:
    import tensorflow as tf

    from runner.vggish import frontend, network

    dtype = tf.dtypes.as_dtype(precision)
    random = np.random.default_rng(0)
    windows = tf.constant(random.uniform(-0.5, 0.5, (batch, EXAMPLE_SAMPLES)).astype(np.float32))
    weights = network.variables(random_weights(0), dtype, fused=True)
    examples = frontend.log_mel(windows)

    def embed(rows: Any) -> Any:
        return network.fully_connected(weights, network.fused_convolutions(weights, rows, dtype))

    stages = {
        "log-mel, float64 FFT": Stage(_compiled(lambda rows: frontend.log_mel(rows, "float32")), windows),
        "log-mel, float32 FFT": Stage(_compiled(lambda rows: frontend.log_mel(rows, "float32", "float32")), windows),
        "log-mel, products (folded)": Stage(_compiled(frontend.folded_log_mel), windows),
        "conv1": Stage(_compiled(lambda rows: tf.cast(network.fused_conv1(weights, rows), dtype)), examples),
    }
    for layer in IMAGES:
        rows, kernel = (tf.cast(tensor, dtype) for tensor in _layer(layer, batch))
        stages[layer] = Stage(_compiled(_convolution(kernel, pool=layer in POOLED)), rows, _flop(layer))
    for layer, place in (("fc1_1", "fc1/fc1_1"), ("fc1_2", "fc1/fc1_2")):
        kernel = weights[f"vggish/{place}/weights"]
        rows = tf.cast(tf.constant(random.normal(size=(batch, kernel.shape[0])).astype(np.float32)), dtype)
        stages[layer] = Stage(_compiled(_dense(kernel)), rows, 2.0 * float(np.prod(kernel.shape)))
    square = tf.cast(tf.constant(random.normal(size=(8192, 8192)).astype(np.float32)), dtype)
    return stages | {
        "network": Stage(_compiled(embed), examples, FLOP_AN_EXAMPLE),
        "float32 FFT and network": Stage(
            _compiled(lambda rows: embed(frontend.log_mel(rows, "float32", "float32"))), windows, FLOP_AN_EXAMPLE
        ),
        "products and network": Stage(
            _compiled(lambda rows: embed(frontend.folded_log_mel(rows))), windows, FLOP_AN_EXAMPLE
        ),
        "product of 8192 × 8192 matrices": Stage(
            _compiled(lambda rows: tf.matmul(rows, rows)), square, 2.0 * 8192**3 / batch
        ),
    }


def _compiled(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    import tensorflow as tf

    compiled: Callable[[Any], Any] = tf.function(function, jit_compile=True, autograph=False)
    return compiled


def _convolution(kernel: Any, *, pool: bool) -> Callable[[Any], Any]:
    import tensorflow as tf

    from runner.vggish.network import largest

    def run(x: Any) -> Any:
        x = tf.nn.conv2d(x, kernel, strides=1, padding="SAME")
        if pool:
            x = largest(x[:, ::2, ::2], x[:, 1::2, ::2], x[:, ::2, 1::2], x[:, 1::2, 1::2])
        return tf.nn.relu(tf.nn.bias_add(x, tf.zeros(kernel.shape[-1:], x.dtype)))

    return run


def _dense(kernel: Any) -> Callable[[Any], Any]:
    import tensorflow as tf

    return lambda rows: tf.nn.relu(tf.matmul(rows, kernel) + tf.zeros(kernel.shape[-1:], rows.dtype))


def _layer(layer: str, batch: int) -> tuple[Any, Any]:
    """Return random activations and a kernel of a layer, in float32."""
    import tensorflow as tf

    random = np.random.default_rng(1)
    shape = next(shape for name, shape in VARIABLE_SHAPES.items() if name.endswith(f"{layer}/weights"))
    rows = random.normal(size=(batch, *IMAGES[layer], shape[2]))
    kernel = random.normal(size=shape) / np.sqrt(9 * shape[2])
    return tf.constant(rows.astype(np.float32)), tf.constant(kernel.astype(np.float32))


def _flop(layer: str) -> float:
    height, width = IMAGES[layer]
    shape = next(shape for name, shape in VARIABLE_SHAPES.items() if name.endswith(f"{layer}/weights"))
    return 2.0 * height * width * float(np.prod(shape))


def _float8(layer: str, batch: int) -> dict[str, Stage]:
    """Make a layer's convolution of E4M3 with its ReLU, scaled to float32 and to E4M3 again."""
    import tensorflow as tf

    eight = tf.dtypes.experimental.float8_e4m3fn
    rows, kernel = (_compiled(lambda tensor: tf.cast(tensor, eight))(tensor) for tensor in _layer(layer, batch))
    scale = tf.constant(0.5)

    def to_float32(x: Any) -> Any:
        return tf.nn.conv2d(tf.cast(x, tf.float32), tf.cast(kernel, tf.float32), strides=1, padding="SAME")

    def to_eight(x: Any) -> Any:
        return tf.cast(tf.clip_by_value(tf.nn.relu(to_float32(x) * scale), -448.0, 448.0), eight)

    return {
        f"{layer}, E4M3 to float32": Stage(_compiled(to_float32), rows, _flop(layer)),
        f"{layer}, E4M3 to E4M3": Stage(_compiled(to_eight), rows, _flop(layer)),
    }


if __name__ == "__main__":
    main()
