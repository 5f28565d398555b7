"""YAMNet's constants, in one place (source: the AudioSet YAMNet release, ``params.py`` and ``yamnet.py``).

Rate, frames, mel bands and the window of 96 frames are VGGish's (``runner.vggish.constants``).
"""

from __future__ import annotations

HOP_SAMPLES = 7680
"""Half of a window's 96 frames: 0.48 s."""

LOG_OFFSET = 0.001
"""log-mel = ln(mel + LOG_OFFSET)."""

FILTERS = 32
"""Outputs of the first layer, a 3×3 convolution of stride 2."""

SEPARABLE: tuple[tuple[int, int], ...] = (
    (1, 64),
    (2, 128),
    (1, 128),
    (2, 256),
    (1, 256),
    (2, 512),
    (1, 512),
    (1, 512),
    (1, 512),
    (1, 512),
    (1, 512),
    (2, 1024),
    (1, 1024),
)
"""Stride of the 3×3 depthwise convolution and outputs of the 1×1 convolution of layers 2 to 14."""

EMBEDDING_SIZE = 1024

CLASSES = 521

WIDTH = EMBEDDING_SIZE + CLASSES
"""Of the outputs of a window, side by side."""

BATCH_NORM_EPSILON = 1e-4

FLOP_A_WINDOW = 1.383e8
"""Multiplications and additions of the network's convolutions and its dense layer."""

BATCH_NORM = ("beta", "moving_mean", "moving_variance")
"""Variables of a batch normalization, which has no scale (gamma)."""

LOGITS = "logits"
"""The dense layer."""


def convolutions() -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Return the kernel of each convolution, in network order: variable and shape [3, 3, inputs, outputs].

    A depthwise one has the shape [3, 3, channels, 1].
    """
    kernels: list[tuple[str, tuple[int, ...]]] = [("layer1/conv/kernel", (3, 3, 1, FILTERS))]
    inputs = FILTERS
    for number, (_, outputs) in enumerate(SEPARABLE, 2):
        kernels.append((f"layer{number}/depthwise_conv/depthwise_kernel", (3, 3, inputs, 1)))
        kernels.append((f"layer{number}/pointwise_conv/kernel", (1, 1, inputs, outputs)))
        inputs = outputs
    return tuple(kernels)


def _variable_shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for kernel, shape in convolutions():
        channels = shape[2] if shape[3] == 1 else shape[3]
        shapes[kernel] = shape
        shapes |= {f"{kernel.rpartition('/')[0]}/bn/{variable}": (channels,) for variable in BATCH_NORM}
    return shapes | {f"{LOGITS}/kernel": (EMBEDDING_SIZE, CLASSES), f"{LOGITS}/bias": (CLASSES,)}


VARIABLE_SHAPES = _variable_shapes()
"""Variables of ``yamnet.h5`` and their shapes, in network order: 3,751,369 parameters with batch statistics."""
