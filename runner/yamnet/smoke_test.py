"""The release's smoke test: silence, white noise and a sine have their class among the ten with the highest scores.

Source: the AudioSet YAMNet release (``yamnet_test.py``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from runner.vggish.constants import EXAMPLE_SAMPLES, SAMPLE_RATE
from runner.yamnet.constants import HOP_SAMPLES

_SAMPLES = 3 * SAMPLE_RATE

_SEED = 51773

_TOP = 10


def smoke_windows() -> Mapping[str, NDArray[np.float32]]:
    """Return three seconds of each signal in windows [6, 15600], by the display name of its class."""
    sine = np.sin(2 * np.pi * 440 * np.arange(_SAMPLES) / SAMPLE_RATE)
    noise = np.random.RandomState(_SEED).uniform(-1.0, 1.0, _SAMPLES)
    signals = {"Silence": np.zeros(_SAMPLES), "White noise": noise, "Sine wave": sine}
    return {name: padded_windows(signal.astype(np.float32)) for name, signal in signals.items()}


def padded_windows(waveform: NDArray[np.float32]) -> NDArray[np.float32]:
    """Cut a waveform, float32 [n], into windows [k, 15600], padded with zeros so that every sample is in one.

    Source: ``pad_waveform`` in the release's ``features.py``.
    """
    count = 1 + max(0, -(-(len(waveform) - EXAMPLE_SAMPLES) // HOP_SAMPLES))
    padded = np.zeros(EXAMPLE_SAMPLES + (count - 1) * HOP_SAMPLES, np.float32)
    padded[: len(waveform)] = waveform
    return np.lib.stride_tricks.sliding_window_view(padded, EXAMPLE_SAMPLES)[::HOP_SAMPLES]


def smoke_failures(scores: Mapping[str, NDArray[np.float32]], classes: Sequence[str]) -> list[str]:
    """Return a message for each signal whose class is not among the ten with the highest mean scores.

    Args:
        scores: of the windows of each signal, float32 [n, 521], by the name of its class.
        classes: names of the 521 classes.
    """
    failures = []
    for name, rows in scores.items():
        top = [classes[index] for index in np.argsort(rows.mean(axis=0))[::-1][:_TOP]]
        if name not in top:
            failures.append(f"{name!r} is not among the classes with the highest scores ({', '.join(top)})")
    return failures
