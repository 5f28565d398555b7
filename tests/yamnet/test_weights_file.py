"""Files of weights in the release's layout, and what is wrong with bad ones."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from runner.core.errors import WeightsError
from runner.yamnet.arrays import random_weights, weights_checksum
from runner.yamnet.constants import VARIABLE_SHAPES
from runner.yamnet.weights_file import load_weights_file
from tests.yamnet.keras_yamnet import keras_yamnet, variables_of


def save(arrays: dict[str, np.ndarray], path: Path) -> Path:
    """Write a file as Keras 2 wrote ``yamnet.h5``: a group a layer, with its variables below its name again."""
    layers = list(dict.fromkeys(name.rpartition("/")[0] for name in arrays))
    with h5py.File(path, "w") as file:
        file.attrs["backend"], file.attrs["keras_version"] = "tensorflow", "2.2.4-tf"
        file.attrs["layer_names"] = [name.encode() for name in layers]
        for layer in layers:
            group = file.create_group(layer)
            names = [name for name in arrays if name.rpartition("/")[0] == layer]
            group.attrs["weight_names"] = np.array([f"{name}:0".encode() for name in names], "S")
            for name in names:
                group.create_dataset(f"{name}:0", data=arrays[name])
    return path


@pytest.fixture
def path(yamnet_arrays: dict[str, np.ndarray], tmp_path: Path) -> Path:
    return save(yamnet_arrays, tmp_path / "yamnet.h5")


def test_a_released_file_gives_the_arrays(path: Path, yamnet_arrays: dict[str, np.ndarray]) -> None:
    loaded = load_weights_file(path)
    assert list(loaded) == list(VARIABLE_SHAPES)
    assert weights_checksum(loaded) == weights_checksum(yamnet_arrays)


@pytest.mark.slow
def test_keras_loads_the_same_from_the_file(path: Path, yamnet_arrays: dict[str, np.ndarray]) -> None:
    model = keras_yamnet()
    model.load_weights(path)
    layers = [layer for layer in model.layers if layer.weights]
    kernels = [array for name, array in yamnet_arrays.items() if name.endswith("kernel")]
    assert [layer.get_weights()[0].tolist() for layer in layers if "bn" not in layer.name] == [
        a.tolist() for a in kernels
    ]
    for loaded, saved in zip(
        model.get_layer("layer7_pointwise_conv_bn").get_weights(),
        variables_of("layer7/pointwise_conv/bn", yamnet_arrays),
        strict=True,
    ):
        assert np.array_equal(loaded, saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits/bias": None}, r"lacks logits/bias \(1 of 110 variables\): give the release's yamnet.h5"),
        ({"layer1/conv/bn/beta": np.zeros(16, np.float32)}, r"layer1/conv/bn/beta is float32\[16\], not float32\[32\]"),
        ({"logits/bias": np.zeros(521, np.float64)}, r"logits/bias is float64\[521\], not float32\[521\]"),
        ({"logits/bias": np.full(521, np.nan, np.float32)}, "has NaN or infinity in logits/bias: get the file again"),
    ],
)
def test_a_bad_variable_is_named(
    change: dict[str, np.ndarray | None], message: str, yamnet_arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    arrays = {name: array for name, array in (yamnet_arrays | change).items() if array is not None}
    with pytest.raises(WeightsError, match=message):
        load_weights_file(save(arrays, tmp_path / "yamnet.h5"))


def test_the_file_of_another_network_is_refused(tmp_path: Path) -> None:
    other = {"block1_conv1/kernel": np.zeros((3, 3, 3, 64), np.float32)}
    with pytest.raises(WeightsError, match=r"lacks layer1/conv/kernel, .*, … \(110 of 110 variables\)"):
        load_weights_file(save(other, tmp_path / "vgg16.h5"))


def test_a_file_that_is_not_hdf5_is_refused(tmp_path: Path) -> None:
    (tmp_path / "yamnet.h5").write_bytes(b"<html>not found</html>" * 100)
    for name in ("yamnet.h5", "missing.h5"):
        with pytest.raises(WeightsError, match=r"is not a readable HDF5 file \(.*\): give the release's yamnet.h5"):
            load_weights_file(tmp_path / name)


def test_a_truncated_file_is_refused(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1_000_000])
    with pytest.raises(WeightsError, match="is not a readable HDF5 file"):
        load_weights_file(path)


def test_random_weights_are_the_same_for_a_seed(yamnet_arrays: dict[str, np.ndarray]) -> None:
    assert {name: array.shape for name, array in yamnet_arrays.items()} == VARIABLE_SHAPES
    assert weights_checksum(random_weights(7)) == weights_checksum(yamnet_arrays)
    assert weights_checksum(random_weights(8)) != weights_checksum(yamnet_arrays)
    variances = np.concatenate([a for name, a in yamnet_arrays.items() if name.endswith("moving_variance")])
    assert variances.min() > 0.4
    assert yamnet_arrays["layer13/pointwise_conv/kernel"].std() == pytest.approx(np.sqrt(2 / 512), rel=0.01)
