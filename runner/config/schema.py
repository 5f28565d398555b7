"""The typed configuration of a run: one dataclass per group, in ``runner.config.groups``, whose checks it makes itself.

The dataclasses hold the defaults, and conf/ the values that an option changes.  Hydra merges each YAML file of a group
into the group's dataclass in ``RunConfig``, or into that of its option, which its ``defaults`` name (registered under
``schema/``), so that an unknown key or a wrong type is refused while composing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from runner.config.checks import check_values, one_of
from runner.config.groups.dataset import (
    DatasetConfig,
    FolderDataset,
    ManifestDataset,
    PackedDataset,
    ParquetDataset,
    WebDataset,
)
from runner.config.groups.device import DEVICES, DeviceConfig
from runner.config.groups.engine import EngineConfig, RayEngineConfig
from runner.config.groups.evaluate import EvaluateConfig
from runner.config.groups.frontend import FrontendConfig
from runner.config.groups.memory import AUTO, MemoryConfig
from runner.config.groups.model import (
    InstalledModel,
    ModelConfig,
    SavedModelConfig,
    VGGishConfig,
    YamnetConfig,
    installed_models,
)
from runner.config.groups.output import POSTPROCESSES, OutputConfig
from runner.config.groups.parity import ParityConfig, ToleranceConfig
from runner.config.groups.paths import PathsConfig
from runner.config.groups.precision import PRECISIONS, PrecisionConfig
from runner.config.groups.profile import ProfileConfig
from runner.config.groups.tracking import TrackingConfig
from runner.config.groups.weights import AudiosetWeights, AutoWeights, FileWeights, RandomWeights, WeightsConfig
from runner.core.errors import ConfigError
from runner.core.layout import FORMATS

if TYPE_CHECKING:
    from runner.audio.framing import Framing
    from runner.audio.preparation import Preparation

__all__ = [
    "AUTO",
    "DEVICES",
    "GROUPS",
    "POSTPROCESSES",
    "PRECISIONS",
    "AudiosetWeights",
    "AutoWeights",
    "DatasetConfig",
    "DeviceConfig",
    "EngineConfig",
    "EvaluateConfig",
    "FileWeights",
    "FolderDataset",
    "FrontendConfig",
    "InstalledModel",
    "ManifestDataset",
    "MemoryConfig",
    "ModelConfig",
    "OutputConfig",
    "PackedDataset",
    "ParityConfig",
    "ParquetDataset",
    "PathsConfig",
    "PrecisionConfig",
    "ProfileConfig",
    "RandomWeights",
    "RayEngineConfig",
    "RunConfig",
    "SavedModelConfig",
    "ToleranceConfig",
    "TrackingConfig",
    "VGGishConfig",
    "WebDataset",
    "WeightsConfig",
    "YamnetConfig",
    "from_dict",
    "schemas",
]


@dataclass(kw_only=True)
class RunConfig:
    """One composed run."""

    device: DeviceConfig = field(default_factory=DeviceConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    model: ModelConfig
    weights: WeightsConfig
    dataset: DatasetConfig
    frontend: FrontendConfig = field(default_factory=FrontendConfig)
    output: OutputConfig = field(default_factory=OutputConfig)
    parity: ParityConfig = field(default_factory=ParityConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    profile: ProfileConfig = field(default_factory=ProfileConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    paths: PathsConfig = field(default_factory=PathsConfig)

    def __post_init__(self) -> None:
        spec, hop_s = self.model.spec, self.frontend.file_hop_s
        self.frontend.framing(spec)  # raises for a hop or window that the model can't have
        if self.precision.name not in ("auto", *spec.precisions):
            raise ConfigError(
                f"precision={self.precision.name} is not possible with model={self.model.name}: use one of auto, "
                f"{', '.join(spec.precisions)}"
            )
        if short := [pool_s for pool_s in self.output.pool if pool_s < hop_s]:
            raise ConfigError(
                f"output.pool has {short[0]:g} s, which is less than the {hop_s:g} s from one example to the next: "
                "use a longer one"
            )
        self._check_postprocess()

    def _check_postprocess(self) -> None:
        """Check that the model has the projection asked for, and is post-processed where a format needs it."""
        postprocess = self.output.postprocess
        if not self.model.spec.has_pca:
            if postprocess != "none":
                raise ConfigError(
                    f"output.postprocess={postprocess} needs PCA parameters, and model={self.model.name} has none: "
                    "leave it out"
                )
            return
        for name in self.output.formats:
            if (needed := FORMATS[name].postprocess) and needed != postprocess:
                raise ConfigError(
                    f"output.formats has {name}, whose embeddings are post-processed, but output.postprocess is "
                    f"{postprocess}: add output.postprocess={needed}"
                )

    @property
    def preparation(self) -> Preparation:
        """How a clip becomes mono at the model's rate, before its level is known."""
        return self.frontend.preparation(self.model.spec)

    @property
    def framing(self) -> Framing:
        """How a clip's waveform is cut into the model's windows."""
        return self.frontend.framing(self.model.spec)


GROUPS: Mapping[str, type[Any] | Mapping[str, type[Any]]] = {
    "device": DeviceConfig,
    "memory": MemoryConfig,
    "precision": PrecisionConfig,
    "model": {"vggish": VGGishConfig, "yamnet": YamnetConfig, "savedmodel": SavedModelConfig},
    "weights": {"auto": AutoWeights, "audioset": AudiosetWeights, "file": FileWeights, "random": RandomWeights},
    "dataset": {
        "demo": DatasetConfig,
        "folder": FolderDataset,
        "manifest": ManifestDataset,
        "webdataset": WebDataset,
        "parquet": ParquetDataset,
    },
    "frontend": FrontendConfig,
    "output": OutputConfig,
    "parity": ParityConfig,
    "engine": {"local": EngineConfig, "ray": RayEngineConfig},
    "profile": ProfileConfig,
    "evaluate": EvaluateConfig,
    "tracking": TrackingConfig,
    "paths": PathsConfig,
}
"""The dataclass of each group of a run, or of each option of it."""


def schemas() -> dict[str, type[Any]]:
    """Return the dataclasses by the names that conf/ has for them: ``memory``, or ``weights_file`` for one option."""
    named: dict[str, type[Any]] = {"run": RunConfig}
    for group, schema in GROUPS.items():
        named |= (
            {f"{group}_{name}": each for name, each in schema.items()}
            if isinstance(schema, Mapping)
            else {group: schema}
        )
    return named


def from_dict(values: Mapping[str, object]) -> RunConfig:
    """Build the configuration from nested dictionaries: a composed config, or the ``config`` of a spec.json.

    Raises:
        ConfigError: of the first group or key that is missing, unknown or wrong.
    """
    groups = {group: value for group, value in values.items() if isinstance(value, dict)}
    if missing := [group for group in GROUPS if group not in groups]:
        raise ConfigError(f"{', '.join(missing)} has no option: give one, as in {missing[0]}=NAME (see --help)")
    if unknown := [key for key in values if key not in GROUPS]:
        raise ConfigError(f"{unknown[0]} is not a key of the configuration: use one of {', '.join(GROUPS)}")
    check_values(groups)
    return RunConfig(**{group: build_group(group, groups[group]) for group in GROUPS})


def build_group(group: str, values: Mapping[str, Any]) -> Any:
    """Build the dataclass of one group from its keys.

    Raises:
        ConfigError: of the first key that is unknown or wrong.
    """
    schema = GROUPS[group]
    if isinstance(schema, Mapping):
        name = values.get("name", next(iter(schema)))  # model had no name in runs of earlier versions
        if group == "model" and name not in schema:
            schema = {**schema, **dict.fromkeys(installed_models(), InstalledModel)}
        schema = schema[one_of(f"{group}.name", name, tuple(schema))]
    known = [field.name for field in fields(schema)]
    if unknown := [key for key in values if key not in known]:
        raise ConfigError(f"{group}.{unknown[0]} is not a key of the configuration: {group} has {', '.join(known)}")
    return schema(**values)
