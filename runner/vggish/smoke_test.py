"""The release's smoke test: known statistics of the embeddings of three seconds of a 1 kHz sine.

Source: the AudioSet VGGish release (``vggish_smoke_test.py``, values of July 2023).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from runner.vggish.constants import EXAMPLE_HOP_S, EXAMPLE_SAMPLES, SAMPLE_RATE
from runner.vggish.postprocess import project, quantize

if TYPE_CHECKING:
    from runner.vggish.postprocess import PcaParameters

KNOWN: Mapping[str, float] = {
    "embedding_mean": 0.000657,
    "embedding_std": 0.343,
    "postprocessed_mean": 126.0,
    "postprocessed_std": 89.3,
}

RELATIVE_TOLERANCE = 0.1


def smoke_windows() -> NDArray[np.float32]:
    """Return the sine in its three windows: float32 [3, 15600]."""
    t = np.arange(3 * SAMPLE_RATE) / SAMPLE_RATE
    sine = np.sin(2 * np.pi * 1000.0 * t).astype(np.float32)
    return np.lib.stride_tricks.sliding_window_view(sine, EXAMPLE_SAMPLES)[:: round(EXAMPLE_HOP_S * SAMPLE_RATE)]


def smoke_statistics(embeddings: NDArray[np.float32], pca: PcaParameters) -> dict[str, float]:
    """Compute mean and standard deviation of the sine's embeddings, float32 [3, 128], and of their 8-bit form."""
    postprocessed = quantize(project(embeddings, pca))
    return {
        "embedding_mean": float(embeddings.mean(dtype=np.float64)),
        "embedding_std": float(embeddings.std(dtype=np.float64)),
        "postprocessed_mean": float(postprocessed.mean()),
        "postprocessed_std": float(postprocessed.std()),
    }


def smoke_failures(statistics: Mapping[str, float], known: Mapping[str, float] = KNOWN) -> list[str]:
    """Return a message for each statistic that is not within a tenth of the known one."""
    return [
        f"{name} is {statistics[name]:.6g}, not {value:.6g}"
        for name, value in known.items()
        if not abs(statistics[name] - value) <= RELATIVE_TOLERANCE * abs(value)
    ]
