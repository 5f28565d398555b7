"""``vggish-runner fad --self-test``: the released weights must give the distances that torcheval publishes.

Source: torcheval, tests/metrics/audio/test_fad.py, which follows google-research's gen_test_files.py: sines of 6 s from
100 to 1,000 Hz, with Gaussian noise in the sets under test.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from runner.core.errors import WeightsError
from runner.statistics.frechet import Gaussian, frechet_distance
from runner.vggish.constants import EXAMPLE_SAMPLES, SAMPLE_RATE

Array = NDArray[np.float32]

PUBLISHED, TOLERANCE = {1e-4: 2.784474, 1e-5: 1.324203}, 0.05
"""The distance of each level of noise from the sines without, and how far off it may be."""

_SEED, _SECONDS, _STEP = 23487621, 6, 8000

_LEAST_LEVEL = 0.1


def self_test() -> int:
    """Print both distances beside the published ones; exit status 1 if one is off, or the weights can't be had."""
    from runner.inference.api import load_vggish_model
    from runner.inference.tensorflow_import import without_library_notes

    try:
        with without_library_notes():
            session = load_vggish_model(weights="audioset")
    except WeightsError as error:
        raise WeightsError(
            f"the self-test needs the released weights, takes no others, and tested nothing: {error}"
        ) from error
    passed = True
    for noise, value in distances(session.embed_windows).items():
        is_close = abs(value - PUBLISHED[noise]) <= TOLERANCE
        passed &= is_close
        verdict = "passed" if is_close else "FAILED"
        print(f"{verdict}: noise {noise:g}: FAD {value:.6f}, torcheval has {PUBLISHED[noise]:.6f} ± {TOLERANCE:g}")
    if not passed:
        print(
            "these weights or this device do not give the published distances: see vggish-runner doctor",
            file=sys.stderr,
        )
    return int(not passed)


def distances(embed: Callable[[Array], Array]) -> dict[float, float]:
    """The distance of each noisy set from the background, by its noise.

    Args:
        embed: makes embeddings [n, 128] of windows, float32 [n, 15600].
    """
    rng = np.random.RandomState(_SEED)  # the three sets come from one stream, in this order
    background = Gaussian.of_rows(embed(windows(rng, 10, None)))
    return {noise: frechet_distance(background, Gaussian.of_rows(embed(windows(rng, 5, noise)))) for noise in PUBLISHED}


def windows(rng: np.random.RandomState, files: int, noise: float | None) -> Array:
    """The windows of a set of sines, float32 [11 · files, 15600]: one every 8,000 samples that has 16,000.

    The network's 96 frames are those of a window's first 15,600 samples.

    Args:
        rng: of the noise.
        files: how many sines.
        noise: standard deviation; None for none.
    """
    samples = SAMPLE_RATE * _SECONDS
    time_s = np.linspace(0, _SECONDS, samples)
    cut = []
    for frequency in np.linspace(100, 1000, files):
        wave = np.sin(2 * np.pi * time_s * frequency)
        if noise:
            wave = wave + rng.normal(0, noise, samples) * np.abs(wave).max()
        wave = (2**15 * np.clip(wave, -1, 0.999999)).astype(np.int16).astype(np.float32)
        wave /= max(_LEAST_LEVEL, np.abs(wave).max())
        cut += [wave[first : first + EXAMPLE_SAMPLES] for first in range(0, samples - SAMPLE_RATE + 1, _STEP)]
    return np.stack(cut)
