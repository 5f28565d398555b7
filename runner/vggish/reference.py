"""The answers that a device is held to: VGGish in NumPy float64, written from the release's formulas and nothing else.

Nothing is shared with what a session computes with: constants, window, mel filters, framing and layers are this
module's own, so that a fault in one of those is seen and not agreed with.  Source: the AudioSet VGGish release
(``vggish_params.py``, ``mel_features.py``, ``vggish_slim.py``).
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
"""To be raised where the answers change; so does ``version`` whenever a character of this file does."""

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
"""Outputs of a dense layer that are computed at a time: its weights are never in memory as float64 all at once."""


def version() -> str:
    """What kept answers are known by: they are computed anew after any change of this file."""
    try:
        return f"{VERSION} {hashlib.sha256(Path(__file__).read_bytes()).hexdigest()}"
    except OSError:  # in an archive
        return str(VERSION)


def reference_log_mel(windows: Array) -> Exact:
    """Log-mel of windows of waveform, [n, 15600] in -1..1 to float64 [n, 96, 64]; the transform by its definition."""
    offset = np.arange(400)
    window = 0.5 * (1.0 - np.cos(2.0 * np.pi * offset / 400.0))
    angles = 2.0 * np.pi * np.outer(offset, np.arange(257)) / 512.0
    cosines, sines = np.cos(angles), np.sin(angles)
    found = np.empty((len(windows), 96, 64))
    filters = _mel_filters()
    for row, samples in zip(found, windows.astype(np.float64), strict=True):
        frames = np.stack([samples[160 * frame : 160 * frame + 400] for frame in range(96)]) * window
        row[...] = np.log(np.hypot(frames @ cosines, frames @ sines) @ filters + 0.01)
    return found


def _mel_filters() -> Exact:
    """64 triangles of HTK's mel scale from 125 to 7500 Hz over the 257 bins of 16 kHz, bin 0 left out: [257, 64]."""

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


def reference_embeddings(arrays: Mapping[str, Array], windows: Array, precision: str = "float32") -> Array:
    """Embeddings of windows of waveform, float32 [n, 15600] to float32 [n, 128].

    Args:
        arrays: float32 weights by checkpoint name; left as they are.
        windows: mono 16 kHz.
        precision: other than float32: weights and what goes into each layer are rounded to it (but for fc2's weights),
            which shows by how much that alone changes the answers.
    """
    rounded = _ROUNDING[precision]
    images = reference_log_mel(windows)[..., None]
    for layer, pool in _CONVOLUTIONS:
        kernel, biases = arrays[f"vggish/{layer}/weights"], arrays[f"vggish/{layer}/biases"].astype(np.float64)
        matrix = rounded(kernel.astype(np.float64)).reshape(-1, kernel.shape[3])
        images = np.stack([_convolved(rounded(image), matrix, biases, pool) for image in images])
    x = images.reshape(len(images), -1)
    for layer in ("fc1/fc1_1", "fc1/fc1_2"):
        x = np.maximum(_dense(rounded(x), arrays, layer, rounded), 0.0)
    return _dense(rounded(x), arrays, "fc2", _ROUNDING["float32"]).astype(np.float32)


def _convolved(image: Exact, matrix: Exact, biases: Exact, pool: bool) -> Exact:
    """A 3×3 convolution with ReLU, of [height, width, inputs], as one product with every pixel's neighbourhood."""
    height, width, inputs = image.shape
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)))
    shifted = [padded[down : down + height, right : right + width] for down in range(3) for right in range(3)]
    near = np.concatenate(shifted, axis=2).reshape(height * width, 9 * inputs)
    found = np.maximum(near @ matrix + biases, 0.0).reshape(height, width, -1)
    return _pooled(found) if pool else found


def _pooled(image: Exact) -> Exact:
    """The largest of each 2×2 pixels."""
    rows = np.maximum(image[::2], image[1::2])
    return np.maximum(rows[:, ::2], rows[:, 1::2])


def _dense(x: Exact, arrays: Mapping[str, Array], layer: str, rounded: Callable[[Exact], Exact]) -> Exact:
    weights, biases = arrays[f"vggish/{layer}/weights"], arrays[f"vggish/{layer}/biases"]
    found = np.empty((len(x), len(biases)))
    for first in range(0, len(biases), _COLUMNS):
        part = slice(first, first + _COLUMNS)
        found[:, part] = x @ rounded(weights[:, part].astype(np.float64)) + biases[part]
    return found


def _to_bits(bits: int) -> Callable[[Exact], Exact]:
    """Rounds to so many bits behind the leading one, to the even neighbour where two are as near."""
    dropped = 52 - bits

    def rounded(values: Exact) -> Exact:
        found = np.array(values)
        pattern = found.view(np.int64)
        pattern += (1 << dropped - 1) - 1 + ((pattern >> dropped) & 1)
        pattern &= -1 << dropped
        return found

    return rounded


_ROUNDING: Mapping[str, Callable[[Exact], Exact]] = {
    "float32": lambda values: values,
    "tf32": _to_bits(10),
    "float16": _to_bits(10),
    "bfloat16": _to_bits(7),
}
