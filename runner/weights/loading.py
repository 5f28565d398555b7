"""Loads the weights of a run: from a checkpoint, or random ones."""

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

    Attributes:
        choice: which weights they are.
        arrays: float32, by checkpoint name; ``build_session`` empties it.
        checksum: of their values.
        pca: PCA parameters; None where none are needed.
        smoke: statistics of the release's smoke test, which is run on the released weights only.
    """

    choice: WeightsChoice
    arrays: dict[str, NDArray[np.float32]]
    checksum: str
    pca: PcaParameters | None
    smoke: dict[str, float] | None = None


def load_weights(
    choice: WeightsChoice, random_init: RandomInit | None = None, cache: Path | None = None
) -> LoadedWeights:
    """Load the weights, and run the smoke test of the released ones.

    Args:
        choice: which weights.
        random_init: random weights, if ``init_random_weights`` has made them already.
        cache: folder of the reference's answers, which the smoke test needs; None to compute them.

    Raises:
        WeightsError: a file is not a VGGish checkpoint, or the released weights fail the smoke test.
    """
    if choice.source == "random":
        random_init = random_init or init_random_weights(choice)
        assert random_init is not None
        return LoadedWeights(choice, random_init.arrays, random_init.checksum, random_pca(choice.seed or 0))
    arrays = load_checkpoint(str(choice.path))
    pca = load_pca(choice.pca_path) if choice.pca_path else None
    smoke, checksum = None, weights_checksum(arrays)
    if choice.source == "audioset" and pca is not None:
        answers = reference_answers(arrays, checksum, smoke_windows(), cache)[0]
        smoke = smoke_statistics(answers, pca)
        if failures := smoke_failures(smoke):
            raise WeightsError(
                f"{choice.path} fails the release's smoke test (a 1 kHz sine: {'; '.join(failures)}): the file or "
                "this machine's TensorFlow gives wrong numbers; delete the file to have it downloaded again, or use "
                "weights=file for a checkpoint of your own"
            )
    return LoadedWeights(choice, arrays, checksum, pca, smoke)


@dataclass(frozen=True)
class RandomInit:
    """Random weights: float32 arrays by checkpoint name, and their checksum."""

    arrays: dict[str, NDArray[np.float32]]
    checksum: str


def init_random_weights(choice: WeightsChoice) -> RandomInit | None:
    """Make random weights, while TensorFlow is imported; return None where the weights are in a file."""
    if choice.source != "random":
        return None
    arrays = random_weights(choice.seed or 0)
    return RandomInit(arrays, weights_checksum(arrays))
