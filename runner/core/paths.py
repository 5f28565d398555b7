"""Folders of the project and its user, and URLs that take the place of a folder."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import TypeGuard
from urllib.parse import unquote, urlsplit

PACKAGE = Path(__file__).resolve().parents[1]

WORKING_FOLDERS = "stores"
"""The folder, below ``paths.outputs``, of the staging folders of outputs in object stores."""


def conf_dir() -> Path:
    """Return the folder of Hydra's YAML: inside the installed package, or next to it in a checkout."""
    packaged = PACKAGE / "conf"
    return packaged if packaged.is_dir() else PACKAGE.parent / "conf"


def checkout() -> Path | None:
    """Return the project's root if the package runs from a checkout, otherwise None."""
    root = PACKAGE.parent
    return root if (root / "pyproject.toml").is_file() and (root / "conf").is_dir() else None


def default_models() -> Path:
    """Return the default of ``paths.models``: below the checkout, or in the user's cache."""
    if root := checkout():
        return root / "models"
    from platformdirs import user_cache_path

    return user_cache_path("vggish-runner") / "models"


def default_outputs() -> Path:
    """Return the default of ``paths.outputs``: below the checkout, or the current folder."""
    return (checkout() or Path.cwd()) / "outputs"


def is_url(value: str | None) -> TypeGuard[str]:
    """Return whether a value of the configuration is the URL of an object store rather than a path."""
    return value is not None and "://" in value and not value.startswith("file://")


def as_path(value: str) -> str:
    """Return a path unchanged, and the path of a file:// URL."""
    return unquote(urlsplit(value).path) if value.startswith("file://") else value


def display_location(output_dir: str | None, folder: object) -> str:
    """Return where the user finds a run's files: ``output.dir`` if that is a URL, otherwise the run's folder."""
    return output_dir if output_dir is not None and is_url(output_dir) else str(folder)


def staging_dir(url: str, outputs: Path) -> Path:
    """Return the folder of this machine in which a run works whose output goes to a URL; always the same one."""
    url = url.rstrip("/")
    name = re.sub(r"[^\w.-]+", "_", url.rsplit("/", 1)[-1])[:60]
    return outputs / WORKING_FOLDERS / f"{name}-{hashlib.sha256(url.encode()).hexdigest()[:12]}"
