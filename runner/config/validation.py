"""Checks of a configuration against its surroundings: environment variables, files, drivers of object stores.

Checks of values alone are in the ``__post_init__`` of each group's dataclass.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from runner.config.groups.evaluate import check_evaluation
from runner.config.ray_address import address_of
from runner.config.schema import FolderDataset, ManifestDataset, PackedDataset, RayEngineConfig
from runner.core.errors import ConfigError
from runner.core.paths import is_url
from runner.storage.filesystem import open_store

if TYPE_CHECKING:
    from runner.config.schema import DatasetConfig, RunConfig


def validate(config: RunConfig) -> None:
    """Check that the run finds its files, addresses and drivers here.

    Raises:
        ConfigError: naming the key, what is wrong with it and what to do.
    """
    for key, url in (("output.dir", config.output.dir), ("dataset.listing", config.dataset.listing)):
        if is_url(url):
            open_store(key, url)
    if isinstance(config.engine, RayEngineConfig):
        address_of(config.engine)
    if config.tracking.name == "server" and not (config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")):
        raise ConfigError("tracking=server needs an address: give tracking.uri=http://host:5000 or MLFLOW_TRACKING_URI")
    _check_dataset(config.dataset)
    check_evaluation(config.evaluate)


def _check_dataset(dataset: DatasetConfig) -> None:
    for key in ("root", "path"):
        if is_url(url := getattr(dataset, key, None)):
            open_store(f"dataset.{key}", str(url))
    if isinstance(dataset, FolderDataset) and not _passes(dataset.root, Path.is_dir):
        is_file = Path(str(dataset.root)).expanduser().is_file()
        problem = "is a file, not a folder" if is_file else "does not exist"
        raise ConfigError(f"dataset.root={dataset.root} {problem}: give a folder of audio files")
    if isinstance(dataset, ManifestDataset):
        if not _passes(dataset.path, Path.is_file):
            raise ConfigError(f"dataset.path={dataset.path} does not exist: give a CSV or Parquet file")
        if not _passes(dataset.root, Path.is_dir):
            raise ConfigError(f"dataset.root={dataset.root} does not exist: give the folder that paths start from")
    if isinstance(dataset, PackedDataset):
        is_pattern = re.search(r"[*?\[{]", dataset.path or "")
        if not (is_pattern or _passes(dataset.path, Path.exists)):
            raise ConfigError(
                f"dataset.path={dataset.path} does not exist: give {dataset.one_file}, or a folder of them"
            )


def _passes(location: str | None, test: Callable[[Path], bool]) -> bool:
    """Whether a path passes a test; a location that is not set, or is an object store's, is not looked at."""
    return location is None or is_url(location) or test(Path(location).expanduser())
