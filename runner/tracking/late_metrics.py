"""Adds to a run in MLflow what was measured of it after its end."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from runner.config.schema import TrackingConfig
from runner.core.paths import default_outputs
from runner.core.redact import without_credentials
from runner.tracking.calls import cut, log_batch, metrics_at
from runner.tracking.client import connected, find_run, store_uri

if TYPE_CHECKING:
    from runner.contract.tracking import TrackingState


def log_late_metrics(
    state: TrackingState | None,
    metrics: Mapping[str, float],
    tags: Mapping[str, str],
    files: Iterable[tuple[Path, str | None]] = (),
) -> bool:
    """Log metrics, tags and files into the MLflow run that a run's tracking.json names.

    A store whose address has credentials, which are noted nowhere, is found by MLFLOW_TRACKING_URI.

    Args:
        state: of the run in MLflow; None if it was never logged.
        metrics: by name.
        tags: by name.
        files: paths, each with the folder of artifacts that it goes to, or None.

    Returns:
        Whether there is such a run; False where there never was, or the store has it no more.

    Raises:
        TrackingError: MLflow can't be reached.
    """
    if state is None:
        return False
    tracking = TrackingConfig(name="server", uri=state.uri)
    by_environment = store_uri(TrackingConfig(), default_outputs())
    if without_credentials(by_environment) == state.uri:
        tracking = TrackingConfig(name="server", uri=by_environment)
    with connected(tracking, default_outputs(), "log to") as client:
        if find_run(client, state.run_id) is None:
            return False
        log_batch(client, state.run_id, metrics=metrics_at(metrics, int(1000 * time.time())), tags=cut(tags))
        for path, folder in files:
            client.log_artifact(state.run_id, str(path), folder)
    return True
