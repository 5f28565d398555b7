"""VGGish's program: scaling, framing, log-mel and network."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from runner.core.samples import INT16_SCALE
from runner.devices.detection import DeviceType
from runner.models.program import Program
from runner.vggish import frontend, network, winograd
from runner.vggish.constants import EXAMPLE_FRAMES, MEL_BANDS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from runner.contract.result import Decision
    from runner.core.model_spec import ModelSpec
    from runner.models.base import Target

Array = NDArray[np.float32]

CPU_CHUNK = 32

CPU_CHUNK_COARSE = 64
"""Examples that a CPU convolves at a time, in float32 and in coarser precisions (measured: fewer waste time between
operations, more fall out of the caches)."""

MIN_DENSE_ROWS_CPU = 128
"""For fewer rows oneDNN and Eigen take other products in the dense layers, whose sums differ by 3e-7: padded to these,
the bits are the same at every batch size."""


class VGGishProgram(Program):
    """VGGish on one device.

    A further kind of input is ``examples``, log-mel float32 [n, 96, 64].

    Args:
        spec: VGGish's.
        weights: float32 arrays by checkpoint name; emptied, so that they are not in memory twice.
        target: the device and the number format of the network.
        algorithm: of the deep convolutions: ``direct`` or (on a CPU in float32) ``winograd``; direct when None.
    """

    def __init__(
        self, spec: ModelSpec, weights: dict[str, Array], target: Target, algorithm: Decision | None = None
    ) -> None:
        import tensorflow as tf

        super().__init__(spec, target, algorithm)
        self._layer = spec.outputs[0].name
        self._dtype = tf.dtypes.as_dtype("float32" if target.precision == "tf32" else target.precision)
        self._to_log_mel = _log_mel_function(target.device, target.precision)
        is_winograd = algorithm is not None and algorithm.effective == "winograd"
        self._deep_layers = winograd.deep_layers if is_winograd else network.deep_layers
        if is_winograd:
            winograd.transform_in_place(weights)
        with tf.device(self.device_name):
            self.weights = network.variables(weights, self._dtype, fused=target.device is DeviceType.GPU)

    @property
    def row_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of one row of each kind of input."""
        return {**super().row_shapes, "examples": (EXAMPLE_FRAMES, MEL_BANDS)}

    def log_mel(self, windows: Any) -> Any:
        """Compute the log-mel of windows: tensor [n, 15600] to float32 tensor [n, 96, 64]."""
        import tensorflow as tf

        return self._to_log_mel(tf.cast(windows, tf.float32) * INT16_SCALE if windows.dtype == tf.int16 else windows)

    def computation(self, kind: str) -> Callable[[Any], Any]:
        """Return the function of tensors for a kind of input."""
        to_features = self._features_of_examples if kind == "examples" else self._features_of_windows
        convolve = self._fused if self.is_compiled_by_xla else self._plain
        embed = self._embed_in_chunks if self.device_type is DeviceType.CPU else self._embed_at_once
        return lambda rows: embed(rows, lambda some: to_features(some, convolve))

    def as_on_cpu(self, windows: Any) -> Any:
        """Embed windows in the form that is fast on a CPU, whatever the program's device: for the export."""
        return self._embed_in_chunks(windows, lambda rows: self._features_of_windows(rows, self._plain))

    def as_by_xla(self, windows: Any) -> Any:
        """Embed windows in the form that XLA compiles for a GPU, whatever the program's device: for the export."""
        return self._embed_at_once(windows, lambda rows: self._features_of_windows(rows, self._fused))

    def _embed_at_once(self, rows: Any, to_features: Callable[[Any], Any]) -> Any:
        features = to_features(rows)
        return network.only_finite(network.fully_connected(self.weights, features, self._layer), features)

    def _embed_in_chunks(self, rows: Any, to_features: Callable[[Any], Any]) -> Any:
        """Embed rows on a CPU: the convolutions run by small chunks, which stay in its caches.

        The dense layers, which read 200 MB of weights, run over the whole batch.
        """
        import tensorflow as tf

        chunk = CPU_CHUNK if self._dtype == tf.float32 else CPU_CHUNK_COARSE
        features = network.in_chunks(to_features, rows, chunk, network.FEATURES, self._dtype)
        count = tf.shape(features)[0]
        padded = tf.pad(features, [[0, tf.maximum(MIN_DENSE_ROWS_CPU - count, 0)], [0, 0]])
        return network.only_finite(network.fully_connected(self.weights, padded, self._layer)[:count], features)

    def _features_of_windows(self, windows: Any, convolve: Callable[[Any], Any]) -> Any:
        import tensorflow as tf

        features = self._features_of_examples(self.log_mel(windows), convolve)
        return features if windows.dtype == tf.int16 else network.marked(features, frontend.are_samples(windows))

    def _features_of_examples(self, examples: Any, convolve: Callable[[Any], Any]) -> Any:
        return network.marked(convolve(examples), frontend.are_log_mel(examples))

    def _fused(self, examples: Any) -> Any:
        return network.fused_convolutions(self.weights, examples, self._dtype)

    def _plain(self, examples: Any) -> Any:
        return self._deep_layers(self.weights, network.first_layers(self.weights, examples, self._dtype))


def _log_mel_function(device: DeviceType, precision: str) -> Callable[[Any], Any]:
    """Return an exact front end for float32; for coarser precisions the fastest whose error is far below theirs."""
    if precision == "tf32":  # the product with the mel filters must not be a TF32 one
        return lambda windows: frontend.log_mel(windows, "float64", "float32")
    if precision == "float32":
        return lambda windows: frontend.log_mel(windows, "float32")
    if device is DeviceType.GPU:
        return lambda windows: frontend.log_mel(windows, "float32", "float32")
    return frontend.folded_log_mel
