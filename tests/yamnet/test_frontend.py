"""Log-mel with YAMNet's offset, by the formulas and by the operations of the release."""

from __future__ import annotations

import numpy as np
import pytest

from runner.models.signals import INT16_SIGNALS, as_int16
from runner.vggish.reference import reference_log_mel


@pytest.mark.parametrize(
    ("front_end", "tolerance"),
    [
        (lambda frontend, signals: frontend.log_mel(signals), 1e-6),
        (lambda frontend, signals: frontend.log_mel(signals, "float32", "float64"), 1e-2),
        (lambda frontend, signals: frontend.folded_log_mel(signals), 2e-3),
    ],
)
def test_every_front_end(front_end, tolerance: float, signals: np.ndarray, exact_log_mel: np.ndarray) -> None:  # type: ignore[no-untyped-def]
    from runner.yamnet import frontend

    assert np.abs(front_end(frontend, signals).numpy() - exact_log_mel).max() < tolerance


def test_the_references_log_mel(signals: np.ndarray, exact_log_mel: np.ndarray) -> None:
    assert np.abs(reference_log_mel(signals, 0.001) - exact_log_mel).max() < 1e-9


def test_the_releases_operations_in_float64_give_the_same(signals: np.ndarray, exact_log_mel: np.ndarray) -> None:
    import tensorflow as tf

    filters = tf.signal.linear_to_mel_weight_matrix(64, 257, 16_000, 125.0, 7500.0, tf.float64)
    spectrum = tf.signal.stft(signals.astype(np.float64), 400, 160, 512)
    log_mel = tf.math.log(tf.matmul(tf.abs(spectrum), filters) + 0.001)
    assert np.abs(log_mel.numpy() - exact_log_mel).max() < 1e-6


def test_samples_of_16_bits_give_the_same_bits(signals: np.ndarray) -> None:
    from runner.yamnet import frontend

    samples = tensor(as_int16(signals[:INT16_SIGNALS]))
    assert np.array_equal(frontend.log_mel(samples).numpy(), frontend.log_mel(signals[:INT16_SIGNALS]).numpy())


def tensor(array: np.ndarray):  # type: ignore[no-untyped-def]
    import tensorflow as tf

    return tf.constant(array)
