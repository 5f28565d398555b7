"""``model=savedmodel``: any TensorFlow SavedModel or Keras file from waveform to embeddings."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.core.errors import ConfigError, WeightsError
from runner.core.model_spec import Output
from runner.core.paths import is_url
from runner.models.base import EmbeddingModel, LoadedWeights, RandomInit, Weights
from runner.models.savedmodel.download import fetch_model
from runner.weights.selection import WeightsChoice

if TYPE_CHECKING:
    from runner.config.schema import SavedModelConfig
    from runner.devices.detection import DeviceType
    from runner.weights.selection import WeightsRequest


class SavedModel(EmbeddingModel):
    """A model that is a file: its weights are in it, and its outputs are known once it is loaded.

    Args:
        config: its path, rate and window.
    """

    def __init__(self, config: SavedModelConfig) -> None:
        self.spec = config.spec
        self._config = config
        self._path = ""
        self.notes: list[str] = []

    def choose_weights(self, request: WeightsRequest) -> WeightsChoice:
        """Find the model's file or folder; one at a URL is downloaded once."""
        if (weights := request.weights.name) != "auto":
            raise ConfigError(f"weights={weights} is of no use: model=savedmodel has its own, in model.path")
        location = str(self._config.path)
        path = (
            fetch_model(location, request.models / self.spec.name) if is_url(location) else Path(location).expanduser()
        )
        path = path.absolute()
        if not path.exists():
            raise WeightsError(f"model.path={location} does not exist: give a SavedModel's folder, or a .keras file")
        return WeightsChoice(weights, "file", str(path), None, None, f"the weights in {location}", False)

    def load(self, choice: WeightsChoice, drawn: RandomInit | None = None, cache: Path | None = None) -> LoadedWeights:
        """Load the model once on the CPU, to know its outputs.

        Raises:
            WeightsError: it can't be loaded, or does not map windows of this length to vectors.
        """
        from runner.models.savedmodel.program import load_and_probe

        self._path = str(choice.path)
        function, outputs = load_and_probe(self._path, self._config, self.spec)
        self.spec = replace(self.spec, outputs=self._with_classes(outputs))
        if not function.is_batched:
            self.notes.append("model.path takes one window at a time, and is slow: export it with a batch dimension")
        return LoadedWeights(choice, {}, _checksum(Path(self._path), f"{self._config.signature}"))

    def _with_classes(self, outputs: Sequence[Output]) -> tuple[Output, ...]:
        """Give the output of class scores the names of ``model.classes``."""
        if (path := self._config.classes) is None:
            return tuple(outputs)
        try:
            names = tuple(Path(path).expanduser().read_text(encoding="utf-8").splitlines())
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"model.classes={path} can't be read ({error}): give a text file") from error
        if [output.width for output in outputs].count(len(names)) != 1:
            widths = ", ".join(f"{output.name} {output.width}" for output in outputs)
            raise ConfigError(
                f"model.classes={path} has {len(names)} lines, and not one output has as many values ({widths}): "
                "give one name a line"
            )
        return tuple(replace(output, classes=names) if output.width == len(names) else output for output in outputs)

    def build(self, weights: Weights, precision: str, device: DeviceType) -> Callable[[Any], Mapping[str, Any]]:
        """Load the model onto the device in whose scope this is called; XLA may fail to compile it."""
        from runner.models.savedmodel.program import load_function

        return load_function(self._path, self._config.signature, self.spec.window_samples, device.value)


def _checksum(path: Path, salt: str) -> str:
    """Return the SHA-256 over the names and contents of a model's files."""
    digest = hashlib.sha256(salt.encode())
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    for file in files:
        digest.update(f"{file.relative_to(path).as_posix()} {file.stat().st_size} ".encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
