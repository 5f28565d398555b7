"""``tracking=``: the MLflow store."""

from __future__ import annotations

import re
from dataclasses import dataclass

from runner.config.checks import one_of, positive_seconds
from runner.core.errors import ConfigError


@dataclass
class TrackingConfig:
    """The MLflow store that a run is logged to; a store that can't be reached never ends the run."""

    name: str = "local"
    """local (an SQLite file under ``paths.outputs``), server or none."""

    uri: str | None = None
    """Address of the store, as ``http://host:5000``; null: MLFLOW_TRACKING_URI, else the local file."""

    experiment: str | None = None
    """Name of the experiment; null: MLFLOW_EXPERIMENT_NAME, MLFLOW_EXPERIMENT_ID, else vggish-runner."""

    run_name: str | None = None
    """Name of the run; null: made of the device, memory policy, precision and what a sweep varies."""

    log_embeddings: bool = False
    """Upload the embeddings too; off by default, since they may be large."""

    log_model: bool = False
    """Log the model too, exported with the run's weights and front end."""

    timeout_s: float = 5.0
    """Seconds that a call may take, unless MLFLOW_HTTP_REQUEST_TIMEOUT is set."""

    def __post_init__(self) -> None:
        one_of("tracking.name", self.name, ("local", "server", "none"))
        positive_seconds("tracking.timeout_s", self.timeout_s, 5)
        if self.uri and re.fullmatch(r"[\w.\-]+:\d+", self.uri):
            raise ConfigError(f"tracking.uri={self.uri} is not an address: give tracking.uri=http://{self.uri}")
