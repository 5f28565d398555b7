"""VGGish's network as TensorFlow operations: examples in, embeddings out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runner.vggish.constants import EXAMPLE_FRAMES, MEL_BANDS

_CONVOLUTIONS = (
    ("conv1", True),
    ("conv2", True),
    ("conv3/conv3_1", False),
    ("conv3/conv3_2", True),
    ("conv4/conv4_1", False),
    ("conv4/conv4_2", True),
)
"""Layer, and whether a 2×2 max-pool follows."""


def variables(arrays: dict[str, Any], dtype: Any) -> dict[str, Any]:
    """One ``tf.Variable`` per checkpoint array, in ``dtype``; fc2 stays float32, where half precision costs most.

    ``arrays`` is emptied on the way, so that the weights are not in memory twice.
    """
    import tensorflow as tf

    found = {}
    for name in list(arrays):
        array = tf.cast(arrays.pop(name), tf.float32 if "/fc2/" in name else dtype)
        found[name] = tf.Variable(array, trainable=False, name=name)
    return found


def embed(weights: Mapping[str, Any], examples: Any, dtype: Any) -> Any:
    """The forward pass.

    Args:
        weights: variables by checkpoint name, as ``variables`` makes them.
        examples: float32 tensor [batch, 96, 64] of log-mel.
        dtype: in which to convolve and multiply.

    Returns:
        float32 tensor [batch, 128]; no ReLU after fc2 (the release dropped it in 2020).
    """
    import tensorflow as tf

    x = tf.cast(tf.reshape(examples, [-1, EXAMPLE_FRAMES, MEL_BANDS, 1]), dtype)
    for layer, pool in _CONVOLUTIONS:
        x = tf.nn.conv2d(x, weights[f"vggish/{layer}/weights"], strides=1, padding="SAME")
        x = tf.nn.relu(tf.nn.bias_add(x, weights[f"vggish/{layer}/biases"]))
        if pool:
            x = tf.nn.max_pool2d(x, ksize=2, strides=2, padding="SAME")
    x = tf.reshape(x, [-1, weights["vggish/fc1/fc1_1/weights"].shape[0]])
    for layer in ("fc1/fc1_1", "fc1/fc1_2"):
        x = tf.matmul(x, weights[f"vggish/{layer}/weights"])
        x = tf.nn.relu(tf.nn.bias_add(x, weights[f"vggish/{layer}/biases"]))
    x = tf.matmul(tf.cast(x, tf.float32), weights["vggish/fc2/weights"])
    return tf.nn.bias_add(x, weights["vggish/fc2/biases"])
