"""VGGish's network from examples to embeddings, in TensorFlow."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from runner.vggish.arrays import aligned
from runner.vggish.constants import EXAMPLE_FRAMES, MEL_BANDS

if TYPE_CHECKING:
    from runner.vggish.arrays import Array

_FIRST = (("conv1", True), ("conv2", True))

_DEEP = (
    ("conv3/conv3_1", False),
    ("conv3/conv3_2", True),
    ("conv4/conv4_1", False),
    ("conv4/conv4_2", True),
)
"""Layer, and whether a 2×2 max-pool follows."""

FEATURES = 12288
"""Width of the flattened convolutions."""

_HIDDEN_LAYERS = {"pool4": 0, "fc1": 1, "fc2": 2, "embedding": 2}
"""Hidden dense layers up to each layer that a run can write."""

_FLOAT32_LAYERS = ("/conv1/", "/fc2/")
"""Layers with float32 weights in all precisions: fc2, where coarser ones cost most, and (``fused``) conv1."""


def variables(arrays: dict[str, Array], dtype: Any, *, fused: bool = False) -> dict[str, Any]:
    """Make a ``tf.Variable`` of ``dtype`` of each checkpoint array, except of ``_FLOAT32_LAYERS``.

    ``arrays`` is emptied, and on a CPU in float32 the variables use its memory, so that the weights are not in memory
    twice.
    """
    import tensorflow as tf

    tensors = {}
    for name in list(arrays):
        tensor = tf.experimental.dlpack.from_dlpack(aligned(arrays.pop(name)).__dlpack__())
        exact = any(layer in name for layer in _FLOAT32_LAYERS[0 if fused else 1 :])
        tensor = tf.cast(tensor, tf.float32 if exact else dtype)
        tensors[name] = tf.Variable(tensor, trainable=False, name=name)
    return tensors


def embed(weights: Mapping[str, Any], examples: Any, dtype: Any, sane: Any = None) -> Any:
    """Run the forward pass.

    Args:
        weights: variables by checkpoint name, from ``variables``.
        examples: float32 tensor [batch, 96, 64] of log-mel.
        dtype: of convolutions and products.
        sane: bool tensor [batch], False for rows whose embeddings are to be NaN; None: none.

    Returns:
        float32 tensor [batch, 128]; no ReLU after fc2 (the release dropped it in 2020).
    """
    features = deep_layers(weights, first_layers(weights, examples, dtype))
    if sane is not None:
        features = marked(features, sane)
    return only_finite(fully_connected(weights, features), features)


def marked(features: Any, sane: Any) -> Any:
    """Set the rows of features [batch, 12288] to NaN that are not ``sane``, bool [batch]; the others keep their
    bits."""
    import tensorflow as tf

    return tf.where(sane[:, tf.newaxis], features, tf.constant(float("nan"), features.dtype))


def only_finite(embeddings: Any, features: Any) -> Any:
    """Set the rows of embeddings [batch, 128] to NaN whose features are not all finite; the others keep their bits.

    A CPU's ReLU and max-pool turn NaN into numbers, so the row would look like any other embedding.
    """
    import tensorflow as tf

    finite = tf.reduce_all(tf.math.is_finite(features), axis=1, keepdims=True)
    return tf.where(finite, embeddings, float("nan"))


def fused_convolutions(weights: Mapping[str, Any], examples: Any, dtype: Any) -> Any:
    """Run all convolutions, in the form that XLA compiles to the fewest and fastest kernels on a GPU.

    conv1 has one input channel, so that a convolution kernel spends its time on memory: written as sums of shifted
    images, XLA fuses it, its max-pool, bias and ReLU into one kernel in float32 that writes only the pooled image.
    In the other layers the max-pool comes before bias and ReLU, which commute with it.

    Args:
        weights: from ``variables(fused=True)``.
        examples: float32 tensor [batch, 96, 64] of log-mel.
        dtype: of the convolutions from conv2 on.

    Returns:
        Tensor [batch, 12288] of ``dtype``.
    """
    import tensorflow as tf

    x = tf.cast(fused_conv1(weights, examples), dtype)
    for layer, pool in (_FIRST[1], *_DEEP):
        x = tf.nn.conv2d(x, weights[f"vggish/{layer}/weights"], strides=1, padding="SAME")
        if pool:
            x = largest(x[:, ::2, ::2], x[:, 1::2, ::2], x[:, ::2, 1::2], x[:, 1::2, 1::2])
        x = tf.nn.relu(tf.nn.bias_add(x, weights[f"vggish/{layer}/biases"]))
    return tf.reshape(x, [-1, FEATURES])


def fused_conv1(weights: Mapping[str, Any], examples: Any) -> Any:
    """Run conv1 and its max-pool: float32 [batch, 96, 64] to float32 [batch, 48, 32, 64]."""
    import tensorflow as tf

    kernel = tf.cast(weights["vggish/conv1/weights"], tf.float32)
    biases = tf.cast(weights["vggish/conv1/biases"], tf.float32)
    padded = tf.pad(examples, [[0, 0], [1, 1], [1, 1]])
    height, width = EXAMPLE_FRAMES - 1, MEL_BANDS - 1
    shifted = [[padded[:, i : i + height : 2, j : j + width : 2, None] for j in range(4)] for i in range(4)]
    taps = [(i, j) for i in range(3) for j in range(3)]
    sums = [
        sum(shifted[down + i][right + j] * kernel[i, j, 0] for i, j in taps) for down in range(2) for right in range(2)
    ]
    return tf.nn.relu(largest(*sums) + biases)


def largest(*tensors: Any) -> Any:
    """Return the elementwise maximum of four tensors of one shape and type: a max-pool without a window."""
    import tensorflow as tf

    first, second, third, fourth = tensors
    return tf.maximum(tf.maximum(first, second), tf.maximum(third, fourth))


def first_layers(weights: Mapping[str, Any], examples: Any, dtype: Any) -> Any:
    """Run conv1 and conv2 with their max-pools: float32 [batch, 96, 64] to ``dtype`` [batch, 24, 16, 128]."""
    import tensorflow as tf

    x = tf.cast(tf.reshape(examples, [-1, EXAMPLE_FRAMES, MEL_BANDS, 1]), dtype)
    return _convolutions(weights, x, _FIRST)


def deep_layers(weights: Mapping[str, Any], pooled: Any) -> Any:
    """Run conv3_1 to conv4_2 with their max-pools: [batch, 24, 16, 128] to [batch, 12288], flattened in NHWC order."""
    import tensorflow as tf

    x = _convolutions(weights, pooled, _DEEP)
    return tf.reshape(x, [-1, FEATURES])


def _convolutions(weights: Mapping[str, Any], x: Any, layers: Sequence[tuple[str, bool]]) -> Any:
    for layer, pool in layers:
        x = convolution(x, weights[f"vggish/{layer}/weights"], weights[f"vggish/{layer}/biases"], pool=pool)
    return x


def convolution(x: Any, kernel: Any, biases: Any, *, pool: bool) -> Any:
    """Run a 3×3 convolution with ReLU, and its max-pool if any: [batch, height, width, inputs] to [..., outputs]."""
    import tensorflow as tf

    kernel, biases = tf.cast(kernel, x.dtype), tf.cast(biases, x.dtype)
    x = tf.nn.relu(tf.nn.bias_add(tf.nn.conv2d(x, kernel, strides=1, padding="SAME"), biases))
    return tf.nn.max_pool2d(x, ksize=2, strides=2, padding="SAME") if pool else x


def fully_connected(weights: Mapping[str, Any], features: Any, last: str = "embedding") -> Any:
    """Run fc1_1, fc1_2 and fc2, [batch, 12288] to float32 [batch, 128]; or as far as ``last``, a layer of
    ``spec.LAYER_WIDTHS``."""
    import tensorflow as tf

    x = features
    for layer in ("fc1/fc1_1", "fc1/fc1_2")[: _HIDDEN_LAYERS[last]]:
        x = tf.matmul(x, weights[f"vggish/{layer}/weights"])
        x = tf.nn.relu(tf.nn.bias_add(x, weights[f"vggish/{layer}/biases"]))
    if last != "embedding":
        return tf.cast(x, tf.float32)
    x = tf.matmul(tf.cast(x, tf.float32), weights["vggish/fc2/weights"])
    return tf.nn.bias_add(x, weights["vggish/fc2/biases"])


def in_chunks(function: Callable[[Any], Any], rows: Any, chunk: int, width: int, dtype: Any) -> Any:
    """Map ``function`` over the rows, about ``chunk`` at a time, so that its intermediate results stay small.

    The chunks are of nearly equal length, and none has one row alone if there are two: for one row TensorFlow uses
    other kernels, whose sums differ.

    Args:
        function: [n, ...] to ``dtype`` [n, width], row by row.
        rows: tensor [batch, ...].
        chunk: the most rows at a time, at least 3.
        width: of a row of the result.
        dtype: of the result.

    Returns:
        Tensor [batch, width].
    """
    import tensorflow as tf

    count = tf.shape(rows)[0]
    chunks = tf.maximum((count + chunk - 1) // chunk, 1)

    def body(number: Any, results: Any) -> tuple[Any, Any]:
        start, end = number * count // chunks, (number + 1) * count // chunks
        return number + 1, results.write(number, function(rows[start:end]))

    results = tf.TensorArray(dtype, size=chunks, infer_shape=False, element_shape=[None, width])
    _, results = tf.while_loop(lambda number, _: number < chunks, body, (0, results), parallel_iterations=1)
    return results.concat()
