"""The parity reference: VGGish in NumPy float64, written from the release's formulas alone.

It shares nothing with a session's program: constants, window, mel filters, framing and layers are its own, so that a
fault in one of those shows.  Source: the AudioSet VGGish release (``vggish_params.py``, ``mel_features.py``,
``vggish_slim.py``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

Exact = NDArray[np.float64]

VERSION = 2
"""Raise it when the answers change; ``version`` also changes with any character of this file."""

_CONVOLUTIONS = (
    ("conv1", True),
    ("conv2", True),
    ("conv3/conv3_1", False),
    ("conv3/conv3_2", True),
    ("conv4/conv4_1", False),
    ("conv4/conv4_2", True),
)
"""Layer, and whether a 2×2 max-pool follows."""

_COLUMNS = 512
"""Outputs of a dense layer that are computed at a time, so that its weights are not in memory as float64 all at
once."""


def version() -> str:
    """Return the key of cached answers, which changes with this file."""
    try:
        return f"{VERSION} {hashlib.sha256(Path(__file__).read_bytes()).hexdigest()}"
    except OSError:  # in an archive
        return str(VERSION)


def reference_log_mel(windows: Array, offset: float = 0.01) -> Exact:
    """Compute the log-mel of windows, [n, 15600] in -1..1 to float64 [n, 96, 64], with the transform by its definition.

    Args:
        windows: mono 16 kHz.
        offset: added before the logarithm; the default is VGGish's.
    """
    position = np.arange(400)
    window = 0.5 * (1.0 - np.cos(2.0 * np.pi * position / 400.0))
    angles = 2.0 * np.pi * np.outer(position, np.arange(257)) / 512.0
    cosines, sines = np.cos(angles), np.sin(angles)
    log_mel = np.empty((len(windows), 96, 64))
    filters = _mel_filters()
    for row, samples in zip(log_mel, windows.astype(np.float64), strict=True):
        frames = np.stack([samples[160 * frame : 160 * frame + 400] for frame in range(96)]) * window
        row[...] = np.log(np.hypot(frames @ cosines, frames @ sines) @ filters + offset)
    return log_mel


def _mel_filters() -> Exact:
    """Return 64 triangles of HTK's mel scale from 125 to 7500 Hz over the 257 bins of 16 kHz, without bin 0: [257,
    64]."""

    def mel(hertz: float) -> float:
        return 1127.0 * float(np.log(1.0 + hertz / 700.0))

    lowest, highest = mel(125.0), mel(7500.0)
    step = (highest - lowest) / 65.0
    filters = np.zeros((257, 64))
    for number in range(1, 257):
        at = (mel(number * 31.25) - lowest) / step  # in bands: band b rises from b to b + 1 and falls to b + 2
        for band in range(64):
            filters[number, band] = max(0.0, min(at - band, band + 2.0 - at))
    return filters


def reference_embeddings(
    arrays: Mapping[str, Array], windows: Array, precision: str = "float32", last: str = "embedding"
) -> Array:
    """Embed windows of waveform, float32 [n, 15600] to float32 [n, 128].

    Args:
        arrays: float32 weights by checkpoint name.
        windows: mono 16 kHz.
        precision: other than float32: weights (except fc2's) and the inputs of each layer are rounded to it, which
            shows by how much that alone changes the answers.
        last: the layer to return: embedding, fc2 or fc1 (the hidden dense layers, [n, 4096]) or pool4 ([n, 12288]).
    """
    rounded = ROUNDING[precision]
    images = reference_log_mel(windows)[..., None]
    for layer, pool in _CONVOLUTIONS:
        kernel, biases = arrays[f"vggish/{layer}/weights"], arrays[f"vggish/{layer}/biases"].astype(np.float64)
        matrix = rounded(kernel.astype(np.float64)).reshape(-1, kernel.shape[3])
        images = np.stack([_convolved(rounded(image), matrix, biases, pool) for image in images])
    x = images.reshape(len(images), -1)
    for name, layer in (("pool4", "fc1/fc1_1"), ("fc1", "fc1/fc1_2")):
        if name == last:
            return x.astype(np.float32)
        x = np.maximum(_dense(rounded(x), arrays, layer, rounded), 0.0)
    if last == "fc2":
        return x.astype(np.float32)
    return _dense(rounded(x), arrays, "fc2", ROUNDING["float32"]).astype(np.float32)


def _convolved(image: Exact, matrix: Exact, biases: Exact, pool: bool) -> Exact:
    """Convolve [height, width, inputs] by 3×3, with ReLU, as one product with every pixel's neighborhood."""
    height, width, inputs = image.shape
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)))
    shifted = [padded[down : down + height, right : right + width] for down in range(3) for right in range(3)]
    neighborhoods = np.concatenate(shifted, axis=2).reshape(height * width, 9 * inputs)
    convolved = np.maximum(neighborhoods @ matrix + biases, 0.0).reshape(height, width, -1)
    return _pooled(convolved) if pool else convolved


def _pooled(image: Exact) -> Exact:
    """Return the largest of each 2×2 pixels."""
    rows = np.maximum(image[::2], image[1::2])
    return np.maximum(rows[:, ::2], rows[:, 1::2])


def _dense(x: Exact, arrays: Mapping[str, Array], layer: str, rounded: Callable[[Exact], Exact]) -> Exact:
    weights, biases = arrays[f"vggish/{layer}/weights"], arrays[f"vggish/{layer}/biases"]
    products = np.empty((len(x), len(biases)))
    for first in range(0, len(biases), _COLUMNS):
        columns = slice(first, first + _COLUMNS)
        products[:, columns] = x @ rounded(weights[:, columns].astype(np.float64)) + biases[columns]
    return products


def _rounding(bits: int) -> Callable[[Exact], Exact]:
    """Return a function that rounds to ``bits`` bits after the leading one, ties to even."""
    dropped = 52 - bits

    def rounded(values: Exact) -> Exact:
        copy = np.array(values)
        pattern = copy.view(np.int64)
        pattern += (1 << dropped - 1) - 1 + ((pattern >> dropped) & 1)
        pattern &= -1 << dropped
        return copy

    return rounded


ROUNDING: Mapping[str, Callable[[Exact], Exact]] = {
    "float32": lambda values: values,
    "tf32": _rounding(10),
    "float16": _rounding(10),
    "bfloat16": _rounding(7),
}
"""By precision: a function that rounds float64 values to it."""
