"""YAMNet's network from log-mel to embeddings and scores, in TensorFlow.

Batch normalizations are folded into the convolutions before them.  Source: the AudioSet YAMNet release (``yamnet.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runner.vggish.constants import EXAMPLE_FRAMES, MEL_BANDS
from runner.vggish.network import marked, only_finite
from runner.yamnet.constants import BATCH_NORM_EPSILON, LOGITS, SEPARABLE, convolutions

Array = NDArray[np.float32]


def folded(arrays: Mapping[str, Array]) -> dict[str, NDArray[np.float64]]:
    """Fold each batch normalization into its convolution: kernel / √(variance + ε), bias beta − mean / √(variance + ε).

    Args:
        arrays: float32 weights by the names of ``VARIABLE_SHAPES``.

    Returns:
        ``kernel`` and ``bias`` of each layer (``layer2/depthwise_conv``, ``logits``), computed in float64.
    """
    layers = {f"{LOGITS}/{part}": arrays[f"{LOGITS}/{part}"].astype(np.float64) for part in ("kernel", "bias")}
    for kernel, shape in convolutions():
        layer = kernel.rpartition("/")[0]
        beta, mean, variance = (
            arrays[f"{layer}/bn/{name}"].astype(np.float64) for name in ("beta", "moving_mean", "moving_variance")
        )
        scale = 1.0 / np.sqrt(variance + BATCH_NORM_EPSILON)
        layers[f"{layer}/kernel"] = arrays[kernel] * (scale[:, None] if shape[3] == 1 else scale)
        layers[f"{layer}/bias"] = beta - mean * scale
    return layers


def dtype_of(precision: str) -> Any:
    """Return the TensorFlow type of the convolutions: float32 for ``float32`` and ``tf32``, else the precision's."""
    import tensorflow as tf

    return tf.dtypes.as_dtype("float32" if precision == "tf32" else precision)


def variables(arrays: Mapping[str, Array], precision: str) -> dict[str, Any]:
    """Make a ``tf.Variable`` of each folded kernel and bias in a precision; the dense layer's are float32 in all."""
    import tensorflow as tf

    dtype = dtype_of(precision)
    return {
        name: tf.Variable(tf.constant(values, tf.float32 if name.startswith(LOGITS) else dtype), trainable=False)
        for name, values in folded(arrays).items()
    }


def embed(weights: Mapping[str, Any], examples: Any, dtype: Any, sane: Any = None) -> Any:
    """Run the forward pass.

    Args:
        weights: from ``variables``.
        examples: float32 tensor [n, 96, 64] of log-mel.
        dtype: of the convolutions; the mean over their last image and the dense layer are float32.
        sane: bool tensor [n], False for rows that are to be NaN; None: none.

    Returns:
        float32 tensor [n, 1545]: the embedding (1,024), then the scores of the classes (521, in 0..1).
    """
    import tensorflow as tf

    embedding = features(weights, examples, dtype)
    if sane is not None:
        embedding = marked(embedding, sane)
    logits = tf.nn.bias_add(tf.matmul(embedding, weights[f"{LOGITS}/kernel"]), weights[f"{LOGITS}/bias"])
    return only_finite(tf.concat([embedding, tf.sigmoid(logits)], axis=1), embedding)


def features(weights: Mapping[str, Any], examples: Any, dtype: Any) -> Any:
    """Run the convolutions and take the mean of their last image: float32 [n, 96, 64] to float32 [n, 1024]."""
    import tensorflow as tf

    x = tf.cast(tf.reshape(examples, [-1, EXAMPLE_FRAMES, MEL_BANDS, 1]), dtype)
    x = _activated(tf.nn.conv2d(x, weights["layer1/conv/kernel"], 2, "SAME"), weights["layer1/conv/bias"])
    for number, (stride, _) in enumerate(SEPARABLE, 2):
        layer = f"layer{number}/depthwise_conv"
        x = tf.nn.depthwise_conv2d(x, weights[f"{layer}/kernel"], [1, stride, stride, 1], "SAME")
        x = _activated(x, weights[f"{layer}/bias"])
        layer = f"layer{number}/pointwise_conv"
        x = _activated(tf.nn.conv2d(x, weights[f"{layer}/kernel"], 1, "SAME"), weights[f"{layer}/bias"])
    return tf.reduce_mean(tf.cast(x, tf.float32), axis=[1, 2])


def _activated(x: Any, bias: Any) -> Any:
    import tensorflow as tf

    return tf.nn.relu(tf.nn.bias_add(x, bias))
