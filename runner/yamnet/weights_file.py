"""Weights from the release's ``yamnet.h5`` (Keras' HDF5 format for weights), as NumPy arrays."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from runner.core.errors import WeightsError
from runner.vggish.arrays import aligned
from runner.yamnet.constants import VARIABLE_SHAPES

if TYPE_CHECKING:
    import h5py

Array = NDArray[np.float32]


def load_weights_file(path: Path) -> dict[str, Array]:
    """Read YAMNet's variables from an HDF5 file as Keras' ``save_weights`` writes it; ignore others.

    Args:
        path: of the file, such as the release's ``yamnet.h5``: a group per layer, with its variables by their names.

    Returns:
        float32 arrays by the names of ``VARIABLE_SHAPES``.

    Raises:
        WeightsError: the file can't be read, a variable is missing, has another shape or type, or is not finite.
    """
    import h5py

    try:
        with h5py.File(path, "r") as file:
            datasets = _datasets(file)
            _check(path, datasets)
            arrays = {name: aligned(datasets[name][()]) for name in VARIABLE_SHAPES}
    except (OSError, RuntimeError, KeyError) as error:
        reason = str(error).splitlines()[0][:200]
        raise WeightsError(f"{path} is not a readable HDF5 file ({reason}): give the release's yamnet.h5") from error
    if bad := [name for name, array in arrays.items() if not np.isfinite(array).all()]:
        raise WeightsError(f"{path} has NaN or infinity in {', '.join(bad)}: get the file again")
    return arrays


def _datasets(file: h5py.File) -> dict[str, h5py.Dataset]:
    """Return the file's variables by name: ``layer1/conv/layer1/conv/kernel:0`` is ``layer1/conv/kernel``."""
    import h5py

    datasets = {}

    def add(path: str, item: h5py.Dataset | h5py.Group) -> None:
        if isinstance(item, h5py.Dataset):
            layer, _, variable = path.partition(":")[0].rpartition("/")
            parts = layer.split("/")
            half = parts[: len(parts) // 2]
            datasets["/".join([*(half if half * 2 == parts else parts), variable])] = item

    file.visititems(add)
    return datasets


def _check(path: Path, datasets: dict[str, h5py.Dataset]) -> None:
    if missing := [name for name in VARIABLE_SHAPES if name not in datasets]:
        names = ", ".join(missing[:5]) + (", …" if len(missing) > 5 else "")
        raise WeightsError(
            f"{path} lacks {names} ({len(missing)} of {len(VARIABLE_SHAPES)} variables): give the release's yamnet.h5"
        )
    wrong = [
        f"{name} is {datasets[name].dtype}{list(datasets[name].shape)}, not float32{list(shape)}"
        for name, shape in VARIABLE_SHAPES.items()
        if datasets[name].shape != shape or datasets[name].dtype != np.float32
    ]
    if wrong:
        raise WeightsError(f"{path} is not YAMNet's: {'; '.join(wrong[:5])}; give a file with the released shapes")
