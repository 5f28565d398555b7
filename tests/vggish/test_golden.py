"""Golden values, made once by an implementation of its own: nothing that computes may move away from them."""

from __future__ import annotations

import numpy as np
import pytest

from runner.inference.session import EmbeddingSession
from runner.models.signals import fixed_signals
from runner.vggish.reference import reference_log_mel
from tests import golden, reference


def test_signals_and_random_weights_are_what_they_were(weights: dict[str, np.ndarray]) -> None:
    assert golden.moved(fixed_signals(), weights) == ""
    assert golden.PATH.stat().st_size < 100_000


@pytest.mark.parametrize(
    ("front_end", "tolerance"),
    [
        (lambda frontend, signals: frontend.log_mel(signals), 1e-5),
        (lambda frontend, signals: frontend.log_mel(signals, "float32"), 1e-5),
        (lambda frontend, signals: frontend.log_mel(signals, "float32", "float32"), 1e-3),
        (lambda frontend, signals: frontend.folded_log_mel(signals), 5e-4),
    ],
)
def test_every_front_end(front_end, tolerance: float) -> None:  # type: ignore[no-untyped-def]
    from runner.vggish import frontend

    assert golden.log_mel_error(front_end(frontend, fixed_signals()).numpy()) < tolerance


def test_the_references_log_mel() -> None:
    assert golden.log_mel_error(reference_log_mel(fixed_signals())) < 1e-6


@pytest.mark.slow
def test_the_reference(exact: np.ndarray) -> None:
    assert golden.embeddings_error(exact) < 1e-6


@pytest.mark.slow
def test_sessions(vggish: EmbeddingSession, weights: dict[str, np.ndarray]) -> None:
    for session in (vggish, reference.make_session(weights, conv="winograd")):
        assert golden.embeddings_error(session.embed_windows(fixed_signals())) < 1e-5
    coarse = reference.make_session(weights, "bfloat16")
    assert golden.embeddings_error(coarse.embed_windows(fixed_signals())) < 3e-2
