"""VGGish as the runner takes it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from runner.core.errors import WeightsError
from runner.models.base import Array, EmbeddingModel, LoadedWeights, RandomInit, Target, Weights
from runner.models.vggish.convolution import calibrate, choose_convolution, remembered_calibration
from runner.vggish import reference
from runner.vggish.arrays import random_weights, weights_checksum
from runner.vggish.checkpoint import load_checkpoint
from runner.vggish.postprocess import load_pca, random_pca
from runner.vggish.smoke_test import smoke_failures, smoke_statistics, smoke_windows
from runner.vggish.spec import VGGISH
from runner.weights.download import RELEASE

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from runner.contract.result import Decision
    from runner.core.model_spec import ModelSpec
    from runner.models.program import Program
    from runner.weights.selection import WeightsChoice


class VGGish(EmbeddingModel):
    """The AudioSet VGGish release.

    Args:
        conv: algorithm of the deep convolutions: auto, direct or winograd.
        spec: its outputs; see ``runner.vggish.spec``.
    """

    release = RELEASE
    has_reference = True

    def __init__(self, conv: str = "auto", spec: ModelSpec = VGGISH) -> None:
        self.spec = spec
        self._conv = conv

    def random_weights(self, seed: int) -> Weights:
        """Draw He-normal weights."""
        return random_weights(seed)

    def read_weights(self, path: str) -> Weights:
        """Read a checkpoint, V1 or V2."""
        return load_checkpoint(path)

    def checksum(self, arrays: Weights) -> str:
        """Return the SHA-256 of the weights."""
        return weights_checksum(arrays)

    def reference(self, weights: Weights, windows: Array, precision: str) -> Array:
        """Compute in NumPy float64."""
        return reference.reference_embeddings(weights, windows, precision, self.spec.outputs[0].name)

    @property
    def reference_version(self) -> str:
        """Digest of the reference's code, and the layer."""
        layer = self.spec.outputs[0].name
        return reference.version() if layer == "embedding" else f"{reference.version()} {layer}"

    def reference_log_mel(self, windows: Array) -> NDArray[np.float64]:
        """Compute the log-mel in NumPy float64."""
        return reference.reference_log_mel(windows)

    def load(self, choice: WeightsChoice, drawn: RandomInit | None = None, cache: Path | None = None) -> LoadedWeights:
        """Load the weights, and run the smoke test of the released ones.

        Raises:
            WeightsError: a file is not a VGGish checkpoint, or the released weights fail the smoke test.
        """
        loaded = super().load(choice, drawn, cache)
        if choice.source == "random":
            return replace(loaded, pca=random_pca(choice.seed or 0))
        if not choice.pca_path:
            return loaded
        loaded = replace(loaded, pca=load_pca(choice.pca_path))
        return replace(loaded, smoke=self._smoke(loaded, cache)) if choice.source == "audioset" else loaded

    def _smoke(self, loaded: LoadedWeights, cache: Path | None) -> dict[str, float]:
        assert loaded.pca is not None
        smoke = smoke_statistics(self.remembered_rows(loaded, smoke_windows(), cache)[0], loaded.pca)
        if failures := smoke_failures(smoke):
            raise WeightsError(
                f"{loaded.choice.path} fails the release's smoke test (a 1 kHz sine: {'; '.join(failures)}): the file "
                "or this machine's TensorFlow gives wrong numbers; delete the file to have it downloaded again, or use "
                "weights=file for a checkpoint of your own"
            )
        return smoke

    def choose_algorithm(self, target: Target, cache: Path | None) -> Decision | None:
        """Choose the algorithm of the deep convolutions, by measuring one layer once a machine."""

        def measured() -> tuple[float, float]:
            return remembered_calibration(cache) if cache else calibrate()

        return choose_convolution(self._conv, target.device, target.precision, measured)

    def make_program(self, weights: Weights, target: Target, algorithm: Decision | None = None) -> Program:
        """Make the program for a device; ``weights`` are taken out."""
        from runner.models.vggish.program import VGGishProgram

        return VGGishProgram(self.spec, weights, target, algorithm)
