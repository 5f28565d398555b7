"""Where things live: the project's own folders in a checkout, the user's when installed."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


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
