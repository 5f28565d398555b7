"""The release's smoke test, with a stand-in model built to give the release's known answers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from runner.core.errors import WeightsError
from runner.models.vggish.model import VGGish
from runner.vggish.constants import VARIABLE_SHAPES
from runner.vggish.smoke_test import KNOWN, smoke_failures, smoke_windows
from runner.weights.selection import WeightsChoice
from tests.vggish.test_checkpoint import save

pytestmark = pytest.mark.slow

OTHER_MEAN = 0.0008
"""None that passes."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[float], str]:
    """The checkpoint of a network that ignores its input, and gives embeddings of this mean."""

    @functools.cache
    def path_of(mean: float) -> str:
        arrays = {name: np.zeros(shape, np.float32) for name, shape in VARIABLE_SHAPES.items()}
        arrays["vggish/fc2/biases"] = answers_of(mean).astype(np.float32)
        return save(arrays, tmp_path_factory.mktemp("smoke") / "vggish_model.ckpt")

    return path_of


def answers_of(mean: float) -> np.ndarray:
    half = np.linspace(-1, 1, 128)
    return mean + KNOWN["embedding_std"] * (half - half.mean()) / half.std()


def stand_in(
    folder: Path, checkpoint: Callable[[float], str], mean: float = KNOWN["embedding_mean"], factor: float = 1.0
) -> WeightsChoice:
    """A network that gives the known mean and deviation, before and after post-processing."""
    answers = answers_of(mean)
    # Of 128 components a share sits at either end of the 8-bit range and the rest near its middle.
    ends = round(128 * (KNOWN["postprocessed_std"] / 127.5) ** 2 / 2)
    target = np.zeros(128)
    target[:ends], target[-ends:] = -3.0, 3.0
    vectors = np.outer(target * factor, answers) / (answers @ answers)
    np.savez(folder / "pca.npz", pca_eigen_vectors=vectors, pca_means=np.zeros((128, 1)))
    return WeightsChoice("audioset", "audioset", checkpoint(mean), str(folder / "pca.npz"), None, "a stand-in", False)


def test_three_seconds_make_three_windows_of_the_sine() -> None:
    windows = smoke_windows()
    assert windows.shape == (3, 15_600)
    assert np.allclose(windows[1, :16], np.sin(2 * np.pi * np.arange(16) / 16), atol=1e-6)


def test_the_known_answers_pass(tmp_path: Path, checkpoint: Callable[[float], str]) -> None:
    loaded = VGGish().load(stand_in(tmp_path, checkpoint))
    assert loaded.smoke is not None
    for name, value in KNOWN.items():
        assert loaded.smoke[name] == pytest.approx(value, rel=0.1)
    assert loaded.smoke["embedding_std"] == pytest.approx(0.343, rel=1e-4)


def test_weights_of_ones_own_are_not_put_to_it(checkpoint: Callable[[float], str]) -> None:
    own = WeightsChoice("file", "file", checkpoint(OTHER_MEAN), None, None, "", False)
    assert VGGish().load(own).smoke is None


@pytest.mark.parametrize(
    ("change", "words"),
    [({"mean": OTHER_MEAN}, r"embedding_mean is 0\.0008"), ({"factor": 0.4}, "postprocessed_std is")],
)
def test_a_miss_stops_and_says_so(
    tmp_path: Path, checkpoint: Callable[[float], str], change: dict[str, float], words: str
) -> None:
    with pytest.raises(WeightsError, match=f"fails the release's smoke test.*{words}"):
        VGGish().load(stand_in(tmp_path, checkpoint, **change))


def test_nan_is_a_miss() -> None:
    assert len(smoke_failures(dict.fromkeys(KNOWN, float("nan")))) == len(KNOWN)
