"""Arrays of weights: aligned memory, random values, checksums."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runner.vggish.constants import VARIABLE_SHAPES

Array = NDArray[np.float32]

_BIAS = 0.1
"""Standard deviation of random biases."""

_ALIGNMENT = 64
"""Bytes; TensorFlow uses an array that begins at a multiple of them without a copy."""


def aligned(array: NDArray[Any], dtype: Any = np.float32) -> NDArray[Any]:
    """Return the array as ``dtype`` in memory that TensorFlow uses without a copy; itself if it is so already."""
    is_aligned = array.flags.c_contiguous and array.flags.writeable and array.ctypes.data % _ALIGNMENT == 0
    if array.dtype == dtype and is_aligned:
        return array
    copy = aligned_empty(array.shape, dtype)
    copy[...] = array
    return copy


def aligned_empty(shape: tuple[int, ...], dtype: Any = np.float32) -> NDArray[Any]:
    """Allocate an array in memory that TensorFlow uses without a copy."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    array: NDArray[Any] = memory[start : start + size].view(dtype).reshape(shape)
    return array


def random_weights(seed: int) -> dict[str, Array]:
    """Draw He-normal weights (standard deviation √(2 / fan-in)) and small biases, the same for a seed on every machine.

    The biases are not zero, so that a lost one shows.
    """
    seeds = np.random.SeedSequence(seed).spawn(len(VARIABLE_SHAPES))

    def draw(item: tuple[tuple[str, tuple[int, ...]], np.random.SeedSequence]) -> tuple[str, Array]:
        (name, shape), sequence = item
        array = aligned_empty(shape)
        np.random.Generator(np.random.PCG64(sequence)).standard_normal(dtype=np.float32, out=array)
        array *= np.float32(np.sqrt(2.0 / np.prod(shape[:-1])) if len(shape) > 1 else _BIAS)
        return name, array

    with ThreadPoolExecutor() as threads:
        return dict(threads.map(draw, zip(VARIABLE_SHAPES.items(), seeds, strict=True)))


def weights_checksum(arrays: Mapping[str, Array], shapes: Mapping[str, tuple[int, ...]] = VARIABLE_SHAPES) -> str:
    """Return the SHA-256 over names, shapes and the values' digests: the same weights have the same in any file."""

    def digest_of(name: str) -> bytes:
        return hashlib.sha256(np.ascontiguousarray(arrays[name], "<f4").data).digest()

    digest = hashlib.sha256()
    with ThreadPoolExecutor() as threads:
        for (name, shape), values in zip(shapes.items(), threads.map(digest_of, shapes), strict=True):
            digest.update(f"{name}{list(shape)}".encode() + values)
    return digest.hexdigest()
