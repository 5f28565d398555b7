"""The typed configuration of a run: one dataclass per Hydra group.

conf/ holds the values, this module the types, ``runner.config.validation`` the checks.  Hydra merges each YAML file
of a group
into the dataclass named in its ``defaults`` (registered under ``schema/``), so that an unknown key or a wrong type is
refused while composing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeVar

from runner.core.errors import ConfigError
from runner.core.paths import as_path

DEVICES = ("auto", "cpu", "gpu", "metal")

PRECISIONS = ("auto", "float32", "tf32", "bfloat16", "float16")

AUTO = "auto"
"""The ``memory.batch_size`` that is measured on the device."""

FORMATS = ("parquet", "npz", "tfrecord")

POSTPROCESSES = ("none", "pca", "audioset")


@dataclass
class DeviceConfig:
    """Which device to use: ``name`` is auto, cpu, gpu or metal; ``index`` picks one of several GPUs, or is ``all``."""

    name: str = "auto"
    index: Any = 0
    strict: bool = False


@dataclass
class MemoryConfig:
    """How much memory to take: on a GPU the allocator, everywhere batch, queue, decode processes and a ceiling.

    ``batch_size`` (examples) and ``decode_workers`` (processes) are chosen by device when null; a batch size ``auto``
    is measured on the device; ``queue_depth`` is the number of batches that wait ahead of the device;
    ``embeddings_mib`` is what of the embeddings of unfinished shards is kept in memory, and not in a temporary file;
    ``host_limit_mib`` null means no ceiling.
    """

    name: str = "balanced"
    gpu_memory_fraction: float = 0.8
    gpu_allow_growth: bool = True
    batch_size: Any = None
    default_batch_size: dict[str, int] = field(default_factory=dict)
    queue_depth: int = 4
    embeddings_mib: int = 512
    decode_workers: int | None = None
    host_limit_mib: int | None = None


@dataclass
class PrecisionConfig:
    """The number format of the network's products."""

    name: str = "float32"


@dataclass
class ModelConfig:
    """How the network is computed; ``conv`` is auto, direct or winograd."""

    conv: str = "auto"


@dataclass
class WeightsConfig:
    """Where the network's weights come from; ``name`` is auto, audioset, file or random."""

    name: str = "auto"


@dataclass
class RandomWeights(WeightsConfig):
    """Seeded He initialisation: for benchmarking only; embeddings are not meaningful."""

    name: str = "random"
    seed: int = 0


@dataclass
class FileWeights(WeightsConfig):
    """A TensorFlow checkpoint (V1 single file or V2 prefix) of one's own; ``pca_path`` null: the released PCA."""

    name: str = "file"
    path: str | None = None
    pca_path: str | None = None


@dataclass
class AudiosetWeights(WeightsConfig):
    """The released checkpoint, from ``paths.models`` or downloaded once from ``base_url``."""

    name: str = "audioset"
    base_url: str = "https://storage.googleapis.com/audioset/"
    timeout_s: float = 10.0


@dataclass
class AutoWeights(AudiosetWeights):
    """The released checkpoint if it can be had; on the demo clips only, random weights otherwise."""

    name: str = "auto"
    seed: int = 0


@dataclass
class DatasetConfig:
    """What to embed; ``name`` is folder, manifest, webdataset, parquet or demo.

    ``on_error`` (skip or fail) is what a clip that can't be embedded does; ``max_skipped`` stops a run that skips more
    (a whole number of clips, or a share of them below 1); ``on_truncated`` (keep or skip) is for clips that break off;
    a decoder that gives nothing for ``decode_timeout_s`` seconds is given up, and a clip longer than
    ``max_duration_s`` too.
    Of an object store each decode process fetches ``prefetch`` clips ahead, and a clip that is not given within
    ``download_timeout_s`` seconds, however often it is tried, is skipped.
    ``partition`` (``2/5``) takes the second fifth of the shards, for a machine of five; see ``vggish-runner merge``.
    ``listing`` is a file, by path or URL, that the first of those machines makes and all plan from.
    """

    name: str = "demo"
    on_error: str = "skip"
    max_skipped: float | None = None
    on_truncated: str = "keep"
    decode_timeout_s: float = 120.0
    max_duration_s: float = 172800.0
    prefetch: int = 8
    download_timeout_s: float = 60.0
    partition: str | None = None
    listing: str | None = None


@dataclass
class FolderDataset(DatasetConfig):
    """Every audio file below ``root`` (null: the demo clips) with one of ``extensions`` that match ``pattern``."""

    name: str = "folder"
    root: str | None = None
    pattern: str = "*"
    extensions: list[str] = field(default_factory=list)
    label_from: str = "parent"


@dataclass
class ManifestDataset(DatasetConfig):
    """The rows of a CSV or Parquet file; paths are relative to ``root`` (null: the file's folder).

    They may not lead out of it unless ``allow_paths_outside_root`` is set.
    """

    name: str = "manifest"
    path: str | None = None
    root: str | None = None
    allow_paths_outside_root: bool = False


@dataclass
class PackedDataset(DatasetConfig):
    """Clips packed in the files that ``path`` names: one, all below a folder or prefix, or a pattern.

    ``prefix`` puts the names of those files before those of clips.
    """

    path: str | None = None
    prefix: bool = False

    def asked(self) -> tuple[Any, ...]:
        """What decides, beside a container's content, what is listed of it."""
        return ()


@dataclass
class WebDataset(PackedDataset):
    """The members of tars with one of ``extensions``; the label is their folder's name or another member's content."""

    name: str = "webdataset"
    extensions: list[str] = field(default_factory=list)
    label_from: str = "parent"

    def asked(self) -> tuple[Any, ...]:
        return (*sorted(self.extensions), self.label_from)


@dataclass
class ParquetDataset(PackedDataset):
    """The rows of Parquet files; ``audio_column`` null is the only column that may have audio."""

    name: str = "parquet"
    audio_column: str | None = None
    name_column: str | None = None
    label_column: str = "label"

    def asked(self) -> tuple[Any, ...]:
        return self.audio_column, self.name_column, self.label_column


@dataclass
class FrontendConfig:
    """Waveform to log-mel: hop between examples, what becomes of short clips and tails, which resampler."""

    hop_s: float = 0.96
    short_clips: str = "pad"
    tail: str = "drop"
    resampler: str = "kaiser_best"


@dataclass
class OutputConfig:
    """The files a run leaves: ``dir`` is a path or an object store's URL; null: a new folder under ``paths.outputs``.

    ``formats`` are any of parquet, npz, tfrecord; ``postprocess`` (none, pca, audioset) adds a form to the embedding.
    ``upload_timeout_s`` is how long an object store may fail before the run does.
    """

    formats: list[str] = field(default_factory=lambda: ["parquet"])
    postprocess: str = "none"
    dir: str | None = None
    clips_per_shard: int | None = None
    compression: str = "zstd"
    upload_timeout_s: float = 300.0


@dataclass
class ToleranceConfig:
    """How far a device may be from the reference's answers; see ``runner.inference.parity.Parity`` for the measures."""

    rel_err: float = 0.0
    min_cosine: float = 1.0
    scale_err: float = 0.0
    noise_ratio: float = 0.0
    bias_ratio: float = 0.0
    log_mel_err: float = 0.0


@dataclass
class ParityConfig:
    """The parity gate: ``name`` (strict, warn or off) is the effect of a miss; tolerances by effective precision."""

    name: str = "strict"
    tolerances: dict[str, ToleranceConfig] = field(
        default_factory=lambda: {
            "float32": ToleranceConfig(2e-5, 0.999999, 1e-5, 60.0, 30.0, 2e-5),
            "tf32": ToleranceConfig(5e-3, 0.99999, 1e-3, 2.0, 1.5, 2e-3),
            "float16": ToleranceConfig(5e-3, 0.99999, 1e-3, 2.0, 1.5, 2e-3),
            "bfloat16": ToleranceConfig(3e-2, 0.9998, 5e-3, 1.5, 0.9, 2e-3),
        }
    )


@dataclass
class EngineConfig:
    """How the run is carried out; ``shutdown_timeout_s`` is how long Ctrl-C waits for the shards under way."""

    name: str = "local"
    shutdown_timeout_s: float = 30.0


@dataclass
class RayEngineConfig(EngineConfig):
    """Actors on a Ray cluster; ``address`` null is RAY_ADDRESS, or a Ray that is started here and stopped afterwards.

    A run has up to ``max_size`` actors (``auto``: as many as the machines that are there hold), and asks for
    ``min_size`` of them whether there is room or not, so that an autoscaler makes it.  What an actor takes is decided
    by the cluster's machines where null; ``resources_per_actor`` are Ray's custom resources.  ``wait_s`` is how
    long a run waits for a machine while it has no actor; ``runtime_env`` is what Ray is to set up for actors.
    """

    name: str = "ray"
    address: str | None = None
    min_size: int = 1
    max_size: Any = AUTO
    num_cpus_per_actor: float | None = None
    num_gpus_per_actor: float | None = None
    resources_per_actor: Any = None
    runtime_env: Any = None
    wait_s: float = 600.0
    dashboard: bool = False


@dataclass
class ProfileConfig:
    """What is measured and drawn beside the run itself.

    ``device_benchmark_s`` is seconds for each figure of the device by itself, by kind of device.  With ``repeat_s`` or
    ``min_batches`` above 0 the clips are embedded again, without writing, until both are reached, for a mean and a
    spread.  ``sample_every_s`` is how often memory (and in those passes power) is read; ``plots`` draws;
    ``projection`` (pca, umap or none) is how embeddings come to two dimensions; ``batch_size_curve`` measures batch
    sizes; ``trace`` keeps TensorFlow's profile.  ``round`` changes nothing: swept first (``profile.round=1,2,3``) it
    repeats a sweep's jobs in turns, which the verdict takes together.
    """

    name: str = "quick"
    device_benchmark_s: dict[str, float] = field(default_factory=dict)
    repeat_s: float = 0.0
    min_batches: int = 0
    sample_every_s: float = 0.5
    plots: bool = True
    projection: str = "pca"
    batch_size_curve: bool = False
    trace: bool = False
    round: int = 1


@dataclass
class TrackingConfig:
    """The MLflow store; ``name`` is local (sqlite under ``paths.outputs``), server (``uri``) or none.

    ``experiment`` null is MLFLOW_EXPERIMENT_NAME, else MLFLOW_EXPERIMENT_ID, else vggish-runner; ``timeout_s`` is how
    long a call may take where MLFLOW_HTTP_REQUEST_TIMEOUT does not say; ``log_model`` logs the exported model as well.
    """

    name: str = "local"
    uri: str | None = None
    experiment: str | None = None
    run_name: str | None = None
    log_embeddings: bool = False
    log_model: bool = False
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
    model: ModelConfig = field(default_factory=ModelConfig)
    weights: Any = None  # a WeightsConfig; Any, so that each option of the group brings its own schema
    dataset: Any = None  # a DatasetConfig, likewise
    frontend: FrontendConfig = field(default_factory=FrontendConfig)
    output: OutputConfig = field(default_factory=OutputConfig)
    parity: ParityConfig = field(default_factory=ParityConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    profile: ProfileConfig = field(default_factory=ProfileConfig)
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
    "model": ModelConfig,
    "weights_random": RandomWeights,
    "weights_file": FileWeights,
    "weights_audioset": AudiosetWeights,
    "weights_auto": AutoWeights,
    "dataset_demo": DatasetConfig,
    "dataset_folder": FolderDataset,
    "dataset_manifest": ManifestDataset,
    "dataset_webdataset": WebDataset,
    "dataset_parquet": ParquetDataset,
    "frontend": FrontendConfig,
    "output": OutputConfig,
    "parity": ParityConfig,
    "engine": EngineConfig,
    "engine_ray": RayEngineConfig,
    "profile": ProfileConfig,
    "tracking": TrackingConfig,
}

_Made = TypeVar("_Made")

_GROUPS = (
    *("device", "memory", "precision", "model", "weights", "dataset", "frontend"),
    *("output", "parity", "engine", "profile", "tracking", "paths"),
)

_WEIGHTS = {"random": RandomWeights, "file": FileWeights, "audioset": AudiosetWeights, "auto": AutoWeights}

_ENGINES = {"local": EngineConfig, "ray": RayEngineConfig}

_DATASETS: dict[str, type[DatasetConfig]] = {
    "demo": DatasetConfig,
    "folder": FolderDataset,
    "manifest": ManifestDataset,
    "webdataset": WebDataset,
    "parquet": ParquetDataset,
}


def from_dict(values: dict[str, Any]) -> RunConfig:
    """Build the typed configuration from plain nested values (a composed config, or the ``config`` of a spec.json)."""
    if missing := [group for group in _GROUPS if not isinstance(values.get(group), dict)]:
        raise ConfigError(f"{', '.join(missing)} has no option: give one, as in {missing[0]}=NAME (see --help)")
    if unknown := [key for key in values if key not in _GROUPS]:
        raise ConfigError(f"{unknown[0]} is not a key of the configuration: use one of {', '.join(_GROUPS)}")
    weights, dataset, engine, parity = values["weights"], dict(values["dataset"]), values["engine"], values["parity"]
    for key in ("root", "path"):
        if isinstance(dataset.get(key), str):
            dataset[key] = as_path(dataset[key])
    tolerances = {
        name: _made(f"parity.tolerances.{name}", ToleranceConfig, tolerance)
        for name, tolerance in parity["tolerances"].items()
    }
    return RunConfig(
        device=_made("device", DeviceConfig, values["device"]),
        memory=_made("memory", MemoryConfig, values["memory"]),
        precision=_made("precision", PrecisionConfig, values["precision"]),
        model=_made("model", ModelConfig, values["model"]),
        weights=_made("weights", _WEIGHTS[one_of("weights.name", weights["name"], tuple(_WEIGHTS))], weights),
        dataset=_made("dataset", _DATASETS[one_of("dataset.name", dataset["name"], tuple(_DATASETS))], dataset),
        frontend=_made("frontend", FrontendConfig, values["frontend"]),
        output=_made("output", OutputConfig, values["output"]),
        parity=_made("parity", ParityConfig, {**parity, "tolerances": tolerances}),
        engine=_made("engine", _ENGINES[one_of("engine.name", engine["name"], tuple(_ENGINES))], engine),
        profile=_made("profile", ProfileConfig, values["profile"]),
        tracking=_made("tracking", TrackingConfig, values["tracking"]),
        paths=_made("paths", PathsConfig, values["paths"]),
    )


def _made(group: str, kind: type[_Made], values: Mapping[str, Any]) -> _Made:
    known = [each.name for each in fields(kind)]  # type: ignore[arg-type]
    if unknown := [key for key in values if key not in known]:
        raise ConfigError(f"{group}.{unknown[0]} is not a key of the configuration: {group} has {', '.join(known)}")
    return kind(**values)


def one_of(key: str, value: str, options: tuple[str, ...]) -> str:
    """The value, if it is one of the options; else ``ConfigError`` naming them."""
    if value not in options:
        raise ConfigError(f"{key}={value} is not an option: use one of {', '.join(options)}")
    return value
