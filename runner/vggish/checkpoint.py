"""The network's weights as NumPy arrays: read from a TensorFlow checkpoint, or random."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runner.errors import WeightsError
from runner.vggish.constants import VARIABLE_SHAPES

Array = NDArray[np.float32]

_PREFIX = "vggish/"
_BIAS = 0.1
"""Standard deviation of random biases."""
_ALIGNMENT = 64
"""Bytes; TensorFlow takes an array that begins at a multiple of them as it is, without a copy."""


def aligned(array: NDArray[Any], dtype: Any = np.float32) -> NDArray[Any]:
    """The array as ``dtype`` in memory that TensorFlow can use as it is; itself if it is that already."""
    taken = array.flags.c_contiguous and array.flags.writeable and array.ctypes.data % _ALIGNMENT == 0
    if array.dtype == dtype and taken:
        return array
    copy = aligned_empty(array.shape, dtype)
    copy[...] = array
    return copy


def aligned_empty(shape: tuple[int, ...], dtype: Any = np.float32) -> NDArray[Any]:
    """A new array in memory that TensorFlow can use as it is."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    found: NDArray[Any] = memory[start : start + size].view(dtype).reshape(shape)
    return found


def load_checkpoint(path: str) -> dict[str, Array]:
    """Read VGGish's variables from a TensorFlow checkpoint, V1 (one file) or V2 (a prefix); others are ignored.

    Args:
        path: of the file or prefix.

    Returns:
        float32 arrays by the names of ``VARIABLE_SHAPES``; the ``vggish/`` prefix may lack in the file.

    Raises:
        WeightsError: the file can't be read, a variable is missing, has another shape, or is not finite.
    """
    import tensorflow as tf

    try:
        reader = tf.train.load_checkpoint(path)
        shapes = {name: tuple(shape) for name, shape in reader.get_variable_to_shape_map().items()}
    except (tf.errors.OpError, ValueError, RuntimeError, MemoryError) as error:
        reason = str(error).splitlines()[0][:200]
        raise WeightsError(
            f"{path} is not a TensorFlow checkpoint ({reason}): give VGGish's V1 file or V2 prefix"
        ) from error
    stored = {name: name if name in shapes else name.removeprefix(_PREFIX) for name in VARIABLE_SHAPES}
    if missing := [name for name, found in stored.items() if found not in shapes]:
        raise WeightsError(
            f"{path} lacks {', '.join(missing)} ({len(missing)} of {len(stored)} variables): give a VGGish checkpoint"
        )
    wrong = [
        f"{name} is {list(shapes[stored[name]])}, not {list(shape)}"
        for name, shape in VARIABLE_SHAPES.items()
        if shapes[stored[name]] != shape
    ]
    if wrong:
        raise WeightsError(f"{path} is not VGGish's: {'; '.join(wrong)}; give a checkpoint with the released shapes")
    try:
        arrays = {name: aligned(reader.get_tensor(found)) for name, found in stored.items()}
    except (tf.errors.OpError, ValueError, RuntimeError, MemoryError) as error:
        raise WeightsError(f"{path} is damaged ({str(error).splitlines()[0][:200]}): get the file again") from error
    with ThreadPoolExecutor() as threads:
        finite = threads.map(lambda array: bool(np.isfinite(array).all()), arrays.values())
        bad = [name for name, is_finite in zip(arrays, finite, strict=True) if not is_finite]
    if bad:
        raise WeightsError(f"{path} has NaN or infinity in {', '.join(bad)}: get the file again")
    return arrays


def random_weights(seed: int) -> dict[str, Array]:
    """He-normal weights (standard deviation √(2 / fan-in)) and small biases; the same for a seed on every machine.

    The biases are not zero, so that one that gets lost is seen.
    """
    seeds = np.random.SeedSequence(seed).spawn(len(VARIABLE_SHAPES))

    def draw(item: tuple[tuple[str, tuple[int, ...]], np.random.SeedSequence]) -> tuple[str, Array]:
        (name, shape), own_seed = item
        array = aligned_empty(shape)
        np.random.Generator(np.random.PCG64(own_seed)).standard_normal(dtype=np.float32, out=array)
        array *= np.float32(np.sqrt(2.0 / np.prod(shape[:-1])) if len(shape) > 1 else _BIAS)
        return name, array

    with ThreadPoolExecutor() as threads:
        return dict(threads.map(draw, zip(VARIABLE_SHAPES.items(), seeds, strict=True)))


def weights_checksum(arrays: Mapping[str, Array]) -> str:
    """SHA-256 over names, shapes and the values' digests: the same weights give the same, whatever file held them."""

    def own(name: str) -> bytes:
        return hashlib.sha256(np.ascontiguousarray(arrays[name], "<f4").data).digest()

    digest = hashlib.sha256()
    with ThreadPoolExecutor() as threads:
        for (name, shape), of_values in zip(VARIABLE_SHAPES.items(), threads.map(own, VARIABLE_SHAPES), strict=True):
            digest.update(f"{name}{list(shape)}".encode() + of_values)
    return digest.hexdigest()
