"""Checkpoints in both of TensorFlow's formats, and what is wrong with bad ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from runner.core.errors import WeightsError
from runner.vggish.arrays import random_weights, weights_checksum
from runner.vggish.checkpoint import load_checkpoint
from runner.vggish.constants import VARIABLE_SHAPES

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def arrays(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return weights


def save(arrays: dict[str, np.ndarray], path: Path, version: str = "V2") -> str:
    import tensorflow.compat.v1 as tf

    with tf.Graph().as_default(), tf.Session() as session:
        placeholders = {name: tf.placeholder(array.dtype, array.shape) for name, array in arrays.items()}
        variables = {name: tf.Variable(placeholders[name], name=name.replace("/", "_")) for name in arrays}
        session.run(tf.global_variables_initializer(), {placeholders[name]: array for name, array in arrays.items()})
        saver = tf.train.Saver(variables, write_version=getattr(tf.train.SaverDef, version))
        saver.save(session, str(path), write_meta_graph=False)
    return str(path)


@pytest.fixture(scope="module")
def saved(arrays: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A checkpoint in each format, with a variable more."""
    folder, extra = tmp_path_factory.mktemp("saved"), {"global_step": np.zeros((), np.int64)}
    return {version: save(arrays | extra, folder / f"{version}.ckpt", version) for version in ("V1", "V2")}


@pytest.mark.parametrize("version", ["V1", "V2"])
def test_both_formats_give_the_arrays_back(arrays: dict[str, np.ndarray], saved: dict[str, str], version: str) -> None:
    loaded = load_checkpoint(saved[version])
    assert list(loaded) == list(VARIABLE_SHAPES)
    assert weights_checksum(loaded) == weights_checksum(arrays)


def test_names_may_lack_the_prefix(arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    bare = {name.removeprefix("vggish/"): array for name, array in arrays.items()}
    assert weights_checksum(load_checkpoint(save(bare, tmp_path / "m"))) == weights_checksum(arrays)


def test_a_missing_variable_is_named(tmp_path: Path) -> None:
    rest = {name: np.zeros(1, np.float32) for name in VARIABLE_SHAPES if name != "vggish/fc2/biases"}
    with pytest.raises(WeightsError, match=r"lacks vggish/fc2/biases \(1 of 18"):
        load_checkpoint(save(rest, tmp_path / "m"))


def test_a_wrong_shape_is_named(arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    wrong = arrays | {"vggish/conv1/biases": np.zeros(32, np.float32)}
    with pytest.raises(WeightsError, match=r"vggish/conv1/biases is \[32\], not \[64\]"):
        load_checkpoint(save(wrong, tmp_path / "m"))


def test_nan_is_refused(arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    bad = arrays | {"vggish/fc2/biases": np.full(128, np.nan, np.float32)}
    with pytest.raises(WeightsError, match=r"NaN or infinity in vggish/fc2/biases"):
        load_checkpoint(save(bad, tmp_path / "m"))


@pytest.mark.parametrize("content", [b"", b"no checkpoint at all" * 100])
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m").write_bytes(content)
    with pytest.raises(WeightsError, match="is not a TensorFlow checkpoint"):
        load_checkpoint(str(tmp_path / "m"))


def test_a_truncated_checkpoint_is_refused(saved: dict[str, str], tmp_path: Path) -> None:
    with Path(saved["V1"]).open("rb") as whole:
        (tmp_path / "m").write_bytes(whole.read(100_000_000))
    with pytest.raises(WeightsError, match=r"is (not a TensorFlow checkpoint|damaged)"):
        load_checkpoint(str(tmp_path / "m"))


def test_random_weights_are_seeded_he_normal(arrays: dict[str, np.ndarray]) -> None:
    assert {name: array.shape for name, array in arrays.items()} == VARIABLE_SHAPES
    assert sum(array.size for array in arrays.values()) == 72_141_184
    kernel = arrays["vggish/conv4/conv4_2/weights"]
    assert kernel.std() == pytest.approx(np.sqrt(2 / (9 * 512)), rel=0.01)
    biases = np.concatenate([array for name, array in arrays.items() if name.endswith("biases")])
    assert biases.std() == pytest.approx(0.1, rel=0.05)  # so that one that gets lost is seen
    assert weights_checksum(random_weights(7)) == weights_checksum(arrays)
    assert weights_checksum(random_weights(6)) != weights_checksum(arrays)
