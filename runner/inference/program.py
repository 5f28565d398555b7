"""The program that a device runs: windows of waveform, or log-mel examples, to embeddings, in TensorFlow."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from runner.contract.result import Effect
from runner.core.samples import INT16_SCALE
from runner.devices.detection import DeviceType
from runner.vggish import frontend, network, winograd
from runner.vggish.constants import EXAMPLE_FRAMES, EXAMPLE_SAMPLES, MEL_BANDS

if TYPE_CHECKING:
    from runner.inference.precision import PrecisionChoice

Array = NDArray[np.float32]

CPU_CHUNK = 32

CPU_CHUNK_COARSE = 64
"""Examples that a CPU convolves at a time, in float32 and in coarser precisions (measured: fewer waste time between
operations, more fall out of the caches)."""

MIN_DENSE_ROWS_CPU = 128
"""For fewer rows oneDNN and Eigen take other products in the dense layers, whose sums differ by 3e-7: padded to these,
the bits are the same at every batch size."""

ROW_SHAPES: Mapping[str, tuple[int, ...]] = {
    "float32": (EXAMPLE_SAMPLES,),
    "int16": (EXAMPLE_SAMPLES,),
    "examples": (EXAMPLE_FRAMES, MEL_BANDS),
}
"""Shape of one row of each kind of input."""

_XLA = Effect("xla", "one program on the GPU")

_NO_XLA = Effect("graph", "XLA is slower than TensorFlow's own kernels on a CPU, and absent on Metal")


class Program:
    """VGGish on one device: scaling, framing, log-mel and network as one ``tf.function`` for each kind of input.

    Inputs are ``float32`` and ``int16`` windows [n, 15600], and ``examples``, log-mel float32 [n, 96, 64]; each gives
    float32 [n, 128].  On CUDA, XLA compiles the functions.  A row that holds NaN, infinity or numbers of another scale
    has an embedding of NaN.

    Args:
        weights: float32 arrays by checkpoint name; emptied, so that they are not in memory twice.
        device: kind of device; TensorFlow must already be told which devices it may see.
        precision: number format of the network.
        conv: algorithm of the deep convolutions, ``direct`` or (on a CPU in float32) ``winograd``.
        ordinal: index among the GPUs that TensorFlow may see.

    Attributes:
        device_name: TensorFlow's name of the device.
        weights: the network's variables by checkpoint name, in the program's precision.
        compiler: what makes the kernels (xla or graph), and why.
    """

    def __init__(
        self,
        weights: dict[str, Array],
        device: DeviceType,
        precision: PrecisionChoice,
        conv: str = "direct",
        ordinal: int = 0,
    ) -> None:
        import tensorflow as tf

        tf.config.experimental.enable_tensor_float_32_execution(precision.effective == "tf32")
        self.device_type = device
        self.device_name = "/CPU:0" if device is DeviceType.CPU else f"/GPU:{ordinal}"
        self.compiler = _XLA if device is DeviceType.GPU else _NO_XLA
        self._dtype = tf.dtypes.as_dtype(precision.compute_dtype)
        self._to_log_mel = _log_mel_function(device, precision.effective)
        self._deep_layers = winograd.deep_layers if conv == "winograd" else network.deep_layers
        if conv == "winograd":
            winograd.transform_in_place(weights)
        with tf.device(self.device_name):
            self.weights: Mapping[str, Any] = network.variables(weights, self._dtype, fused=device is DeviceType.GPU)
        self._functions: dict[str, Any] = {}
        self._lock = threading.Lock()

    @property
    def is_compiled_by_xla(self) -> bool:
        """Whether XLA compiles the functions: once for each shape."""
        return self.compiler.effective == "xla"

    def function(self, kind: str) -> Any:
        """Return the ``tf.function`` for an input, from any thread; it is traced (and compiled) when first called."""
        import tensorflow as tf

        with self._lock:
            if kind not in self._functions:
                rows = tf.TensorSpec([None, *ROW_SHAPES[kind]], tf.int16 if kind == "int16" else tf.float32)
                self._functions[kind] = tf.function(
                    self._embed_examples if kind == "examples" else self._embed_windows,
                    input_signature=[rows],
                    jit_compile=self.is_compiled_by_xla or None,
                    autograph=False,
                )
            return self._functions[kind]

    def leave_xla(self, reason: str) -> None:
        """Use TensorFlow's own kernels from now on, because of ``reason``."""
        with self._lock:
            self.compiler = Effect("graph", reason)
            self._functions.clear()

    def log_mel(self, windows: Any) -> Any:
        """Compute the log-mel of windows: tensor [n, 15600] to float32 tensor [n, 96, 64]."""
        import tensorflow as tf

        return self._to_log_mel(tf.cast(windows, tf.float32) * INT16_SCALE if windows.dtype == tf.int16 else windows)

    def _embed_windows(self, windows: Any) -> Any:
        return self._embed(windows, self._features_of_windows)

    def _embed_examples(self, examples: Any) -> Any:
        return self._embed(examples, self._features_of_examples)

    def _embed(self, rows: Any, to_features: Callable[[Any], Any]) -> Any:
        """Embed rows; on a CPU the convolutions run by small chunks, which stay in its caches.

        The dense layers, which read 200 MB of weights, run over the whole batch.
        """
        import tensorflow as tf

        if self.device_type is not DeviceType.CPU:
            features = to_features(rows)
            return network.only_finite(network.fully_connected(self.weights, features), features)
        chunk = CPU_CHUNK if self._dtype == tf.float32 else CPU_CHUNK_COARSE
        features = network.in_chunks(to_features, rows, chunk, network.FEATURES, self._dtype)
        count = tf.shape(features)[0]
        padded = tf.pad(features, [[0, tf.maximum(MIN_DENSE_ROWS_CPU - count, 0)], [0, 0]])
        return network.only_finite(network.fully_connected(self.weights, padded)[:count], features)

    def _features_of_windows(self, windows: Any) -> Any:
        import tensorflow as tf

        features = self._features_of_examples(self.log_mel(windows))
        return features if windows.dtype == tf.int16 else network.marked(features, frontend.are_samples(windows))

    def _features_of_examples(self, examples: Any) -> Any:
        if self.is_compiled_by_xla:
            features = network.fused_convolutions(self.weights, examples, self._dtype)
        else:
            features = self._deep_layers(self.weights, network.first_layers(self.weights, examples, self._dtype))
        return network.marked(features, frontend.are_log_mel(examples))


def _log_mel_function(device: DeviceType, precision: str) -> Callable[[Any], Any]:
    """Return an exact front end for float32; for coarser precisions the fastest whose error is far below theirs."""
    if precision == "tf32":  # the product with the mel filters must not be a TF32 one
        return lambda windows: frontend.log_mel(windows, "float64", "float32")
    if precision == "float32":
        return lambda windows: frontend.log_mel(windows, "float32")
    if device is DeviceType.GPU:
        return lambda windows: frontend.log_mel(windows, "float32", "float32")
    return frontend.folded_log_mel
