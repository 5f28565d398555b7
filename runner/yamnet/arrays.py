"""Arrays of YAMNet's weights: random values, checksum."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from runner.vggish import arrays as shared
from runner.vggish.arrays import aligned_empty
from runner.yamnet.constants import VARIABLE_SHAPES

Array = NDArray[np.float32]

_SPREAD = 0.1
"""Standard deviation of random biases, betas and moving means."""

_FIRST_VARIANCE = 40.0
"""Of the first layer's outputs: twice the mean square of log-mel."""


def random_weights(seed: int) -> dict[str, Array]:
    """Draw He-normal kernels (standard deviation √(2 / fan-in)) and batch statistics, the same for a seed anywhere.

    Moving variances are within a half of those that such kernels give; betas, means and biases are small, but not zero,
    so that a lost one shows.

    Returns:
        float32 arrays by the names of ``VARIABLE_SHAPES``.
    """
    seeds = np.random.SeedSequence(seed).spawn(len(VARIABLE_SHAPES))
    return {
        name: _draw(name, shape, np.random.Generator(np.random.PCG64(sequence)))
        for (name, shape), sequence in zip(VARIABLE_SHAPES.items(), seeds, strict=True)
    }


def _draw(name: str, shape: tuple[int, ...], generator: np.random.Generator) -> Array:
    array = aligned_empty(shape)
    if name.endswith("moving_variance"):
        generator.random(dtype=np.float32, out=array)
        array += np.float32(0.5)
        scale = _FIRST_VARIANCE if name.startswith("layer1/") else 1.0
    else:
        generator.standard_normal(dtype=np.float32, out=array)
        fan_in = np.prod(shape[:2] if "depthwise" in name else shape[:-1])
        scale = np.sqrt(2.0 / fan_in) if len(shape) > 1 else _SPREAD
    array *= np.float32(scale)
    return array


def weights_checksum(arrays: Mapping[str, Array]) -> str:
    """Return the SHA-256 over names, shapes and the values' digests: the same weights have the same in any file."""
    return shared.weights_checksum(arrays, VARIABLE_SHAPES)
