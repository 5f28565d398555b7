"""The connection to MLflow: where it is, how long it is waited for, and calls in batches."""

from __future__ import annotations

import json
import logging
import os
import shlex
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from runner.core.errors import ConfigError, RunnerError
from runner.core.redact import without_credentials
from runner.tracking.links import VIEW

if TYPE_CHECKING:
    from mlflow.entities import Experiment, Run
    from mlflow.tracking import MlflowClient

    from runner.config.schema import TrackingConfig

_VIEW_TAG = "mlflow.sharedViewState."

_COLUMNS = json.dumps(
    {
        "selectedColumns": [
            "attributes.`Dataset`",
            *("metrics.`realtime_factor`", "metrics.`best_realtime_factor`", "metrics.`repeat_realtime_factor_std`"),
            *("metrics.`startup_s`", "metrics.`rss_peak_mib`", "metrics.`parity_rel_err`"),
            *("params.`actual.device`", "params.`actual.memory`", "params.`actual.precision`"),
            *("params.`actual.memory.batch_size`", "tags.`bottleneck`", "tags.`parity.passed`", "tags.`device.name`"),
        ]
    }
)

_EXPERIMENT_TAGS = {f"{_VIEW_TAG}{VIEW}": _COLUMNS, "mlflow.experimentKind": "custom_model_development"}
"""The second one is for UIs that have no choice of menus (see ``mlflow_links``): it is not one of language models."""

_EXPERIMENT = "vggish-runner"

_OTHERS_FIRST_RUN_S = 60
"""How long to wait while another process makes the database."""


class TrackingError(RunnerError):
    """MLflow can't be told now; ``python -m runner track`` can later."""

    kind = "tracking"


def store_uri(tracking: TrackingConfig, outputs: Path) -> str:
    """Where runs are logged: ``tracking.uri``, else MLFLOW_TRACKING_URI, else a sqlite database under the outputs.

    Raises:
        ConfigError: ``tracking=server`` with neither.
    """
    if given := tracking.uri or os.environ.get("MLFLOW_TRACKING_URI"):
        return given
    if tracking.name == "server":
        raise ConfigError("tracking=server needs an address: give tracking.uri=http://host:5000 or MLFLOW_TRACKING_URI")
    return f"sqlite:///{outputs.resolve() / 'mlflow.db'}"


def experiment_of(tracking: TrackingConfig) -> str:
    """The experiment's name, or its id where MLFLOW_EXPERIMENT_ID alone says which one: the setting comes first."""
    return _named(tracking) or os.environ.get("MLFLOW_EXPERIMENT_ID") or _EXPERIMENT


def _named(tracking: TrackingConfig) -> str | None:
    return tracking.experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME")


def ui_command(uri: str) -> str:
    """The exact line that shows the runs."""
    if uri.startswith(("http://", "https://")):
        return f"open {without_credentials(uri)}"
    return f"mlflow ui --backend-store-uri {shlex.quote(without_credentials(uri))} --host 127.0.0.1"


@contextmanager
def connected(tracking: TrackingConfig, outputs: Path, what: str = "read") -> Iterator[MlflowClient]:
    """A client of the store for which no experiment is made; ``what`` failed is said by the ``TrackingError``."""
    with _in_time(tracking, store_uri(tracking, outputs), what):
        yield _client(store_uri(tracking, outputs), tracking)[0]


@contextmanager
def telling(tracking: TrackingConfig, outputs: Path) -> Iterator[tuple[MlflowClient, str]]:
    """A client of the store and the experiment's id, made under a lock if need be; all trouble is TrackingError."""
    with _in_time(tracking, store_uri(tracking, outputs), "told"):
        yield _client(store_uri(tracking, outputs), tracking, experiment=True)


@contextmanager
def _in_time(tracking: TrackingConfig, uri: str, what: str) -> Iterator[None]:
    with _mlflow_timeouts(tracking.timeout_s):
        try:
            yield
        except RunnerError:
            raise
        except Exception as error:  # MLflow, SQLAlchemy, requests and the file system each have their own
            first_line = without_credentials(str(error)).strip().splitlines() or [type(error).__name__]
            raise TrackingError(
                f"MLflow at {without_credentials(uri)} could not be {what} ({first_line[0][:300]})"
                + (": the run goes on, and its files stay" if what == "told" else "")
            ) from error


@contextmanager
def _mlflow_timeouts(timeout_s: float) -> Iterator[None]:
    """MLflow retries for minutes by default; here a call ends within the time limit, and says nothing on its own.

    A time limit of its environment is kept: who has a slow server says there how long to wait for it.
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
    before = {key: os.environ.get(key) for key in settings}
    os.environ.update(settings)
    for name in ("mlflow", "alembic", "sqlalchemy", "urllib3"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


def _client(uri: str, tracking: TrackingConfig, experiment: bool = False) -> tuple[MlflowClient, str]:
    """A client and the id of the experiment, made if need be; an empty one where none is asked for.

    The client itself makes a sqlite database's tables, and several at once corrupt it: that happens under a lock.
    """
    parts = urlsplit(uri)
    if parts.scheme in ("http", "https"):  # find out cheaply, before the import of MLflow, that a server is down
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((parts.hostname or "localhost", port), timeout=tracking.timeout_s).close()
    from mlflow.tracking import MlflowClient

    if parts.scheme != "sqlite":
        client = MlflowClient(uri)
        return client, _find_or_create(client, tracking, None) if experiment else ""
    from filelock import FileLock

    database = Path(uri.removeprefix("sqlite:///")).absolute()
    database.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{database}.lock", timeout=_OTHERS_FIRST_RUN_S):
        if database.exists():
            _check_unlocked(database, tracking.timeout_s)
        client = MlflowClient(uri)
        artifacts = (database.parent / "mlartifacts").as_uri()
        return client, _find_or_create(client, tracking, artifacts) if experiment else ""


def _check_unlocked(database: Path, timeout_s: float) -> None:
    """Raise ``sqlite3.OperationalError`` if another process keeps the database locked: MLflow would wait for long."""
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
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.get_experiment(client.create_experiment(name, artifacts, dict(_EXPERIMENT_TAGS)))
        except MlflowException:  # another client of a server was faster
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    return found


def known_run(client: MlflowClient, run_id: str) -> Run | None:
    """The run of an id; None where the store has none (the database was deleted since), or has it in the trash."""
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    return run if run.info.lifecycle_stage == "active" else None
