"""The HEAR API, by hear-validator and by its definition."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import pytest

from runner.devices.detection import DeviceType
from runner.inference.session import EmbeddingSession
from runner.models.base import Target
from runner.vggish.spec import VGGISH
from tests.double.session import DoubleProgram, DoubleSession, draw_arrays

pytestmark = pytest.mark.slow

if TYPE_CHECKING:
    from runner.hear import Vggish


@pytest.fixture(scope="module")
def hear() -> ModuleType:
    """The module, which imports TensorFlow."""
    from runner import hear

    return hear


@pytest.fixture
def model(hear: ModuleType, vggish: EmbeddingSession, monkeypatch: pytest.MonkeyPatch) -> Vggish:
    """The model around the tests' session: a process can configure its devices only once."""
    monkeypatch.setattr(hear, "load_vggish_model", lambda device, weights: vggish)
    return hear.load_model("random", "cpu")


def test_hear_validator_passes(
    hear: ModuleType, vggish: EmbeddingSession, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The validator imports PyTorch for models of PyTorch; of ours, one of TensorFlow, it asks nothing.

    It looks at shapes and types of a thousand windows, not at what they are.
    """
    program = DoubleProgram(VGGISH, draw_arrays(0), Target(DeviceType.CPU, "float32"))
    double = DoubleSession(program, 64, vggish.metadata)
    monkeypatch.setattr(hear, "load_vggish_model", lambda device, weights: double)
    if "torch" not in sys.modules:
        monkeypatch.setitem(sys.modules, "torch", ModuleType("torch"))
    validate = pytest.importorskip("hearvalidator.validate", reason="hearvalidator is not installed: make .venv/.peer")
    validate.ValidateModel("runner.hear", "random")()
    assert "Received tensorflow Module" in capsys.readouterr().out


def test_timestamps_are_every_50_ms_up_to_the_end(hear: ModuleType, model: Vggish) -> None:
    audio = np.random.default_rng(0).uniform(-0.5, 0.5, (2, 4000)).astype(np.float32)
    embeddings, times = hear.get_timestamp_embeddings(audio, model)
    assert embeddings.shape == (2, 5, 128)  # 0, 50, 100, 150 and 200 ms; 250 ms is the end
    np.testing.assert_allclose(times[1], [0, 50, 100, 150, 200])


def test_a_timestamp_is_the_center_of_its_window(hear: ModuleType, model: Vggish) -> None:
    audio = np.random.default_rng(1).uniform(-0.5, 0.5, (1, 24_000)).astype(np.float32)
    embeddings, times = hear.get_timestamp_embeddings(audio, model)
    row = 12
    center = round(float(times[0, row]) * 16)
    window = audio[0, center - 7800 : center + 7800]
    np.testing.assert_allclose(embeddings[0, row], model.session.embed_waveform(window, 16_000)[0], atol=1e-5)


def test_a_scene_is_the_mean_of_the_clip_that_the_runner_embeds(hear: ModuleType, model: Vggish) -> None:
    audio = np.random.default_rng(2).uniform(-0.5, 0.5, (2, 50_000)).astype(np.float32)
    scenes = hear.get_scene_embeddings(audio, model)
    expected = [model.session.embed_waveform(sound, 16_000).mean(axis=0) for sound in audio]
    np.testing.assert_allclose(scenes, expected, atol=1e-5)
    assert hear.get_scene_embeddings(audio[:, :500], model).shape == (2, 128)
