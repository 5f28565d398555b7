"""YAMNet as a Keras model, layer by layer as the release's documents describe it: what the runner's is compared with.

Keras 3 takes no slash in the name of a layer: ``layer1/conv/bn`` is ``layer1_conv_bn``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

STRIDES_AND_OUTPUTS = [(1, 64), (2, 128), (1, 128), (2, 256), (1, 256), (2, 512), *[(1, 512)] * 5, (2, 1024), (1, 1024)]


def keras_yamnet(arrays: Mapping[str, np.ndarray] | None = None) -> Any:
    """Return a model from log-mel [n, 96, 64] to embedding [n, 1024] and scores [n, 521]; random without ``arrays``."""
    import keras
    from keras import layers

    def normalized(x: Any, convolution: Any) -> Any:
        batch_norm = layers.BatchNormalization(center=True, scale=False, epsilon=1e-4, name=f"{convolution.name}_bn")
        return layers.ReLU()(batch_norm(convolution(x)))

    examples = keras.Input((96, 64))
    x = layers.Reshape((96, 64, 1))(examples)
    options: dict[str, Any] = {"padding": "same", "use_bias": False}
    x = normalized(x, layers.Conv2D(32, 3, strides=2, name="layer1_conv", **options))
    for number, (stride, outputs) in enumerate(STRIDES_AND_OUTPUTS, 2):
        name = f"layer{number}_depthwise_conv"
        x = normalized(x, layers.DepthwiseConv2D(3, strides=stride, name=name, **options))
        x = normalized(x, layers.Conv2D(outputs, 1, name=f"layer{number}_pointwise_conv", **options))
    embedding = layers.GlobalAveragePooling2D()(x)
    scores = layers.Activation("sigmoid")(layers.Dense(521, name="logits")(embedding))
    model = keras.Model(examples, [embedding, scores])
    for layer in model.layers if arrays else ():
        if layer.weights:
            layer.set_weights(variables_of(released_name(layer.name), arrays))
    return model


def released_name(layer: str) -> str:
    """Return a layer's name in the release."""
    number, _, rest = layer.partition("_")
    return f"{number}/{rest.replace('_bn', '/bn')}" if rest else number


def variables_of(layer: str, arrays: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Return a layer's arrays in the order in which Keras has them, by the layer's name in the release."""
    return [array for name, array in arrays.items() if name.rpartition("/")[0] == layer]
