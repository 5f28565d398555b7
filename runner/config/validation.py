"""The checks of a configuration that types alone cannot make: options, ranges, and keys that need one another."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING

from runner.config.arguments import check_free_of_credentials
from runner.config.ray_address import address_of
from runner.config.schema import (
    AUTO,
    DEVICES,
    FORMATS,
    POSTPROCESSES,
    PRECISIONS,
    AudiosetWeights,
    AutoWeights,
    FileWeights,
    FolderDataset,
    ManifestDataset,
    PackedDataset,
    RandomWeights,
    RayEngineConfig,
    ToleranceConfig,
    WebDataset,
    one_of,
)
from runner.core.errors import ConfigError
from runner.core.paths import is_url
from runner.devices.selection import ALL
from runner.storage.filesystem import open_store
from runner.vggish.framing import hop_samples

if TYPE_CHECKING:
    from runner.config.schema import DatasetConfig, OutputConfig, RunConfig, TrackingConfig, WeightsConfig

_LARGEST = 2**32
"""Of any number; waiting for twice as many seconds overflows the system's clocks."""


def validate(config: RunConfig) -> None:
    """Check what types alone cannot: options, ranges, and fields that need one another.

    Raises:
        ConfigError: naming the key, what is wrong with it and what to do.
    """
    for key, value in _leaves("", config.to_dict()):
        _check_leaf(key, value)
    one_of("device.name", config.device.name, DEVICES)
    one_of("precision.name", config.precision.name, PRECISIONS)
    one_of("model.conv", config.model.conv, ("auto", "direct", "winograd"))
    one_of("frontend.short_clips", config.frontend.short_clips, ("pad", "skip"))
    one_of("frontend.tail", config.frontend.tail, ("drop", "pad"))
    one_of("frontend.resampler", config.frontend.resampler, ("kaiser_best", "soxr"))
    _validate_output(config.output)
    if is_url(url := config.output.dir):
        if url.startswith("hf://") and not url.startswith("hf://buckets/"):
            raise ConfigError(
                "output.dir is in a git repository of the Hub (hf://), where each put would be a commit, of which it "
                "takes few an hour: use hf://buckets/..., or write to a folder and upload that"
            )
        open_store("output.dir", url)  # refuses one with credentials before any message repeats it
    one_of("parity.name", config.parity.name, ("strict", "warn", "off"))
    one_of("engine.name", config.engine.name, ("local", "ray"))
    if isinstance(config.engine, RayEngineConfig):
        _validate_ray(config.engine)
    one_of("tracking.name", config.tracking.name, ("local", "server", "none"))
    if config.device.index != ALL:
        _whole("device.index", config.device.index, 0, "or all")
    memory = config.memory
    if not 0.0 < memory.gpu_memory_fraction <= 1.0:
        raise ConfigError(
            f"memory.gpu_memory_fraction={memory.gpu_memory_fraction} is not a share of the memory: use 0 < x <= 1"
        )
    _at_least("memory.queue_depth", memory.queue_depth, 1)
    _at_least("memory.embeddings_mib", memory.embeddings_mib, 0)
    if memory.batch_size not in (None, AUTO):
        _whole("memory.batch_size", memory.batch_size, 1, "auto, or null for the device's own")
    if memory.decode_workers is not None:
        _at_least("memory.decode_workers", memory.decode_workers, 1)
    for device in ("cpu", "gpu", "metal"):
        _at_least(f"memory.default_batch_size.{device}", memory.default_batch_size.get(device, 0), 1)
    if memory.host_limit_mib is not None:
        _at_least("memory.host_limit_mib", memory.host_limit_mib, 1024)
    try:
        hop_samples(config.frontend.hop_s)
    except ValueError as error:
        raise ConfigError(f"frontend.{error}") from None
    for table, names in (
        ("memory.default_batch_size", DEVICES[1:]),
        ("profile.device_benchmark_s", DEVICES[1:]),
        ("parity.tolerances", PRECISIONS[1:]),
    ):
        group, _, key = table.partition(".")
        for name in getattr(getattr(config, group), key):
            one_of(table, name, names)
    if missing := [name for name in PRECISIONS[1:] if name not in config.parity.tolerances]:
        keys = ", ".join(field.name for field in fields(ToleranceConfig))
        raise ConfigError(f"parity.tolerances has none for {', '.join(missing)}: give {keys}")
    for precision, tolerance in config.parity.tolerances.items():
        _validate_tolerance(f"parity.tolerances.{precision}", tolerance)
    for device in ("cpu", "gpu", "metal"):
        seconds = config.profile.device_benchmark_s.get(device, -1.0)
        _at_least(f"profile.device_benchmark_s.{device}", seconds, 0)
    _at_least("profile.repeat_s", config.profile.repeat_s, 0)
    _at_least("profile.min_batches", config.profile.min_batches, 0)
    _at_least("profile.sample_every_s", config.profile.sample_every_s, 0.05)
    one_of("profile.projection", config.profile.projection, ("pca", "umap", "none"))
    _at_least("engine.shutdown_timeout_s", config.engine.shutdown_timeout_s, 0)
    if config.tracking.timeout_s <= 0:
        raise ConfigError("tracking.timeout_s must be above 0 seconds: use for example 5")
    _validate_tracking(config.tracking)
    _validate_weights(config.weights)
    _validate_dataset(config.dataset)


def _leaves(key: str, value: object) -> Iterator[tuple[str, object]]:
    """Every plain value of a nested configuration, with its dotted key; the values of a list under the list's."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _leaves(f"{key}.{name}" if key else str(name), inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(key, inner)
    else:
        yield key, value


_PATHS = (
    "dataset.root",
    "dataset.path",
    "weights.path",
    "weights.pca_path",
    "output.dir",
    "paths.models",
    "paths.outputs",
)


def _check_leaf(key: str, value: object) -> None:
    """What no value of the configuration may be: NaN, endless, an empty text (an unset variable), with credentials."""
    if isinstance(value, int | float) and not abs(value) <= _LARGEST:
        raise ConfigError(f"{key}={value} is not a finite number that can be used: give one below {_LARGEST:,}")
    if isinstance(value, str):
        if not value.strip():
            raise ConfigError(f"{key} is empty: give it a value, or leave it out")
        check_free_of_credentials(key, value)
        if key in _PATHS and value.startswith("~") and os.path.expanduser(value) == value:
            raise ConfigError(f"{key}={value} is in the home of a user that there is not: give the whole path")


def _validate_tracking(tracking: TrackingConfig) -> None:
    if tracking.name == "server" and not (tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")):
        raise ConfigError("tracking=server needs an address: give tracking.uri=http://host:5000 or MLFLOW_TRACKING_URI")
    if tracking.uri and re.fullmatch(r"[\w.\-]+:\d+", tracking.uri):
        raise ConfigError(f"tracking.uri={tracking.uri} is not an address: give tracking.uri=http://{tracking.uri}")


def _validate_tolerance(key: str, tolerance: ToleranceConfig) -> None:
    """A tolerance that nothing can miss, or nothing meet, is none."""
    for name, value in asdict(tolerance).items():
        lowest, highest = (-1.0, 1.0) if name == "min_cosine" else (0.0, math.inf)
        if not (math.isfinite(value) and lowest <= value <= highest):
            what = "from -1 to 1" if name == "min_cosine" else "from 0, and finite"
            raise ConfigError(f"{key}.{name}={value} is not a tolerance: use a number {what}")


def _validate_output(output: OutputConfig) -> None:
    if not output.formats:
        raise ConfigError("output.formats is empty: name at least one, as in output.formats=[parquet,npz]")
    for name in output.formats:
        one_of("output.formats", name, FORMATS)
    one_of("output.postprocess", output.postprocess, POSTPROCESSES)
    one_of("output.compression", output.compression, ("zstd", "snappy", "gzip", "none"))
    if "tfrecord" in output.formats and output.postprocess != "audioset":
        raise ConfigError(
            f"output.formats has tfrecord, whose embeddings are AudioSet's 8-bit ones, but output.postprocess is "
            f"{output.postprocess}: add output.postprocess=audioset"
        )
    if not 0 < output.upload_timeout_s < math.inf:
        raise ConfigError(
            f"output.upload_timeout_s={output.upload_timeout_s} is not above 0 seconds: use for example 300"
        )
    if output.clips_per_shard is not None:
        _at_least("output.clips_per_shard", output.clips_per_shard, 1)


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


def parse_partition(partition: str) -> tuple[int, int]:
    """(which, of how many) of a ``dataset.partition``, counted from 1.

    Raises:
        ConfigError: it is not of the form i/n with 1 ≤ i ≤ n.
    """
    which, slash, of = str(partition).partition("/")
    if not (slash and which.isdecimal() and of.isdecimal() and 1 <= int(which) <= int(of)):
        raise ConfigError(f"dataset.partition={partition} is not i/n: use for example 1/4 to 4/4 on four machines")
    return int(which), int(of)


def _validate_dataset(dataset: DatasetConfig) -> None:
    one_of("dataset.on_error", dataset.on_error, ("skip", "fail"))
    one_of("dataset.on_truncated", dataset.on_truncated, ("keep", "skip"))
    most = dataset.max_skipped
    if most is not None and not (0 <= most < math.inf and (most < 1 or most == int(most))):
        raise ConfigError(
            f"dataset.max_skipped={most} is neither a number of clips nor a share of them: use for example 100 or 0.05"
        )
    for key in ("decode_timeout_s", "max_duration_s", "download_timeout_s"):
        if not getattr(dataset, key) > 0:
            raise ConfigError(f"dataset.{key} must be above 0 seconds: use for example 120")
    if dataset.partition is not None:
        parse_partition(dataset.partition)
    elif dataset.listing is not None:
        raise ConfigError("dataset.listing is what partitions read: give dataset.partition=i/n too, or leave it out")
    if is_url(dataset.listing):
        open_store("dataset.listing", dataset.listing)
    _at_least("dataset.prefetch", dataset.prefetch, 1)
    for key in ("root", "path"):
        if is_url(url := getattr(dataset, key, None)):
            open_store(f"dataset.{key}", str(url))
    if isinstance(dataset, FolderDataset):
        one_of("dataset.label_from", dataset.label_from, ("parent", "none"))
        if not dataset.extensions:
            raise ConfigError("dataset.extensions is empty: name at least one, as in dataset.extensions=[wav,flac]")
        if not (dataset.root is None or is_url(dataset.root) or Path(dataset.root).expanduser().is_dir()):
            what = "is a file, not a folder" if Path(dataset.root).expanduser().is_file() else "does not exist"
            raise ConfigError(f"dataset.root={dataset.root} {what}: give a folder of audio files")
    if isinstance(dataset, PackedDataset):
        _validate_packed(dataset)
    if isinstance(dataset, ManifestDataset):
        if not dataset.path:
            raise ConfigError("dataset=manifest needs dataset.path: give a CSV or Parquet file with a column 'path'")
        if not (is_url(dataset.path) or Path(dataset.path).expanduser().is_file()):
            raise ConfigError(f"dataset.path={dataset.path} does not exist: give a CSV or Parquet file")
        if not (dataset.root is None or is_url(dataset.root) or Path(dataset.root).expanduser().is_dir()):
            raise ConfigError(f"dataset.root={dataset.root} does not exist: give the folder that paths start from")


def _validate_ray(engine: RayEngineConfig) -> None:
    address_of(engine)
    _whole("engine.min_size", engine.min_size, 1, "or leave it out")
    if engine.max_size != AUTO:
        _whole("engine.max_size", engine.max_size, engine.min_size, "which is engine.min_size, or auto")
    for key in ("num_cpus_per_actor", "num_gpus_per_actor"):
        if getattr(engine, key) is not None:
            _at_least(f"engine.{key}", getattr(engine, key), 0)
    for key in ("resources_per_actor", "runtime_env"):
        if not isinstance(getattr(engine, key) or {}, dict):
            raise ConfigError(f"engine.{key} is not a mapping: give it as 'engine.{key}={{name:value}}'")
    for name, amount in (engine.resources_per_actor or {}).items():
        if not isinstance(amount, int | float) or amount < 0:
            raise ConfigError(f"engine.resources_per_actor.{name}={amount} is not an amount: use a number from 0")
    _at_least("engine.wait_s", engine.wait_s, 0)
    check_free_of_credentials("engine.runtime_env", str(engine.runtime_env))


def _validate_packed(dataset: PackedDataset) -> None:
    what = "a tar" if isinstance(dataset, WebDataset) else "a Parquet file"
    if not dataset.path:
        raise ConfigError(
            f"dataset={dataset.name} needs dataset.path: give {what}, a folder or URL of them, or a pattern with "
            "{000..123} or *"
        )
    if dataset.path.startswith("pipe:") or "::" in dataset.path:
        raise ConfigError(
            f"dataset.path={dataset.path} is WebDataset's way to name a command or several places, and no path: "
            "give a path or an object store's URL"
        )
    is_plain = not (is_url(dataset.path) or re.search(r"[*?\[{]", dataset.path))
    if is_plain and not Path(dataset.path).expanduser().exists():
        raise ConfigError(f"dataset.path={dataset.path} does not exist: give {what}, or a folder of them")
    if isinstance(dataset, WebDataset):
        if not dataset.extensions:
            raise ConfigError("dataset.extensions is empty: name at least one, as in dataset.extensions=[wav,flac]")
        if not dataset.label_from.strip(":"):
            raise ConfigError("dataset.label_from is empty: use parent, none, or an extension as cls or json:KEY")


def _whole(key: str, value: object, lowest: int, otherwise: str) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < lowest:
        raise ConfigError(f"{key}={value} is not an option: use a whole number from {lowest}, {otherwise}")


def _at_least(key: str, value: float, lowest: float) -> None:
    if value < lowest:
        raise ConfigError(f"{key}={value} is too small: use {lowest} or more")
