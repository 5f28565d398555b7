"""The fixed signals that the parity gate and canaries have a session embed."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

INT16_SIGNALS = 13
"""Number of fixed signals, the first ones, with values of 16-bit samples."""

_FULL_SCALE = 32_768
"""A constant of this module: the signals must not change with a fault elsewhere."""


@functools.cache
def fixed_signals(sample_rate: int = 16_000, samples: int = 15_600) -> Array:
    """Return the signals, one window each, float32 [16, samples], read-only: the same on every machine.

    The first ``INT16_SIGNALS`` have values of 16-bit samples, so that ``as_int16`` is exact: a tone, two tones 40 dB
    apart, a chirp over the whole band, noise, silence, an impulse, a clipped speech-like signal (voiced harmonics under
    a syllable's envelope), noise at -80 dB, a square wave and clipped noise (both of RMS above 0.9), a tone with a
    constant offset, tones next to either edge of the mel bands.  The others need floats: samples above 1, a decaying
    tone that is finer than 16 bits, noise at -120 dB.
    """
    t = np.arange(samples) / sample_rate
    turn = 2 * np.pi * t
    rng = np.random.Generator(np.random.PCG64(1))
    impulse = np.zeros(samples)
    impulse[samples // 3] = 1.0
    chirp_rate = (7800.0 - 50.0) / t[-1]
    voiced = sum(np.sin(turn * 120.0 * k + k * k) / k for k in range(1, 30))
    syllables = 0.5 - 0.5 * np.cos(turn * 4.0)
    noises = [rng.uniform(-1.0, 1.0, samples) for _ in range(5)]
    rows = [
        0.5 * np.sin(turn * 1000.0),
        0.9 * np.sin(turn * 220.0) + 0.009 * np.sin(turn * 3520.0),
        0.8 * np.sin(turn * (50.0 + 0.5 * chirp_rate * t)),
        0.3 * noises[0],
        np.zeros(samples),
        impulse,
        np.clip(1.5 * voiced * syllables, -1.0, 1.0),
        1e-4 * noises[1],
        0.99 * np.sign(np.sin(turn * 311.0) + 0.01),
        np.clip(8.0 * noises[2], -1.0, 1.0),
        0.4 + 0.3 * np.sin(turn * 660.0),
        0.6 * np.sin(turn * 7470.0) * syllables + 0.3 * np.sin(turn * 135.0),
        0.45 * np.sin(turn * 7530.0) + 0.45 * np.sin(turn * 112.0),
    ]
    exact = np.clip(np.round(np.stack(rows) * _FULL_SCALE), -_FULL_SCALE, _FULL_SCALE - 1) / _FULL_SCALE
    finer = [
        1.8 * np.sin(turn * 523.0) + 0.7 * noises[3],
        0.7 * np.sin(turn * 1760.0) * np.exp(-12.0 * t),
        1e-6 * noises[4],
    ]
    signals: Array = np.concatenate([exact, np.stack(finer)]).astype(np.float32) + np.float32(0)  # no -0
    signals.flags.writeable = False
    return signals


def as_int16(signals: Array) -> NDArray[np.int16]:
    """Convert the first ``INT16_SIGNALS`` signals, or others of such values, to 16-bit samples."""
    samples: NDArray[np.int16] = (signals * np.float32(_FULL_SCALE)).astype(np.int16)
    return samples
