"""Loads the weights of a run: a checkpoint's, or random ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from runner.core.errors import WeightsError
from runner.vggish.answers import reference_answers
from runner.vggish.arrays import random_weights, weights_checksum
from runner.vggish.checkpoint import load_checkpoint
from runner.vggish.postprocess import load_pca, random_pca
from runner.vggish.smoke_test import smoke_failures, smoke_statistics, smoke_windows

if TYPE_CHECKING:
    from runner.vggish.postprocess import PcaParameters
    from runner.weights.selection import WeightsChoice


@dataclass(frozen=True)
class LoadedWeights:
    """Weights in memory.

    ``arrays`` are float32 by checkpoint name (``build_session`` empties them); ``checksum`` is of their values;
    ``pca`` is None where none was asked for; ``smoke`` holds the figures of the release's smoke test, which is run on
    the released weights only.
    """

    choice: WeightsChoice
    arrays: dict[str, NDArray[np.float32]]
    checksum: str
    pca: PcaParameters | None
    smoke: dict[str, float] | None = None


def load_weights(choice: WeightsChoice, drawn: RandomInit | None = None, kept: Path | None = None) -> LoadedWeights:
    """Read the weights, and put the released ones to their smoke test.

    Args:
        choice: which weights.
        drawn: random ones, if ``init_random_weights`` has made them already.
        kept: folder of the reference's answers, which the smoke test is about; they are computed now when None.

    Raises:
        WeightsError: a file is not what it should be, or the released weights don't give the known answers.
    """
    if choice.source == "random":
        drawn = drawn or init_random_weights(choice)
        assert drawn is not None
        return LoadedWeights(choice, drawn.arrays, drawn.checksum, random_pca(choice.seed or 0))
    arrays = load_checkpoint(str(choice.path))
    pca = load_pca(choice.pca_path) if choice.pca_path else None
    smoke, checksum = None, weights_checksum(arrays)
    if choice.source == "audioset" and pca is not None:
        answers = reference_answers(arrays, checksum, smoke_windows(), kept)[0]
        smoke = smoke_statistics(answers, pca)
        if misses := smoke_failures(smoke):
            raise WeightsError(
                f"{choice.path} fails the release's smoke test (a 1 kHz sine: {'; '.join(misses)}): the file or this "
                "machine's TensorFlow gives wrong numbers; delete the file to have it downloaded again, or use "
                "weights=file for a checkpoint of your own"
            )
    return LoadedWeights(choice, arrays, checksum, pca, smoke)


@dataclass(frozen=True)
class RandomInit:
    """Random weights: float32 arrays by checkpoint name, and their checksum."""

    arrays: dict[str, NDArray[np.float32]]
    checksum: str


def init_random_weights(choice: WeightsChoice) -> RandomInit | None:
    """Random weights, which need no TensorFlow and so can be drawn while it is imported; None for those in a file."""
    if choice.source != "random":
        return None
    arrays = random_weights(choice.seed or 0)
    return RandomInit(arrays, weights_checksum(arrays))
