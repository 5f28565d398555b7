"""The typed configuration: one dataclass per Hydra group, and the checks that cross their fields.

conf/ holds the values, this module the types.  Hydra merges each YAML file of a group into the dataclass named in its
``defaults`` (registered under ``schema/``), so an unknown key or a wrong type is refused while composing.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from runner.errors import ConfigError

DEVICES = ("auto", "cpu", "gpu", "metal")
PRECISIONS = ("auto", "float32", "tf32", "bfloat16", "float16")
FORMATS = ("parquet", "npz", "tfrecord")
POSTPROCESSES = ("none", "pca", "audioset")


@dataclass
class DeviceConfig:
    """Which device to use: ``name`` is auto, cpu, gpu or metal; ``index`` picks one of several GPUs."""

    name: str = "auto"
    index: int = 0
    strict: bool = False


@dataclass
class MemoryConfig:
    """How much memory to take: on a GPU the allocator, everywhere batch, queue, decode processes and a ceiling.

    ``batch_size`` (examples) and ``decode_workers`` (processes) are chosen by device when null; ``queue_depth`` is the
    number of batches that wait ahead of the device; ``host_memory_mib`` null means no ceiling.
    """

    name: str = "balanced"
    gpu_memory_fraction: float = 0.8
    gpu_allow_growth: bool = True
    batch_size: int | None = None
    batch_size_by_device: dict[str, int] = field(default_factory=dict)
    queue_depth: int = 4
    decode_workers: int | None = None
    host_memory_mib: int | None = None


@dataclass
class PrecisionConfig:
    """The number format of the network's products."""

    name: str = "float32"


@dataclass
class WeightsConfig:
    """Where the network's weights come from; ``kind`` is auto, audioset, file or random."""

    kind: str = "auto"


@dataclass
class RandomWeights(WeightsConfig):
    """Seeded He initialisation: right shapes and speed, meaningless embeddings."""

    kind: str = "random"
    seed: int = 0


@dataclass
class FileWeights(WeightsConfig):
    """A TensorFlow checkpoint (V1 single file or V2 prefix) of one's own; ``pca_path`` null: the released PCA."""

    kind: str = "file"
    path: str | None = None
    pca_path: str | None = None


@dataclass
class AudiosetWeights(WeightsConfig):
    """The released checkpoint, from ``paths.models`` or downloaded once from ``base_url``."""

    kind: str = "audioset"
    base_url: str = "https://storage.googleapis.com/audioset/"
    timeout_s: float = 10.0


@dataclass
class AutoWeights(AudiosetWeights):
    """The released checkpoint if it can be had; on the demo clips only, random weights otherwise."""

    kind: str = "auto"
    seed: int = 0


@dataclass
class DatasetConfig:
    """What to embed; ``kind`` is folder, manifest or demo."""

    kind: str = "demo"


@dataclass
class FolderDataset(DatasetConfig):
    """Every audio file below ``root`` (null: the demo clips) with one of ``extensions`` that match ``pattern``."""

    kind: str = "folder"
    root: str | None = None
    pattern: str = "*"
    extensions: list[str] = field(default_factory=list)
    label_from: str = "parent"


@dataclass
class ManifestDataset(DatasetConfig):
    """The rows of a CSV or Parquet file; paths are relative to ``root`` (null: the file's folder)."""

    kind: str = "manifest"
    path: str | None = None
    root: str | None = None


@dataclass
class FrontendConfig:
    """Waveform to log-mel: hop between examples, what becomes of short clips and tails, which resampler."""

    hop_s: float = 0.96
    short_clips: str = "pad"
    tail: str = "drop"
    resampler: str = "reference"


@dataclass
class OutputConfig:
    """The files a run leaves: ``dir`` null means a new folder under ``paths.outputs``.

    ``formats`` are any of parquet, npz, tfrecord; ``postprocess`` (none, pca, audioset) adds a form to the embedding.
    """

    formats: list[str] = field(default_factory=lambda: ["parquet"])
    postprocess: str = "none"
    dir: str | None = None
    shard_clips: int | None = None
    compression: str = "zstd"


@dataclass
class ToleranceConfig:
    """How far a device may be from the CPU's float32 answers; see ``runner.parity.Parity`` for the measures."""

    rel_err: float = 0.0
    min_cosine: float = 1.0
    scale_err: float = 0.0


@dataclass
class ParityConfig:
    """The parity gate: what a miss does (``action`` is fail or warn), and the tolerances by effective precision."""

    action: str = "fail"
    tolerances: dict[str, ToleranceConfig] = field(default_factory=dict)


@dataclass
class EngineConfig:
    """How the run is carried out; ``stop_grace_s`` is how long Ctrl-C waits for the shards under way."""

    kind: str = "local"
    stop_grace_s: float = 30.0


@dataclass
class TrackingConfig:
    """The MLflow store; ``kind`` is local (sqlite under ``paths.outputs``), server (``uri``) or none."""

    kind: str = "local"
    uri: str | None = None
    experiment: str = "vggish-runner"
    run_name: str | None = None
    log_embeddings: bool = False
    timeout_s: float = 5.0


@dataclass
class PathsConfig:
    """Where weights and outputs live."""

    models: str = "models"
    outputs: str = "outputs"


@dataclass
class RunConfig:
    """One composed run."""

    device: DeviceConfig = field(default_factory=DeviceConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    weights: Any = None  # a WeightsConfig; Any, so that each option of the group brings its own schema
    dataset: Any = None  # a DatasetConfig, likewise
    frontend: FrontendConfig = field(default_factory=FrontendConfig)
    output: OutputConfig = field(default_factory=OutputConfig)
    parity: ParityConfig = field(default_factory=ParityConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    paths: PathsConfig = field(default_factory=PathsConfig)

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dict of the whole configuration, fit for JSON."""
        return asdict(self)


SCHEMAS: dict[str, type[Any]] = {
    "run": RunConfig,
    "device": DeviceConfig,
    "memory": MemoryConfig,
    "precision": PrecisionConfig,
    "weights_random": RandomWeights,
    "weights_file": FileWeights,
    "weights_audioset": AudiosetWeights,
    "weights_auto": AutoWeights,
    "dataset_demo": DatasetConfig,
    "dataset_folder": FolderDataset,
    "dataset_manifest": ManifestDataset,
    "frontend": FrontendConfig,
    "output": OutputConfig,
    "parity": ParityConfig,
    "engine": EngineConfig,
    "tracking": TrackingConfig,
}

_WEIGHTS = {"random": RandomWeights, "file": FileWeights, "audioset": AudiosetWeights, "auto": AutoWeights}
_DATASETS = {"demo": DatasetConfig, "folder": FolderDataset, "manifest": ManifestDataset}


def from_dict(values: dict[str, Any]) -> RunConfig:
    """Build the typed configuration from plain nested values (a composed config, or the ``config`` of a spec.json)."""
    weights, dataset, parity = values["weights"], values["dataset"], values["parity"]
    tolerances = {name: ToleranceConfig(**tolerance) for name, tolerance in parity["tolerances"].items()}
    return RunConfig(
        device=DeviceConfig(**values["device"]),
        memory=MemoryConfig(**values["memory"]),
        precision=PrecisionConfig(**values["precision"]),
        weights=_WEIGHTS[_one_of("weights.kind", weights["kind"], tuple(_WEIGHTS))](**weights),
        dataset=_DATASETS[_one_of("dataset.kind", dataset["kind"], tuple(_DATASETS))](**dataset),
        frontend=FrontendConfig(**values["frontend"]),
        output=OutputConfig(**values["output"]),
        parity=ParityConfig(parity["action"], tolerances),
        engine=EngineConfig(**values["engine"]),
        tracking=TrackingConfig(**values["tracking"]),
        paths=PathsConfig(**values["paths"]),
    )


def validate(config: RunConfig) -> None:
    """Check what types alone cannot: options, ranges, and fields that need one another.

    Raises:
        ConfigError: naming the key, what is wrong with it and what to do.
    """
    _one_of("device.name", config.device.name, DEVICES)
    _one_of("precision.name", config.precision.name, PRECISIONS)
    _one_of("frontend.short_clips", config.frontend.short_clips, ("pad", "skip"))
    _one_of("frontend.tail", config.frontend.tail, ("drop", "pad"))
    _one_of("frontend.resampler", config.frontend.resampler, ("reference", "soxr"))
    _validate_output(config.output)
    _one_of("parity.action", config.parity.action, ("fail", "warn"))
    _one_of("engine.kind", config.engine.kind, ("local",))
    _one_of("tracking.kind", config.tracking.kind, ("local", "server", "none"))
    _at_least("device.index", config.device.index, 0)
    memory = config.memory
    if not 0.0 < memory.gpu_memory_fraction <= 1.0:
        raise ConfigError(
            f"memory.gpu_memory_fraction={memory.gpu_memory_fraction} is not a share of the memory: use 0 < x <= 1"
        )
    _at_least("memory.queue_depth", memory.queue_depth, 1)
    for key in ("batch_size", "decode_workers"):
        if (value := getattr(memory, key)) is not None:
            _at_least(f"memory.{key}", value, 1)
    for device in ("cpu", "gpu", "metal"):
        _at_least(f"memory.batch_size_by_device.{device}", memory.batch_size_by_device.get(device, 0), 1)
    if memory.host_memory_mib is not None:
        _at_least("memory.host_memory_mib", memory.host_memory_mib, 1024)
    hop = config.frontend.hop_s
    if not math.isfinite(hop) or not 0.01 <= hop <= 60 or abs(hop * 100 - round(hop * 100)) > 1e-6:
        raise ConfigError(f"frontend.hop_s={hop} is not a whole number of 10 ms frames: use for example 0.96 or 0.48")
    if missing := [name for name in PRECISIONS[1:] if name not in config.parity.tolerances]:
        raise ConfigError(f"parity.tolerances has none for {', '.join(missing)}: give rel_err, min_cosine, scale_err")
    _at_least("engine.stop_grace_s", config.engine.stop_grace_s, 0)
    if config.tracking.timeout_s <= 0:
        raise ConfigError("tracking.timeout_s must be above 0 seconds: use for example 5")
    if not config.tracking.experiment.strip():
        raise ConfigError("tracking.experiment is empty: give the MLflow experiment a name")
    _validate_weights(config.weights)
    _validate_dataset(config.dataset)


def _validate_output(output: OutputConfig) -> None:
    if not output.formats:
        raise ConfigError("output.formats is empty: name at least one, as in output.formats=[parquet,npz]")
    for name in output.formats:
        _one_of("output.formats", name, FORMATS)
    _one_of("output.postprocess", output.postprocess, POSTPROCESSES)
    _one_of("output.compression", output.compression, ("zstd", "snappy", "gzip", "none"))
    if "tfrecord" in output.formats and output.postprocess != "audioset":
        raise ConfigError(
            f"output.formats has tfrecord, whose embeddings are AudioSet's 8-bit ones, but output.postprocess is "
            f"{output.postprocess}: add output.postprocess=audioset"
        )
    if output.shard_clips is not None:
        _at_least("output.shard_clips", output.shard_clips, 1)


def _validate_weights(weights: WeightsConfig) -> None:
    if isinstance(weights, FileWeights) and not weights.path:
        raise ConfigError("weights=file needs weights.path: give the checkpoint, as in weights.path=/data/model.ckpt")
    if isinstance(weights, RandomWeights | AutoWeights) and not 0 <= weights.seed < 2**32:
        raise ConfigError(f"weights.seed={weights.seed} is not a seed: use a whole number from 0 to 2**32 - 1")
    if isinstance(weights, AudiosetWeights):
        if weights.timeout_s <= 0:
            raise ConfigError("weights.timeout_s must be above 0 seconds: use for example 10")
        if not weights.base_url.startswith(("http://", "https://")):
            raise ConfigError(f"weights.base_url={weights.base_url} is not a web address: use http:// or https://")


def _validate_dataset(dataset: DatasetConfig) -> None:
    if isinstance(dataset, FolderDataset):
        _one_of("dataset.label_from", dataset.label_from, ("parent", "none"))
        if not dataset.extensions:
            raise ConfigError("dataset.extensions is empty: name at least one, as in dataset.extensions=[wav,flac]")
        if dataset.root is not None and not Path(dataset.root).expanduser().is_dir():
            what = "is a file, not a folder" if Path(dataset.root).expanduser().is_file() else "does not exist"
            raise ConfigError(f"dataset.root={dataset.root} {what}: give a folder of audio files")
    if isinstance(dataset, ManifestDataset):
        if not dataset.path:
            raise ConfigError("dataset=manifest needs dataset.path: give a CSV or Parquet file with a column 'path'")
        if not Path(dataset.path).expanduser().is_file():
            raise ConfigError(f"dataset.path={dataset.path} does not exist: give a CSV or Parquet file")
        if dataset.root is not None and not Path(dataset.root).expanduser().is_dir():
            raise ConfigError(f"dataset.root={dataset.root} does not exist: give the folder that paths start from")


def _one_of(key: str, value: str, options: tuple[str, ...]) -> str:
    if value not in options:
        raise ConfigError(f"{key}={value} is not an option: use one of {', '.join(options)}")
    return value


def _at_least(key: str, value: float, lowest: float) -> None:
    if value < lowest:
        raise ConfigError(f"{key}={value} is too small: use {lowest} or more")
