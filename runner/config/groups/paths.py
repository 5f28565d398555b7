"""``paths``: where weights and outputs are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass
class PathsConfig:
    """Where weights and outputs are: in a checkout its own folders, installed the user's cache and ``./outputs``."""

    models: str = "models"
    """Folder of downloaded weights, and of values that are measured once on a machine."""

    outputs: str = "outputs"
    """Folder of runs, sweeps, and the MLflow database."""

    @property
    def models_folder(self) -> Path:
        """``models``, absolute."""
        return Path(self.models).expanduser().resolve()

    @property
    def outputs_folder(self) -> Path:
        """``outputs``, absolute."""
        return Path(self.outputs).expanduser().resolve()
