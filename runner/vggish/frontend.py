"""Log-mel: from windows of waveform to VGGish's examples, as TensorFlow operations.

Formulas and constants: the AudioSet VGGish release (``mel_features.py``); see ``constants``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from runner.vggish.constants import (
    EXAMPLE_FRAMES,
    EXAMPLE_SAMPLES,
    FFT_LENGTH,
    LOG_OFFSET,
    MEL_BANDS,
    MEL_MAX_HZ,
    MEL_MIN_HZ,
    SAMPLE_RATE,
    STFT_HOP,
    STFT_WINDOW,
)

_PIECE = 80
"""Samples that divide both hop (2 pieces) and window (5): framing becomes five strided slices."""


def hertz_to_mel(hertz: NDArray[np.float64]) -> NDArray[np.float64]:
    """HTK's mel scale, 1127 ln(1 + f / 700)."""
    return 1127.0 * np.log1p(hertz / 700.0)


def mel_matrix() -> NDArray[np.float64]:
    """The mel filters, float64 [257, 64]: triangles linear in mel, peak 1, no area normalisation; DC row 0."""
    bins = hertz_to_mel(np.linspace(0.0, SAMPLE_RATE / 2, FFT_LENGTH // 2 + 1))
    limits = hertz_to_mel(np.array([MEL_MIN_HZ, MEL_MAX_HZ]))
    edges = np.linspace(limits[0], limits[1], MEL_BANDS + 2)
    lower, centre, upper = edges[:-2], edges[1:-1], edges[2:]
    rising = (bins[:, None] - lower) / (centre - lower)
    falling = (upper - bins[:, None]) / (upper - centre)
    matrix: NDArray[np.float64] = np.maximum(0.0, np.minimum(rising, falling))
    matrix[0] = 0.0
    return matrix


def hann_window() -> NDArray[np.float64]:
    """The periodic Hann window, float64 [400]."""
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(STFT_WINDOW) / STFT_WINDOW)


def log_mel(windows: Any) -> Any:
    """Log-mel of windows of waveform.

    All in float64: beside the network it costs two per cent on a CPU, and it is what makes log-mel exact. A float32
    FFT errs by up to 6e-4 (on a loud tone, in the bands that are all but silent), a TF32 mel product by 0.02.

    Args:
        windows: float32 tensor [batch, 15600], mono 16 kHz in -1..1.

    Returns:
        float32 tensor [batch, 96, 64].
    """
    import tensorflow as tf

    pieces = tf.reshape(tf.cast(windows, tf.float64), [-1, EXAMPLE_SAMPLES // _PIECE, _PIECE])
    per_hop = STFT_HOP // _PIECE
    last = per_hop * EXAMPLE_FRAMES
    frames = tf.concat(
        [pieces[:, start : start + last - 1 : per_hop] for start in range(STFT_WINDOW // _PIECE)],
        axis=2,
    )
    spectrum = tf.signal.rfft(frames * tf.constant(hann_window()), [FFT_LENGTH])
    magnitude = tf.reshape(tf.abs(spectrum), [-1, FFT_LENGTH // 2 + 1])
    mel = tf.cast(tf.matmul(magnitude, tf.constant(mel_matrix())), tf.float32)
    return tf.reshape(tf.math.log(mel + LOG_OFFSET), [-1, EXAMPLE_FRAMES, MEL_BANDS])
