"""The connection to MLflow: address, time limits, experiment."""

from __future__ import annotations

import json
import logging
import os
import shlex
import socket
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from runner.core.errors import ConfigError, RunnerError
from runner.core.imports import without_collection
from runner.core.redact import without_credentials
from runner.tracking.links import VIEW

if TYPE_CHECKING:
    from mlflow.entities import Experiment, Run
    from mlflow.tracking import MlflowClient

    from runner.config.schema import TrackingConfig

_VIEW_TAG = "mlflow.sharedViewState."

_COLUMNS = {
    "attributes": "Dataset",
    "metrics": "realtime_factor best_realtime_factor repeat_realtime_factor_std startup_s rss_peak_mib parity_rel_err",
    "params": "actual.device actual.memory actual.precision actual.memory.batch_size",
    "tags": "bottleneck parity.passed device.name",
}
"""Columns of ``VIEW``."""

_VIEW_STATE = json.dumps(
    {"selectedColumns": [f"{table}.`{name}`" for table, names in _COLUMNS.items() for name in names.split()]}
)

_EXPERIMENT_TAGS = {f"{_VIEW_TAG}{VIEW}": _VIEW_STATE, "mlflow.experimentKind": "custom_model_development"}
"""The second one is for UIs without ``workflowType`` (see ``links``): the runs train models, and are no prompts."""

_EXPERIMENT = "vggish-runner"

_DATABASE_WAIT_S = 60
"""Seconds to wait while another process creates the database."""


class TrackingError(RunnerError):
    """MLflow can't be reached; ``vggish-runner track`` logs the run later."""

    kind = "tracking"


def store_uri(tracking: TrackingConfig, outputs: Path) -> str:
    """Return ``tracking.uri``, else MLFLOW_TRACKING_URI, else the SQLite database under the outputs.

    Raises:
        ConfigError: ``tracking=server`` with neither.
    """
    if uri := tracking.uri or os.environ.get("MLFLOW_TRACKING_URI"):
        return uri
    if tracking.name == "server":
        raise ConfigError("tracking=server needs an address: give tracking.uri=http://host:5000 or MLFLOW_TRACKING_URI")
    return f"sqlite:///{outputs.resolve() / 'mlflow.db'}"


def experiment_of(tracking: TrackingConfig) -> str:
    """Return the experiment's name; its id where only MLFLOW_EXPERIMENT_ID is set."""
    return _named(tracking) or os.environ.get("MLFLOW_EXPERIMENT_ID") or _EXPERIMENT


def _named(tracking: TrackingConfig) -> str | None:
    return tracking.experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME")


def ui_command(uri: str) -> str:
    """Return the command that opens the runs in MLflow's UI."""
    if uri.startswith(("http://", "https://")):
        return f"open {without_credentials(uri)}"
    return f"mlflow ui --backend-store-uri {shlex.quote(without_credentials(uri))} --host 127.0.0.1"


@contextmanager
def connected(tracking: TrackingConfig, outputs: Path, action: str = "read") -> Iterator[MlflowClient]:
    """Yield a client of the store, without creating the experiment.

    Args:
        tracking: the run's settings.
        outputs: the folder of the local store.
        action: ``read`` or ``log to``, for the message of errors.

    Raises:
        TrackingError: of any call inside the block that fails.
    """
    with _tracking_errors(tracking, store_uri(tracking, outputs), action):
        yield _client(store_uri(tracking, outputs), tracking)[0]


@contextmanager
def experiment_client(tracking: TrackingConfig, outputs: Path) -> Iterator[tuple[MlflowClient, str]]:
    """Yield a client of the store and the id of the experiment, which is created if need be; raise as ``connected``."""
    with _tracking_errors(tracking, store_uri(tracking, outputs), "log to"):
        yield _client(store_uri(tracking, outputs), tracking, experiment=True)


@contextmanager
def _tracking_errors(tracking: TrackingConfig, uri: str, action: str) -> Iterator[None]:
    """Limit the time of calls to MLflow, and raise ``TrackingError`` for all of their errors."""
    with _mlflow_timeouts(tracking.timeout_s):
        try:
            yield
        except RunnerError:
            raise
        except Exception as error:  # MLflow, SQLAlchemy, requests and the file system each have their own
            first_line = without_credentials(str(error)).strip().splitlines() or [type(error).__name__]
            raise TrackingError(
                f"could not {action} MLflow at {without_credentials(uri)} ({first_line[0][:300]})"
                + ("; the run continues and can be logged later" if action == "log to" else "")
            ) from error


@contextmanager
def _mlflow_timeouts(timeout_s: float) -> Iterator[None]:
    """Limit the time of MLflow's calls, which by default retry for minutes, and silence its own messages.

    A time limit that the environment sets is kept, for users of a slow server.
    """
    limits = {
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(max(1, round(timeout_s))),
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "0",
    }
    settings = {
        **{key: value for key, value in limits.items() if not os.environ.get(key)},
        "MLFLOW_LOGGING_LEVEL": "ERROR",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "DO_NOT_TRACK": "true",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "GIT_PYTHON_REFRESH": "quiet",
    }
    original = {key: os.environ.get(key) for key in settings}
    os.environ.update(settings)
    for name in ("mlflow", "alembic", "sqlalchemy", "urllib3"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        for key, value in original.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


def _client(uri: str, tracking: TrackingConfig, experiment: bool = False) -> tuple[MlflowClient, str]:
    """Return a client, and with ``experiment`` the experiment's id, else an empty one.

    The client creates the tables of an SQLite database, which several processes at once corrupt: a lock prevents that.
    """
    parts = urlsplit(uri)
    if parts.scheme in ("http", "https"):  # fail fast, before MLflow's slow import, if a server is down
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((parts.hostname or "localhost", port), timeout=tracking.timeout_s).close()
    if parts.scheme != "sqlite":
        client = _new_client(uri)
        return client, _find_or_create(client, tracking, None) if experiment else ""
    from filelock import FileLock

    database = Path(uri.removeprefix("sqlite:///")).absolute()
    database.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{database}.lock", timeout=_DATABASE_WAIT_S):
        if database.exists():
            _check_unlocked(database, tracking.timeout_s)
        client = _new_client(uri)
        artifacts = (database.parent / "mlartifacts").as_uri()
        return client, _find_or_create(client, tracking, artifacts) if experiment else ""


def _new_client(uri: str) -> MlflowClient:
    # The first client of an SQLite database imports as much again.
    with without_collection(freeze="mlflow" not in sys.modules):
        from mlflow.tracking import MlflowClient

        return MlflowClient(uri)


def _check_unlocked(database: Path, timeout_s: float) -> None:
    """Raise ``sqlite3.OperationalError`` if another process holds the database's lock, for which MLflow waits long."""
    with closing(sqlite3.connect(database, timeout=timeout_s)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.rollback()


def _find_or_create(client: MlflowClient, tracking: TrackingConfig, artifacts: str | None) -> str:
    experiment = _experiment(client, tracking, artifacts)
    if experiment.lifecycle_stage == "deleted":
        client.restore_experiment(experiment.experiment_id)
    for key, value in _EXPERIMENT_TAGS.items():
        if experiment.tags.get(key) != value:
            client.set_experiment_tag(experiment.experiment_id, key, value)
    return str(experiment.experiment_id)


def _experiment(client: MlflowClient, tracking: TrackingConfig, artifacts: str | None) -> Experiment:
    from mlflow.exceptions import MlflowException

    name = experiment_of(tracking)
    if not _named(tracking) and os.environ.get("MLFLOW_EXPERIMENT_ID"):
        return client.get_experiment(name)
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return client.get_experiment(client.create_experiment(name, artifacts, dict(_EXPERIMENT_TAGS)))
        except MlflowException:  # another client of a server was faster
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                raise
    return experiment


def find_run(client: MlflowClient, run_id: str) -> Run | None:
    """Return a run by its id; None if the store does not have it (any more), or has it in the trash."""
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    return run if run.info.lifecycle_stage == "active" else None
