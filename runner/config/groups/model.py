"""``model=``: the network."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING

from runner.config.checks import FREE, at_least, one_of, positive_seconds
from runner.core.errors import ConfigError

if TYPE_CHECKING:
    from runner.core.model_spec import ModelSpec
    from runner.models.base import EmbeddingModel

ENTRY_POINTS = "vggish_runner.models"
"""Group of entry points of other packages' models."""


@dataclass
class ModelConfig:
    """The network: an option has its own keys."""

    name: str = "vggish"
    """vggish, yamnet, savedmodel, or the name of an installed package's model."""

    @property
    def spec(self) -> ModelSpec:
        """Rate, windows and outputs; those of a SavedModel are known once it is loaded."""
        raise NotImplementedError(f"model={self.name} has no specification")


@dataclass
class VGGishConfig(ModelConfig):
    """VGGish, and how it is computed."""

    name: str = "vggish"
    """vggish, yamnet, savedmodel, or the name of an installed package's model."""

    layer: str = "embedding"
    """Layer that is written: embedding (fc2, 128 values), fc2 or fc1 (4,096, after ReLU), or pool4 (12,288)."""

    conv: str = field(default="auto", metadata=FREE)
    """Algorithm of the deep convolutions on a CPU in float32: direct, winograd, or auto (the faster, measured once)."""

    def __post_init__(self) -> None:
        one_of("model.layer", self.layer, ("embedding", "pool4", "fc1", "fc2"))
        one_of("model.conv", self.conv, ("auto", "direct", "winograd"))

    @property
    def spec(self) -> ModelSpec:
        from runner.vggish.spec import vggish_spec

        return vggish_spec(self.layer)


@dataclass
class YamnetConfig(ModelConfig):
    """YAMNet."""

    name: str = "yamnet"
    """vggish, yamnet, savedmodel, or the name of an installed package's model."""

    @property
    def spec(self) -> ModelSpec:
        from runner.yamnet.spec import YAMNET

        return YAMNET


@dataclass
class SavedModelConfig(ModelConfig):
    """A TensorFlow SavedModel or Keras file that maps waveform to embeddings.

    Loading it runs its graph: take models from sources you trust alone.
    """

    name: str = "savedmodel"
    """vggish, yamnet, savedmodel, or the name of an installed package's model."""

    path: str | None = None
    """Folder of a SavedModel, or a .keras file; a URL is downloaded once into ``paths.models``."""

    sample_rate: int = 16000
    """Hz of the waveform that it takes."""

    window_s: float = 0.96
    """Seconds of one window, which it turns into one vector an output."""

    hop_s: float = 0.96
    """Seconds from one window to the next; ``window_s`` if left out."""

    signature: str | None = None
    """Signature, or name of a function of its object; null: serving_default, else the object itself."""

    outputs: list[str] = field(default_factory=list)
    """Outputs to write, by name, the one to evaluate first; empty: all that are one vector a window."""

    classes: str | None = None
    """Text file with the names of the classes, one a line, of the output that has a score for each."""

    def __post_init__(self) -> None:
        if not self.path:
            raise ConfigError("model=savedmodel needs model.path: give its folder, as in model.path=/data/perch")
        at_least("model.sample_rate", self.sample_rate, 1000)
        positive_seconds("model.window_s", self.window_s, 1)
        positive_seconds("model.hop_s", self.hop_s, 1)
        for key in ("window_s", "hop_s"):
            samples = getattr(self, key) * self.sample_rate
            if abs(samples - round(samples)) > 1e-6 * samples:
                raise ConfigError(
                    f"model.{key}={getattr(self, key)} is {samples:g} samples at {self.sample_rate} Hz: use a whole "
                    f"number of samples, as {round(samples) / self.sample_rate:.10g}"
                )

    @property
    def spec(self) -> ModelSpec:
        from runner.core.model_spec import ModelSpec

        return ModelSpec(
            name=self.name,
            sample_rate=self.sample_rate,
            window_samples=round(self.window_s * self.sample_rate),
            hop_samples=round(self.hop_s * self.sample_rate),
            outputs=(),
            precisions=("float32", "tf32"),
        )


@dataclass
class InstalledModel(ModelConfig):
    """A model of another package, which has it as an entry point of the group ``vggish_runner.models``."""

    name: str = ""
    """vggish, yamnet, savedmodel, or the name of an installed package's model."""

    @property
    def spec(self) -> ModelSpec:
        return load_installed_model(self.name).spec


@functools.cache
def installed_models() -> dict[str, EntryPoint]:
    """Return the entry points of other packages' models by name; none of them is imported."""
    return {point.name: point for point in entry_points(group=ENTRY_POINTS)}


def load_installed_model(name: str) -> type[EmbeddingModel]:
    """Import another package's subclass of ``EmbeddingModel``.

    Raises:
        ConfigError: its import fails.
    """
    point = installed_models()[name]
    try:
        model: type[EmbeddingModel] = point.load()
    except Exception as error:
        raise ConfigError(f"model={name} ({point.value}) can't be imported: {type(error).__name__}: {error}") from error
    return model
