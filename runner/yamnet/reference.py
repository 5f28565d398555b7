"""The parity reference: YAMNet in NumPy float64, written from the release's formulas alone.

It shares nothing with a session's program: log-mel and rounding are those of VGGish's reference, the layers its own.
Source: the AudioSet YAMNet release (``params.py``, ``features.py``, ``yamnet.py``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from runner.vggish import reference as vggish
from runner.vggish.reference import ROUNDING, reference_log_mel

Array = NDArray[np.float32]

Exact = NDArray[np.float64]

VERSION = 1
"""Raise it when the answers change; ``version`` also changes with any character of this file and VGGish's."""

_STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)
"""Of the depthwise convolutions of layers 2 to 14."""


def version() -> str:
    """Return the key of cached answers, which changes with this file and VGGish's reference."""
    try:
        return f"{VERSION} {hashlib.sha256(Path(__file__).read_bytes()).hexdigest()} {vggish.version()}"
    except OSError:  # in an archive
        return f"{VERSION} {vggish.version()}"


def reference_outputs(arrays: Mapping[str, Array], windows: Array, precision: str = "float32") -> Array:
    """Embed and classify windows of waveform, float32 [n, 15600] to float32 [n, 1545].

    Args:
        arrays: float32 weights by the names in ``yamnet.h5``.
        windows: mono 16 kHz in -1..1.
        precision: other than float32: kernels, with their batch normalization folded in, and the inputs of each
            convolution are rounded to it, which shows by how much that alone changes the answers.

    Returns:
        The embedding (1,024 values), then the scores of the classes (521).
    """
    rounded = ROUNDING[precision]
    images = list(reference_log_mel(windows, 0.001)[..., None])
    kernel, bias = _normalized(arrays, "layer1/conv", arrays["layer1/conv/kernel"])
    matrix = rounded(kernel).reshape(9, -1)
    images = [_relu(np.concatenate(_neighborhoods(rounded(image), 2), axis=2) @ matrix + bias) for image in images]
    for number, stride in enumerate(_STRIDES, 2):
        layer = f"layer{number}/depthwise_conv"
        kernel, bias = _normalized(arrays, layer, arrays[f"{layer}/depthwise_kernel"][..., 0])
        taps = rounded(kernel).reshape(9, -1)
        images = [_relu(_depthwise(rounded(image), taps, stride) + bias) for image in images]
        layer = f"layer{number}/pointwise_conv"
        kernel, bias = _normalized(arrays, layer, arrays[f"{layer}/kernel"][0, 0])
        matrix = rounded(kernel)
        images = [_relu(rounded(image) @ matrix + bias) for image in images]
    embeddings = np.stack([image.mean(axis=(0, 1)) for image in images])
    logits = embeddings @ arrays["logits/kernel"].astype(np.float64) + arrays["logits/bias"]
    return np.concatenate([embeddings, 1.0 / (1.0 + np.exp(-logits))], axis=1).astype(np.float32)


def _depthwise(image: Exact, taps: Exact, stride: int) -> Exact:
    """Convolve each channel of [height, width, channels] by its own 3×3 taps [9, channels]."""
    total = np.zeros(())
    for pixels, tap in zip(_neighborhoods(image, stride), taps, strict=True):
        total = total + pixels * tap
    return total


def _normalized(arrays: Mapping[str, Array], layer: str, kernel: Array) -> tuple[Exact, Exact]:
    """Return a kernel [..., channels] and the bias that do what it and its batch normalization do."""
    deviation = np.sqrt(arrays[f"{layer}/bn/moving_variance"].astype(np.float64) + 1e-4)
    bias = arrays[f"{layer}/bn/beta"] - arrays[f"{layer}/bn/moving_mean"] / deviation
    return kernel / deviation, bias


def _neighborhoods(image: Exact, stride: int) -> list[Exact]:
    """Return the nine pixels that each output of a 3×3 convolution sees, each [height, width, channels].

    "same" padding: one zero on each side at stride 1, one at the end at stride 2 (all images are of even size).
    """
    before = 1 if stride == 1 else 0
    height, width, _ = image.shape
    padded = np.pad(image, ((before, 1), (before, 1), (0, 0)))
    return [
        padded[down : down + height : stride, right : right + width : stride] for down in range(3) for right in range(3)
    ]


def _relu(image: Exact) -> Exact:
    return np.maximum(image, 0.0)
