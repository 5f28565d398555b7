"""The log-mel's window and mel filters, and the log-mel of one example, in NumPy.

Formulas and constants: the AudioSet VGGish release (``mel_features.py``); see ``constants``.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from runner.vggish.constants import (
    FFT_LENGTH,
    LOG_OFFSET,
    MEL_BANDS,
    MEL_MAX_HZ,
    MEL_MIN_HZ,
    SAMPLE_RATE,
    STFT_HOP,
    STFT_WINDOW,
)


def hertz_to_mel(hertz: NDArray[np.float64]) -> NDArray[np.float64]:
    """Convert to HTK's mel scale, 1127 ln(1 + f / 700)."""
    return 1127.0 * np.log1p(hertz / 700.0)


def mel_matrix() -> NDArray[np.float64]:
    """Return the mel filters, float64 [257, 64]: triangles linear in mel, peak 1, no area normalization; DC row 0."""
    bins = hertz_to_mel(np.linspace(0.0, SAMPLE_RATE / 2, FFT_LENGTH // 2 + 1))
    limits = hertz_to_mel(np.array([MEL_MIN_HZ, MEL_MAX_HZ]))
    edges = np.linspace(limits[0], limits[1], MEL_BANDS + 2)
    lower, center, upper = edges[:-2], edges[1:-1], edges[2:]
    rising = (bins[:, None] - lower) / (center - lower)
    falling = (upper - bins[:, None]) / (upper - center)
    matrix: NDArray[np.float64] = np.maximum(0.0, np.minimum(rising, falling))
    matrix[0] = 0.0
    return matrix


def hann_window() -> NDArray[np.float64]:
    """Return the periodic Hann window, float64 [400]."""
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(STFT_WINDOW) / STFT_WINDOW)


def log_mel_of(window: NDArray[np.float32]) -> NDArray[np.float32]:
    """Compute the log-mel of one example in float64, [15600] in -1..1 to float32 [96, 64], without TensorFlow."""
    taper, filters = _constants()
    frames = np.lib.stride_tricks.sliding_window_view(window, STFT_WINDOW)[::STFT_HOP] * taper
    return np.log(np.abs(np.fft.rfft(frames, FFT_LENGTH)) @ filters + LOG_OFFSET).astype(np.float32)


@lru_cache(maxsize=1)
def _constants() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return hann_window(), mel_matrix()
