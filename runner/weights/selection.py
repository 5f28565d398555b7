"""Selects the weights of a run: a file, the released ones, downloaded once, or random.  No TensorFlow here."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runner.config.schema import AudiosetWeights, AutoWeights, FileWeights, RandomWeights
from runner.core.errors import WeightsError
from runner.weights.download import PCA_PARAMETERS, RELEASE, fetch

if TYPE_CHECKING:
    from runner.config.schema import WeightsConfig
    from runner.weights.download import Progress, ReleasedFile

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WeightsChoice:
    """The weights of a run.

    Attributes:
        requested: the name in the configuration.
        source: audioset, file or random.
        path: the checkpoint; None for random weights.
        pca_path: PCA parameters; None for random weights, and where they are not needed.
        seed: of random weights.
        reason: why these weights, for the user.
        is_random: whether embeddings are for benchmarking only.
        classes_path: the file with the names of the model's classes; None where there is none.
    """

    requested: str
    source: str
    path: str | None
    pca_path: str | None
    seed: int | None
    reason: str
    is_random: bool
    classes_path: str | None = None


@dataclass(frozen=True)
class WeightsRequest:
    """What a run asks of its weights.

    Attributes:
        weights: the configuration.
        models: folder whose subfolders, one a model, hold downloaded files.
        is_demo: whether the data are the built-in demo clips, on which ``auto`` may fall back to random weights.
        needs_pca: whether PCA parameters are needed with the user's own weights.
        progress: called during a download.
    """

    weights: WeightsConfig
    models: Path
    is_demo: bool = False
    needs_pca: bool = False
    progress: Progress | None = None


def resolve_weights(request: WeightsRequest, folder: Path, files: Sequence[ReleasedFile] = RELEASE) -> WeightsChoice:
    """Choose the weights, and download the released ones if necessary.

    Args:
        request: the run's.
        folder: holds the released files.
        files: the release, checkpoint last.

    Raises:
        WeightsError: they are missing or can't be downloaded; the message lists the options.
    """
    weights, progress = request.weights, request.progress
    if isinstance(weights, RandomWeights):
        return _random("random", weights.seed, "weights=random was requested.")
    if isinstance(weights, FileWeights):
        path, pca = _checkpoint_of(weights), _pca_of(weights, folder, progress) if request.needs_pca else None
        return WeightsChoice("file", "file", path, pca, None, "weights=file was requested", False)
    assert isinstance(weights, AudiosetWeights)
    try:
        paths = [fetch(file, folder, weights, progress) for file in files]
    except WeightsError as error:
        if isinstance(weights, AutoWeights) and request.is_demo:
            return _random(
                "auto", weights.seed, f"The released weights are not available, and these are the demo clips. {error}"
            )
        raise
    return WeightsChoice(
        weights.name,
        "audioset",
        str(paths[-1]),
        str(paths[0]),
        None,
        f"the released weights in {folder}",
        False,
    )


def _random(requested: str, seed: int, reason: str) -> WeightsChoice:
    return WeightsChoice(requested, "random", None, None, seed, reason, True)


def _checkpoint_of(weights: FileWeights) -> str:
    path = Path(str(weights.path)).expanduser().absolute()
    if path.is_file() or Path(f"{path}.index").is_file():
        return str(path)
    if path.name.endswith(".index") or path.is_dir():
        raise WeightsError(
            f"weights.path={path} is not a checkpoint: give the V1 file, or the V2 prefix without .index"
        )
    raise WeightsError(f"weights.path={path} does not exist: give a checkpoint's file (V1) or prefix (V2)")


def _pca_of(weights: FileWeights, folder: Path, progress: Progress | None) -> str:
    if weights.pca_path is None:
        return str(fetch(PCA_PARAMETERS, folder, AudiosetWeights(), progress))
    path = Path(weights.pca_path).expanduser().absolute()
    if not path.is_file():
        raise WeightsError(f"weights.pca_path={path} does not exist: give PCA parameters (.npz), or leave it out")
    return str(path)


def random_weights_banner(weights: WeightsChoice) -> str:
    """Return the warning about a run with random weights."""
    return f"RANDOM WEIGHTS: for benchmarking only; embeddings are not meaningful. {weights.reason}"
