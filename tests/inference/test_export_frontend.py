"""The exported model cuts a waveform as a run of the same configuration does."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from runner.audio.framing import WindowCutter
from runner.config.schema import FrontendConfig
from runner.core.errors import ConfigError
from runner.inference.saved_model import _check_frontend, _module, cut
from runner.inference.session import EmbeddingSession
from runner.vggish.spec import VGGISH

LENGTHS = (1, 399, 400, 15_599, 15_600, 15_759, 15_760, 31_199, 31_200, 40_000, 47_111, 160_000, 160_400)


def expected(samples: np.ndarray, frontend: FrontendConfig) -> np.ndarray:
    """The windows [n, 15600] that a run has."""
    cutter = WindowCutter(frontend.framing(VGGISH))
    return np.concatenate([cutter.push(samples), cutter.finish()])


@pytest.mark.parametrize(("short_clips", "tail"), itertools.product(("pad", "skip"), ("pad", "drop")))
def test_windows_are_those_of_a_run(short_clips: str, tail: str) -> None:
    noise = np.random.default_rng(0).uniform(-1, 1, max(LENGTHS)).astype(np.float32)
    for hop_s, length in itertools.product((0.96, 0.1, 2.0), LENGTHS):
        frontend = FrontendConfig(hop_s=hop_s, short_clips=short_clips, tail=tail)
        windows = cut(noise[None, :length], frontend).numpy()
        assert np.array_equal(windows[0], expected(noise[:length], frontend)), (hop_s, length)


@pytest.mark.slow
def test_the_models_rows_are_those_of_a_run(vggish: EmbeddingSession) -> None:
    frontend = FrontendConfig(short_clips="skip", tail="pad")
    _, signatures = _module(vggish, "float32", frontend, "{}")
    samples = np.random.default_rng(1).uniform(-1, 1, (2, 30_000)).astype(np.float32)
    assert signatures["waveform"](samples[:, :900])["embeddings"].shape == (2, 0, 128)
    embeddings = signatures["waveform"](samples)["embeddings"].numpy()
    rows = np.stack(
        [[vggish.embed_waveform(window, 16_000)[0] for window in expected(row, frontend)] for row in samples]
    )
    assert embeddings.shape == rows.shape == (2, 2, 128)
    assert np.abs(embeddings - rows).max() <= 5e-6 * np.abs(rows).max()


def test_a_speed_that_the_model_would_not_know_of_is_refused() -> None:
    _check_frontend(FrontendConfig(hop_s=0.48, tail="pad"))
    with pytest.raises(ConfigError, match=r"frontend\.speed=0\.1 is no part of an exported model"):
        _check_frontend(FrontendConfig(speed=0.1))
