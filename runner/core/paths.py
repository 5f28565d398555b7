"""Where things live: the project's own folders in a checkout, the user's when installed."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import TypeGuard
from urllib.parse import unquote, urlsplit

PACKAGE = Path(__file__).resolve().parents[1]


def conf_dir() -> Path:
    """The folder of Hydra's YAML: inside the installed package, else beside it in the checkout."""
    packaged = PACKAGE / "conf"
    return packaged if packaged.is_dir() else PACKAGE.parent / "conf"


def checkout() -> Path | None:
    """The project's root if the package runs from a checkout, else None."""
    root = PACKAGE.parent
    return root if (root / "pyproject.toml").is_file() and (root / "conf").is_dir() else None


def default_models() -> Path:
    """Where weights land unless ``paths.models`` says otherwise."""
    if root := checkout():
        return root / "models"
    from platformdirs import user_cache_path

    return user_cache_path("vggish-runner") / "models"


def default_outputs() -> Path:
    """Where runs land unless ``paths.outputs`` says otherwise."""
    return (checkout() or Path.cwd()) / "outputs"


EXTRAS = {"s3": "s3", "gs": "gs", "gcs": "gs", "hf": "hf"}
"""The extra of this package that has a scheme's driver."""

WORKING_FOLDERS = "stores"
"""Folder, below the outputs, of the folders in which runs and sweeps work whose output is in an object store."""


def is_url(value: str | None) -> TypeGuard[str]:
    """Whether a value of the configuration names an object store rather than a path."""
    return value is not None and "://" in value and not value.startswith("file://")


def as_path(value: str) -> str:
    """A path as it is, or the one that a file:// URL means."""
    return unquote(urlsplit(value).path) if value.startswith("file://") else value


def display_location(output_dir: str | None, folder: object) -> str:
    """What a person is told of where a run's files are: its URL, or its folder."""
    return output_dir if output_dir is not None and is_url(output_dir) else str(folder)


def staging_dir(url: str, outputs: Path) -> Path:
    """The folder of this machine in which a run works whose output is in an object store: always the same for a URL."""
    url = url.rstrip("/")
    name = re.sub(r"[^\w.-]+", "_", url.rsplit("/", 1)[-1])[:60]
    return outputs / WORKING_FOLDERS / f"{name}-{hashlib.sha256(url.encode()).hexdigest()[:12]}"
