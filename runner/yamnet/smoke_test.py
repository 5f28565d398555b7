"""The release's smoke test: silence, white noise and a sine have their class among the ten with the highest scores.

Source: the AudioSet YAMNet release (``yamnet_test.py``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from runner.vggish.constants import EXAMPLE_SAMPLES, SAMPLE_RATE
from runner.yamnet.constants import HOP_SAMPLES

_SECONDS = 3

_SEED = 51773

_CLASSES = ("Silence", "White noise", "Sine wave")
"""Of the signals, in their order."""

LARGEST_RANK = 10


def smoke_windows() -> NDArray[np.float32]:
    """Return three seconds of each signal, padded to whole windows: float32 [18, 15600], six windows a signal."""
    samples = _SECONDS * SAMPLE_RATE
    sine = np.sin(2 * np.pi * 440 * np.arange(samples) / SAMPLE_RATE)
    noise = np.random.RandomState(_SEED).uniform(-1.0, 1.0, samples)
    return np.concatenate([padded_windows(signal.astype(np.float32)) for signal in (np.zeros(samples), noise, sine)])


def padded_windows(waveform: NDArray[np.float32]) -> NDArray[np.float32]:
    """Cut a waveform, float32 [n], into windows [k, 15600], padded with zeros so that every sample is in one.

    Source: ``pad_waveform`` in the release's ``features.py``.
    """
    count = 1 + max(0, -(-(len(waveform) - EXAMPLE_SAMPLES) // HOP_SAMPLES))
    padded = np.zeros(EXAMPLE_SAMPLES + (count - 1) * HOP_SAMPLES, np.float32)
    padded[: len(waveform)] = waveform
    return np.lib.stride_tricks.sliding_window_view(padded, EXAMPLE_SAMPLES)[::HOP_SAMPLES]


def smoke_statistics(scores: NDArray[np.float32], classes: Sequence[str]) -> dict[str, float]:
    """Return the rank of each signal's class by its mean score, 1 for the highest: ``silence_rank`` and so on.

    Args:
        scores: of the windows, float32 [18, 521].
        classes: names of the 521 classes.
    """
    ranks: dict[str, float] = {}
    for name, rows in zip(_CLASSES, np.split(scores, len(_CLASSES)), strict=True):
        means = rows.mean(axis=0)
        ranks[f"{name.lower().replace(' ', '_')}_rank"] = 1.0 + int(
            np.count_nonzero(means > means[classes.index(name)])
        )
    return ranks


def smoke_failures(statistics: Mapping[str, float]) -> list[str]:
    """Return a message for each rank that is not among the first ten."""
    return [f"{name} is {rank:.0f}" for name, rank in statistics.items() if not rank <= LARGEST_RANK]
