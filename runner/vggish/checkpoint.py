"""Weights from TensorFlow checkpoints, as NumPy arrays."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from runner.core.errors import WeightsError
from runner.vggish.arrays import aligned
from runner.vggish.constants import VARIABLE_SHAPES

Array = NDArray[np.float32]

_SCOPE = "vggish/"


def load_checkpoint(path: str) -> dict[str, Array]:
    """Read VGGish's variables from a TensorFlow checkpoint, V1 (one file) or V2 (a prefix); ignore others.

    Args:
        path: of the file or prefix.

    Returns:
        float32 arrays by the names of ``VARIABLE_SHAPES``; in the file they may lack the scope ``vggish/``.

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
    stored = {name: name if name in shapes else name.removeprefix(_SCOPE) for name in VARIABLE_SHAPES}
    if missing := [name for name, key in stored.items() if key not in shapes]:
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
        arrays = {name: aligned(reader.get_tensor(key)) for name, key in stored.items()}
    except (tf.errors.OpError, ValueError, RuntimeError, MemoryError) as error:
        raise WeightsError(f"{path} is damaged ({str(error).splitlines()[0][:200]}): get the file again") from error
    with ThreadPoolExecutor() as threads:
        finite = threads.map(lambda array: bool(np.isfinite(array).all()), arrays.values())
        bad = [name for name, is_finite in zip(arrays, finite, strict=True) if not is_finite]
    if bad:
        raise WeightsError(f"{path} has NaN or infinity in {', '.join(bad)}: get the file again")
    return arrays
