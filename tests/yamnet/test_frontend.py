"""Log-mel with YAMNet's offset, by the formulas and by the operations of the release."""

from __future__ import annotations

import numpy as np
import pytest

from runner.config.groups.parity import ParityConfig
from runner.config.groups.precision import PRECISIONS
from runner.models.signals import INT16_SIGNALS, as_int16
from runner.vggish.reference import reference_log_mel


@pytest.mark.parametrize("is_cpu", [True, False])
@pytest.mark.parametrize("precision", PRECISIONS[1:])
def test_every_front_end_is_well_within_the_gates_tolerance(
    precision: str, is_cpu: bool, signals: np.ndarray, exact_log_mel: np.ndarray
) -> None:
    from runner.yamnet import forward

    error = np.abs(forward.log_mel(signals, precision, is_cpu=is_cpu).numpy() - exact_log_mel).max()
    assert error < ParityConfig().tolerances[precision].log_mel_err / 2


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
