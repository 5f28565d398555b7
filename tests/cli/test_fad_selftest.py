"""``vggish-runner fad --self-test``: torcheval's sets of sines, and its verdict."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from runner.cli import fad, fad_selftest
from runner.core.errors import WeightsError
from runner.statistics.frechet import Gaussian, frechet_distance

if TYPE_CHECKING:
    from runner.inference.session import EmbeddingSession


def some_values(windows: np.ndarray) -> np.ndarray:
    return windows[:, 100:1380:10]


def test_the_sets_are_torchevals() -> None:
    rng = np.random.RandomState(23487621)
    background, test = (fad_selftest.windows(rng, *each) for each in ((10, None), (5, 1e-4)))
    assert (background.shape, test.shape) == ((110, 15_600), (55, 15_600))
    assert np.abs(background).max() == 1.0
    sine = np.sin(2 * np.pi * 100 * np.linspace(0, 6, 96_000))
    np.testing.assert_allclose(background[1], sine[8_000:23_600], atol=4e-5)
    noise = test[0] - background[0]
    assert noise.std() == pytest.approx(1e-4, rel=0.05)
    first = np.random.RandomState(23487621).normal(0, 1e-4, 96_000)[:15_600]
    unclipped = np.abs(background[0]) < 0.99
    np.testing.assert_allclose(noise[unclipped], first[unclipped], atol=7e-5)  # the background draws nothing


@pytest.mark.parametrize(("off", "status"), [(0.0, 0), (0.2, 1)])
def test_the_verdict_is_the_published_distances(
    off: float, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    values = {noise: value + off for noise, value in fad_selftest.distances(some_values).items()}
    monkeypatch.setattr(fad_selftest, "PUBLISHED", values)
    monkeypatch.setattr(
        "runner.inference.api.load_vggish_model", lambda **given: SimpleNamespace(embed_windows=some_values)
    )
    assert fad.main(["--self-test"]) == status
    assert capsys.readouterr().out.count("FAILED" if status else "passed") == 2


@pytest.mark.slow
def test_a_session_of_other_weights_is_measured_and_fails(
    vggish: EmbeddingSession, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sets: list[np.ndarray] = []

    def embed(windows: np.ndarray) -> np.ndarray:
        sets.append(vggish.embed_windows(windows))
        return sets[-1]

    session = SimpleNamespace(embed_windows=embed)
    monkeypatch.setattr("runner.inference.api.load_vggish_model", lambda **given: session)
    assert fad.main(["--self-test"]) == 1
    told = capsys.readouterr()
    assert [each.shape for each in sets] == [(110, 128), (55, 128), (55, 128)]
    for noisy, noise in zip(sets[1:], ("0.0001", "1e-05"), strict=True):
        distance = frechet_distance(Gaussian.of_rows(sets[0]), Gaussian.of_rows(noisy))
        assert f"FAILED: noise {noise}: FAD {distance:.6f}, torcheval has" in told.out
    assert "do not give the published distances" in told.err


def test_without_the_released_weights_it_says_so_and_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def absent(**given: object) -> None:
        raise WeightsError("there is no network")

    monkeypatch.setattr("runner.inference.api.load_vggish_model", absent)
    assert fad.main(["--self-test"]) == 1
    assert (
        "needs the released weights, takes no others, and tested nothing: there is no network"
        in capsys.readouterr().err
    )
