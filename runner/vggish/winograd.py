"""Winograd convolution F(4×4, 3×3) for VGGish's deep layers, in TensorFlow; for CPUs in float32 only.

A 4×4 tile of outputs takes 36 products a channel pair instead of 144.  Source: Lavin and Gray, "Fast Algorithms for
Convolutional Neural Networks" (2016), section 4.3 and its matrices for F(4×4, 3×3).

Between layers an image stays cut into tiles: rows of channels ordered by position within the tile, then example, then
tile.  So each layer is a gather of rows and three matrix products, without a transposition, and a 2×2 max-pool is one
over the positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

TILE = 4
"""Outputs of a tile along each axis."""

_READ = TILE + 2
"""Inputs of a tile along each axis."""

INPUTS_A_TILE = _READ * _READ
"""Inputs of a tile, and products for each pair of channels."""

_INPUT = np.array(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ],
    np.float64,
)

_FILTER = np.array(
    [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ]
)

_OUTPUT = np.array([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]], np.float64)

_CHANNELS_AT_ONCE = 32

_LAYERS = (
    ("conv3/conv3_1", (24, 16), 1, False),
    ("conv3/conv3_2", (24, 16), 4, True),
    ("conv4/conv4_1", (12, 8), 2, False),
    ("conv4/conv4_2", (12, 8), 4, True),
)
"""Layer, its image, side of the squares that its input rows are ordered by, and whether a max-pool follows."""


def transform_filters(kernel: NDArray[np.float32]) -> NDArray[np.float32]:
    """Transform a 3×3 kernel [3, 3, inputs, outputs] to Winograd's domain: float32 [36, inputs, outputs], by
    float64."""
    inputs, outputs = kernel.shape[2:]
    matrix = np.kron(_FILTER, _FILTER)
    transformed = np.empty((INPUTS_A_TILE, inputs, outputs), np.float32)
    for first in range(0, inputs, _CHANNELS_AT_ONCE):
        channels = kernel[:, :, first : first + _CHANNELS_AT_ONCE].astype(np.float64)
        transformed[:, first : first + _CHANNELS_AT_ONCE] = np.tensordot(matrix, channels.reshape(9, -1, outputs), 1)
    return transformed


def transform_in_place(weights: dict[str, NDArray[np.float32]]) -> None:
    """Transform the deep layers' kernels among weights by checkpoint name."""
    for layer, *_ in _LAYERS:
        name = f"vggish/{layer}/weights"
        weights[name] = transform_filters(weights[name])


def deep_layers(weights: Mapping[str, Any], pooled: Any) -> Any:
    """Run conv3_1 to conv4_2 with their max-pools.

    Args:
        weights: by checkpoint name, with transformed kernels.
        pooled: float32 tensor [batch, 24, 16, 128], output of the max-pool after conv2.

    Returns:
        float32 tensor [batch, 12288], flattened in NHWC order.
    """
    import tensorflow as tf

    batch = tf.shape(pooled)[0]
    rows = tf.reshape(pooled, [-1, pooled.shape[-1]])
    for layer, image, side, pool in _LAYERS:
        kernel, biases = weights[f"vggish/{layer}/weights"], weights[f"vggish/{layer}/biases"]
        rows = convolution(rows, kernel, biases, image, side, pool=pool)
    half, (height, width), outputs = TILE // 2, (image[0] // TILE, image[1] // TILE), rows.shape[1]
    ordered = tf.transpose(tf.reshape(rows, [half, half, batch, height, width, outputs]), [2, 3, 0, 4, 1, 5])
    return tf.reshape(ordered, [-1, half * half * height * width * outputs])


def convolution(rows: Any, kernel: Any, biases: Any, image: tuple[int, int], side: int, *, pool: bool) -> Any:
    """Run a 3×3 convolution with ReLU, and its max-pool if any, from rows of channels to rows of channels.

    Args:
        rows: float32 [batch · height · width, inputs], ordered by position within ``side``×``side`` squares, example,
            square (``side`` 1: plain NHWC).
        kernel: from ``transform_filters``.
        biases: [outputs].
        image: height and width, multiples of a tile.
        side: of the squares that order ``rows``.
        pool: whether a 2×2 max-pool follows (before bias and ReLU, which commute with it and are fewer after).

    Returns:
        float32 [..., outputs], ordered by position within 4×4 squares (2×2 after a max-pool), example, square.
    """
    import tensorflow as tf

    inputs, outputs = kernel.shape[1:]
    batch = tf.shape(rows)[0] // (image[0] * image[1])
    read = tf.gather(tf.pad(rows, [[0, 1], [0, 0]]), _rows_read(image, side, batch))
    domain = tf.matmul(tf.constant(np.kron(_INPUT, _INPUT), tf.float32), tf.reshape(read, [INPUTS_A_TILE, -1]))
    products = tf.matmul(tf.reshape(domain, [INPUTS_A_TILE, -1, inputs]), kernel)
    out = tf.matmul(tf.constant(np.kron(_OUTPUT, _OUTPUT), tf.float32), tf.reshape(products, [INPUTS_A_TILE, -1]))
    if pool:
        out = tf.nn.max_pool2d(tf.reshape(out, [1, TILE, TILE, -1]), ksize=2, strides=2, padding="VALID")
    return tf.nn.relu(tf.nn.bias_add(tf.reshape(out, [-1, outputs]), biases))


def _rows_read(image: tuple[int, int], side: int, batch: Any) -> Any:
    """Return the row of each input of a tile, by position, example and tile: int32 [36 · batch · tiles].

    Inputs outside the image are the row of zeros after the last.
    """
    import tensorflow as tf

    height, width = image
    along = [
        np.arange(_READ)[:, None] + TILE * np.arange(size // TILE) - 1  # [read, tile]: the padded image begins at -1
        for size in image
    ]
    y, x = along[0][:, None, :, None], along[1][None, :, None, :]
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    position = (y % side) * side + x % side
    square = (y // side) * (width // side) + x // side
    squares = (height // side) * (width // side)
    position, square, inside = (
        array.reshape(INPUTS_A_TILE, 1, -1) for array in np.broadcast_arrays(position, square, inside)
    )
    example = tf.range(batch)[None, :, None]
    row = (tf.constant(position, tf.int32) * batch + example) * squares + tf.constant(square, tf.int32)
    return tf.reshape(tf.where(tf.constant(inside), row, batch * (height * width)), [-1])
