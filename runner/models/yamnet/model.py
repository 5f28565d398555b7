"""YAMNet as the runner takes it."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.config.schema import AudiosetWeights
from runner.core.errors import WeightsError
from runner.models.base import Array, EmbeddingModel, LoadedWeights, RandomInit, Target, Weights
from runner.models.yamnet.release import CLASS_MAP, RELEASE
from runner.vggish.reference import reference_log_mel
from runner.weights.download import fetch
from runner.yamnet import reference
from runner.yamnet.arrays import random_weights, weights_checksum
from runner.yamnet.class_map import read_classes
from runner.yamnet.constants import EMBEDDING_SIZE, LOG_OFFSET
from runner.yamnet.smoke_test import smoke_failures, smoke_statistics, smoke_windows
from runner.yamnet.spec import YAMNET, yamnet_spec
from runner.yamnet.weights_file import load_weights_file

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from runner.contract.result import Decision
    from runner.models.program import Program
    from runner.weights.selection import WeightsChoice, WeightsRequest


class Yamnet(EmbeddingModel):
    """The AudioSet YAMNet release: an embedding, and scores of 521 classes."""

    release = RELEASE
    has_reference = True

    def __init__(self) -> None:
        self.spec = YAMNET

    def random_weights(self, seed: int) -> Weights:
        """Draw He-normal weights."""
        return random_weights(seed)

    def read_weights(self, path: str) -> Weights:
        """Read Keras' weights file, such as the release's ``yamnet.h5``."""
        return load_weights_file(Path(path))

    def checksum(self, arrays: Weights) -> str:
        """Return the SHA-256 of the weights."""
        return weights_checksum(arrays)

    def reference(self, weights: Weights, windows: Array, precision: str) -> Array:
        """Compute in NumPy float64."""
        return reference.reference_outputs(weights, windows, precision)

    @property
    def reference_version(self) -> str:
        """Digest of the reference's code."""
        return reference.version()

    def reference_log_mel(self, windows: Array) -> NDArray[Any]:
        """Compute the log-mel in NumPy float64."""
        return reference_log_mel(windows, LOG_OFFSET)

    def choose_weights(self, request: WeightsRequest) -> WeightsChoice:
        """Choose the weights, and the file with the names of the classes; random weights have none."""
        choice = super().choose_weights(request)
        if choice.is_random:
            return choice
        classes = None
        with contextlib.suppress(WeightsError):  # with weights of the user's own; see ``load``
            released = request.weights if isinstance(request.weights, AudiosetWeights) else AudiosetWeights()
            classes = str(fetch(CLASS_MAP, request.models / self.spec.name, released, request.progress))
        return replace(choice, pca_path=None, classes_path=classes)

    def load(self, choice: WeightsChoice, drawn: RandomInit | None = None, cache: Path | None = None) -> LoadedWeights:
        """Load the weights and the names of the classes, and run the smoke test of the released ones.

        Raises:
            WeightsError: a file is not YAMNet's, or the released weights fail the smoke test.
        """
        if choice.classes_path:
            self.spec = yamnet_spec(read_classes(Path(choice.classes_path)))
        elif not choice.is_random:
            self.notes = (f"the classes have no names: {CLASS_MAP.name} could not be downloaded",)
        loaded = super().load(choice, drawn, cache)
        return replace(loaded, smoke=self._smoke(loaded, cache)) if choice.source == "audioset" else loaded

    def _smoke(self, loaded: LoadedWeights, cache: Path | None) -> dict[str, float]:
        scores = self.remembered_rows(loaded, smoke_windows(), cache)[0][:, EMBEDDING_SIZE:]
        smoke = smoke_statistics(scores, self.spec.outputs[1].classes)
        if failures := smoke_failures(smoke):
            raise WeightsError(
                f"{loaded.choice.path} fails the release's smoke test ({'; '.join(failures)}, which must be among the "
                "first ten): delete the file to have it downloaded again, or use weights=file for weights of your own"
            )
        return smoke

    def make_program(self, weights: Weights, target: Target, algorithm: Decision | None = None) -> Program:
        """Make the program for a device; ``weights`` are taken out."""
        from runner.models.yamnet.program import YamnetProgram

        return YamnetProgram(self.spec, weights, target)
