"""MLflow, from the parent's side: the store, runs, and the parent run of a sweep.

Everything is logged synchronously with short time limits (MLflow's asynchronous logging loses data when a server dies),
through the client and without global state.  Trouble is a ``TrackingError``; it never ends a run.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import socket
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from runner.advice import command
from runner.config import TrackingConfig
from runner.errors import ConfigError, RunnerError
from runner.files import write_atomic
from runner.formats import FOLDERS
from runner.measure import BATCHES, TRACE
from runner.mlflow_links import VIEW, run_list_page, run_page
from runner.naming import SWEPT
from runner.output import CLIPS
from runner.pictures import PICTURES
from runner.readable import read_json, read_results
from runner.record import (
    MAX_TAG,
    SWEEP_FILE,
    TRACKING,
    RunRecord,
    command_line,
    early_tags,
    record_from_result,
    requested_params,
    without_credentials,
)
from runner.stores import place_of
from runner.sweep_page import RUN_ID, fixed_params, sweep_note, swept_params
from runner.verdict import only_contest, verdict

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

_METRICS_A_CALL = 1000
_DATASET_ATTEMPTS = 4
_PARAMS_A_CALL = 100
_SWEEP_NAME_CHARACTERS = 250
_VIEW_TAG = "mlflow.sharedViewState."
_COLUMNS = json.dumps(
    {
        "selectedColumns": [
            "attributes.`Dataset`",
            *("metrics.`audio_x_realtime`", "metrics.`best_audio_x_realtime`", "metrics.`repeat_audio_x_realtime_std`"),
            *("metrics.`cold_start_s`", "metrics.`rss_peak_mib`", "metrics.`parity_rel_err`"),
            *("params.`actual.device`", "params.`actual.memory`", "params.`actual.precision`"),
            *("params.`actual.memory.batch_size`", "tags.`bottleneck`", "tags.`parity.passed`", "tags.`device.name`"),
        ]
    }
)
_EXPERIMENT_TAGS = {f"{_VIEW_TAG}{VIEW}": _COLUMNS, "mlflow.experimentKind": "custom_model_development"}
"""The second one is for UIs that have no choice of menus (see ``mlflow_links``): it is not one of language models."""
_OTHERS_FIRST_RUN_S = 60
"""How long to wait while another process makes the database."""


class TrackingError(RunnerError):
    """MLflow can't be told now; ``python -m runner.track`` can later."""

    kind = "tracking"


def store_uri(tracking: TrackingConfig, outputs: Path) -> str:
    """Where runs are logged: ``tracking.uri``, else MLFLOW_TRACKING_URI, else a sqlite database under the outputs.

    Raises:
        ConfigError: ``tracking=server`` with neither.
    """
    if given := tracking.uri or os.environ.get("MLFLOW_TRACKING_URI"):
        return given
    if tracking.kind == "server":
        raise ConfigError("tracking=server needs an address: give tracking.uri=http://host:5000 or MLFLOW_TRACKING_URI")
    return f"sqlite:///{outputs.resolve() / 'mlflow.db'}"


def ui_command(uri: str) -> str:
    """The exact line that shows the runs."""
    if uri.startswith(("http://", "https://")):
        return f"open {without_credentials(uri)}"
    return f"mlflow ui --backend-store-uri {shlex.quote(without_credentials(uri))} --host 127.0.0.1"


def where_to_look(uri: str, folder: Path) -> tuple[str, str | None]:
    """The line that shows a run's or a sweep's folder in MLflow, and the page to open: of a sweep, the run list.

    The page opens in the menu of model training, and the list has the columns of the experiment's view ``VIEW``.
    """
    state = _read_state(folder)
    if "experiment_id" not in state:
        try:
            state = json.loads((folder / SWEEP_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return ui_command(uri), None
    if "experiment_id" not in state:
        return ui_command(uri), None
    root = without_credentials(uri).rstrip("/") if uri.startswith(("http://", "https://")) else "http://127.0.0.1:5000"
    experiment_id = state["experiment_id"]
    page = run_list_page(experiment_id) if "jobs" in state else run_page(experiment_id, state["run_id"])
    return ui_command(uri), f"{root}/{page}"


def open_run(
    tracking: TrackingConfig,
    outputs: Path,
    run_dir: Path,
    run_name: str,
    *,
    parent_run_id: str | None = None,
    overrides: Sequence[str] = (),
    config: Mapping[str, Any],
) -> None:
    """Create the MLflow run, RUNNING, with the requested parameters; remember it in the folder's tracking.json.

    The run of an earlier session in the folder is taken up instead, if this store has it.
    """
    with _store(tracking, outputs) as (client, experiment_id):
        if _take_up(client, store_uri(tracking, outputs), run_dir, config, overrides):
            return
        tags = early_tags(config, place_of(config["output"]["dir"], run_dir), overrides)
        if parent_run_id:
            tags["mlflow.parentRunId"] = parent_run_id
        run = client.create_run(experiment_id, run_name=run_name, tags=_cut(tags))
        state = {
            "uri": without_credentials(store_uri(tracking, outputs)),
            "experiment_id": experiment_id,
            "run_id": run.info.run_id,
            "parent_run_id": parent_run_id,
            "state": "open",
        }
        write_atomic(run_dir / TRACKING, json.dumps(state, indent=2))
        _log_params(client, run.info.run_id, requested_params(config))


def _take_up(
    client: MlflowClient, uri: str, run_dir: Path, config: Mapping[str, Any], overrides: Sequence[str]
) -> bool:
    """Set the folder's MLflow run RUNNING again; settings that may change are noted as tags ``resumed.…``."""
    from mlflow.exceptions import MlflowException

    state = _read_state(run_dir)
    if state.get("uri") != without_credentials(uri) or "run_id" not in state:
        return False
    run_id = state["run_id"]
    try:
        known = client.get_run(run_id).data.params
    except MlflowException:  # deleted since
        return False
    client.update_run(run_id, status="RUNNING")
    params = requested_params(config)
    _log_params(client, run_id, {key: value for key, value in params.items() if key not in known})
    changed = {f"resumed.{key}": value for key, value in params.items() if known.get(key, value) != value}
    _log_batch(client, run_id, metrics=[], tags=_cut({**changed, "command": command_line(overrides)}))
    write_atomic(run_dir / TRACKING, json.dumps({**state, "state": "open"}, indent=2))
    return True


def finish_run(tracking: TrackingConfig, outputs: Path, run_dir: Path, *, parent_run_id: str | None = None) -> bool:
    """Log result.json and the folder's files, and close the MLflow run; opens one if there is none yet.

    Returns:
        False if the folder's run was logged already (to this store): nothing is logged twice.
    """
    result = read_json(run_dir / "result.json")
    record = record_from_result(result)
    uri = without_credentials(store_uri(tracking, outputs))
    state = _read_state(run_dir)
    if is_logged(tracking, outputs, run_dir):
        return False
    if state.get("uri") != uri:
        state = {"parent_run_id": parent_run_id}
    if "run_id" not in state:
        open_run(
            tracking,
            outputs,
            run_dir,
            record.name,
            parent_run_id=parent_run_id or state.get("parent_run_id"),
            overrides=result.get("overrides", []),
            config=result["config"],
        )
        state = _read_state(run_dir)
    with _store(tracking, outputs) as (client, _):
        _log_record(client, state["run_id"], record)
        _log_files(client, state["run_id"], run_dir, embeddings=tracking.log_embeddings)
        client.set_terminated(state["run_id"], record.status, end_time=int(1000 * record.ended_at))
    write_atomic(run_dir / TRACKING, json.dumps({**state, "state": "logged"}, indent=2))
    return True


def is_logged(tracking: TrackingConfig, outputs: Path, run_dir: Path) -> bool:
    """Whether the folder's run was logged to this store to the end."""
    state = _read_state(run_dir)
    return state.get("uri") == without_credentials(store_uri(tracking, outputs)) and state.get("state") == "logged"


def open_sweep(
    tracking: TrackingConfig, outputs: Path, sweep_dir: Path, overrides: Sequence[str], place: str | None = None
) -> None:
    """Create the parent run of a sweep, and put its id into the folder's sweep.json, if this store has none of it yet.

    ``place`` is where a person finds the sweep, if that is not its folder.
    """
    path = sweep_dir / SWEEP_FILE
    record = read_json(path)
    with _store(tracking, outputs) as (client, experiment_id):
        if record.get("run_id") and _has_run(client, record["run_id"]):
            return
        name = " ".join(["sweep", *map(without_credentials, _swept(overrides))])[:_SWEEP_NAME_CHARACTERS]
        tags = {
            "run_dir": place or str(sweep_dir),
            "sweep.overrides": " ".join(map(without_credentials, overrides)),
            "command": command_line(overrides, multirun=True),
        }
        run = client.create_run(experiment_id, run_name=name, tags=_cut(tags))
        record |= {"run_id": run.info.run_id, "experiment_id": experiment_id}
        record["uri"] = without_credentials(store_uri(tracking, outputs))
        write_atomic(path, json.dumps(record, indent=2))
        _log_params(client, run.info.run_id, swept_params(record.get(SWEPT) or {}))


def _has_run(client: MlflowClient, run_id: str) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        client.get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise
    return True


def _swept(overrides: Sequence[str]) -> list[str]:
    """The overrides that make a sweep what it is: those with several values, and the experiment."""
    several = [each for each in overrides if "," in each or "(" in each or each.startswith("experiment=")]
    return several or list(overrides)


def finish_sweep(
    tracking: TrackingConfig,
    outputs: Path,
    sweep_dir: Path,
    run_dirs: Sequence[Path],
    *,
    interrupted: bool,
    place: str | None = None,
) -> None:
    """Say on the parent run how its jobs went, and close it; opens one if there is none yet, as ``open_sweep``."""
    path = sweep_dir / SWEEP_FILE
    record = read_json(path)
    if not record.get("run_id"):
        open_sweep(tracking, outputs, sweep_dir, record["overrides"], place)
    record = read_json(path)
    run_id = record["run_id"]
    uri = without_credentials(store_uri(tracking, outputs))
    results = [_with_run_id(result, run_dir, uri) for run_dir in run_dirs for result in read_results([run_dir])]
    count = dict.fromkeys(("finished", "failed", "killed"), 0)
    for result in results:
        count[result["status"]] += 1
    with _store(tracking, outputs) as (client, experiment_id):
        killed = bool(interrupted or count["killed"])
        params = {} if killed else swept_params(record.get(SWEPT) or {}, results)
        params |= {} if killed else fixed_params(results, record["overrides"])  # MLflow takes no other value later
        known = client.get_run(run_id).data.params
        _log_params(client, run_id, {key: value for key, value in params.items() if key not in known})
        tags = {"sweep.jobs": str(len(results)), **{f"sweep.{status}": str(n) for status, n in count.items()}}
        tags["mlflow.note.content"] = sweep_note(results, record["overrides"], experiment_id)
        metrics: dict[str, float] = {}
        tags["verdict"] = verdict(results)
        if contest := only_contest(results):
            chosen = contest.chosen
            tags |= {"best.run": chosen.name, "best.command": command(chosen.best)}
            tags |= {"best.run_id": chosen.best[RUN_ID]} if RUN_ID in chosen.best else {}
            metrics["best_audio_x_realtime"] = chosen.speed
            metrics["best_speedup"] = chosen.speed / (contest.baseline.speed or 1.0)
        metrics |= {"jobs": len(results), **{f"jobs_{status}": count[status] for status in ("failed", "killed")}}
        _log_batch(client, run_id, metrics=_metrics(metrics, int(1000 * time.time())), tags=_cut(tags))
        datasets = [result["dataset"] for result in results if result.get("dataset")]
        if len({dataset["digest"] for dataset in datasets}) == 1:
            _log_dataset(client, run_id, datasets[0])
        client.log_artifact(run_id, str(path))
        if (sweep_dir / PICTURES).is_dir():
            client.log_artifacts(run_id, str(sweep_dir / PICTURES), PICTURES)
        status = "KILLED" if killed else "FAILED" if count["failed"] or not results else "FINISHED"
        client.set_terminated(run_id, status)


def _with_run_id(result: dict[str, Any], run_dir: Path, uri: str) -> dict[str, Any]:
    """A result with the run that it was logged as, if it was, in this store."""
    state = _read_state(run_dir)
    return {**result, RUN_ID: state["run_id"]} if state.get("uri") == uri and "run_id" in state else result


@contextmanager
def connected(tracking: TrackingConfig, outputs: Path) -> Iterator[MlflowClient]:
    """A client of the store, for reading: no experiment is made; trouble is ``TrackingError``."""
    with _store(tracking, outputs, "read") as (client, _):
        yield client


@contextmanager
def _store(tracking: TrackingConfig, outputs: Path, what: str = "told") -> Iterator[tuple[MlflowClient, str]]:
    """A client of the store and the experiment's id, made under a lock if need be; all trouble is TrackingError."""
    uri = store_uri(tracking, outputs)
    with _short_patience(tracking.timeout_s):
        try:
            yield _connect(uri, tracking, read_only=what == "read")
        except RunnerError:
            raise
        except Exception as error:  # MLflow, SQLAlchemy, requests and the file system each have their own
            first_line = without_credentials(str(error)).strip().splitlines() or [type(error).__name__]
            raise TrackingError(
                f"MLflow at {without_credentials(uri)} could not be {what} ({first_line[0][:300]})"
                + (": the run goes on, and its files stay" if what == "told" else "")
            ) from error


@contextmanager
def _short_patience(timeout_s: float) -> Iterator[None]:
    """MLflow retries for minutes by default; here a call ends within the time limit, and says nothing on its own."""
    settings = {
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(max(1, round(timeout_s))),
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "0",
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


def _connect(uri: str, tracking: TrackingConfig, read_only: bool) -> tuple[MlflowClient, str]:
    """A client and the experiment's id, which is empty for one that is to read only.

    The client itself makes a sqlite database's tables, and several at once corrupt it: that happens under a lock.
    """
    parts = urlsplit(uri)
    if parts.scheme in ("http", "https"):  # find out cheaply, before the import of MLflow, that a server is down
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((parts.hostname or "localhost", port), timeout=tracking.timeout_s).close()
    from mlflow.tracking import MlflowClient

    if parts.scheme != "sqlite":
        client = MlflowClient(uri)
        return client, "" if read_only else _find_or_create(client, tracking.experiment, None)
    from filelock import FileLock

    database = Path(uri.removeprefix("sqlite:///")).absolute()
    database.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{database}.lock", timeout=_OTHERS_FIRST_RUN_S):
        if database.exists():
            _check_unlocked(database, tracking.timeout_s)
        client = MlflowClient(uri)
        artifacts = (database.parent / "mlartifacts").as_uri()
        return client, "" if read_only else _find_or_create(client, tracking.experiment, artifacts)


def _check_unlocked(database: Path, timeout_s: float) -> None:
    """Raise ``sqlite3.OperationalError`` if another process keeps the database locked: MLflow would wait for long."""
    with closing(sqlite3.connect(database, timeout=timeout_s)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.rollback()


def _find_or_create(client: MlflowClient, name: str, artifacts: str | None) -> str:
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return str(client.create_experiment(name, artifacts, dict(_EXPERIMENT_TAGS)))
        except MlflowException:  # another client of a server was faster
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                raise
    if experiment.lifecycle_stage == "deleted":
        client.restore_experiment(experiment.experiment_id)
    for key, value in _EXPERIMENT_TAGS.items():
        if experiment.tags.get(key) != value:
            client.set_experiment_tag(experiment.experiment_id, key, value)
    return str(experiment.experiment_id)


def _log_record(client: MlflowClient, run_id: str, record: RunRecord) -> None:
    from mlflow.entities import Metric

    client.update_run(run_id, name=record.name)
    known = client.get_run(run_id).data.params  # of an earlier session: MLflow takes no other value
    _log_params(client, run_id, {key: value for key, value in record.params.items() if key not in known})
    changed = {key: value for key, value in record.params.items() if known.get(key, value) != value}
    if changed:
        _log_batch(client, run_id, metrics=[], tags=_cut({f"resumed.{key}": value for key, value in changed.items()}))
    metrics = _metrics(record.metrics, int(1000 * record.ended_at))
    metrics += [Metric(name, value, at, step) for name, step, at, value in record.series]
    _log_batch(client, run_id, metrics=metrics, tags=_cut(record.tags))
    if record.dataset is not None:
        _log_dataset(client, run_id, record.dataset)


def _log_dataset(client: MlflowClient, run_id: str, dataset: Mapping[str, Any]) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    profile = {key: dataset[key] for key in ("clips", "is_demo", "ignored")}
    entry = Dataset(
        name="demo" if dataset["is_demo"] else Path(dataset["root"]).name or "root",
        digest=dataset["digest"],
        source_type="local",
        source=json.dumps({"uri": dataset["root"]}),
        profile=json.dumps(profile),
    )
    inputs = [DatasetInput(entry, [InputTag("mlflow.data.context", "embedding")])]
    for attempt in range(_DATASET_ATTEMPTS):  # two runs that log the same new data set at once collide in the database
        try:
            client.log_inputs(run_id, inputs)
            return
        except Exception:
            if attempt + 1 == _DATASET_ATTEMPTS:
                raise
            time.sleep(0.1 * (attempt + 1))


def _log_files(client: MlflowClient, run_id: str, run_dir: Path, *, embeddings: bool) -> None:
    if (run_dir / ".hydra").is_dir():
        client.log_artifacts(run_id, str(run_dir / ".hydra"), "config")
    for name in ("runner.log", "result.json", CLIPS, BATCHES):
        if (run_dir / name).exists():
            client.log_artifact(run_id, str(run_dir / name))
    for folder in (PICTURES, TRACE, *(FOLDERS if embeddings else ())):
        if (run_dir / folder).is_dir():
            client.log_artifacts(run_id, str(run_dir / folder), folder)


def _log_params(client: MlflowClient, run_id: str, params: Mapping[str, str]) -> None:
    """Log parameters; MLflow takes an equal value again, so this may be repeated."""
    from mlflow.entities import Param

    entries = [Param(key, value) for key, value in params.items()]
    for start in range(0, len(entries), _PARAMS_A_CALL):
        client.log_batch(run_id, params=entries[start : start + _PARAMS_A_CALL])


def _log_batch(client: MlflowClient, run_id: str, *, metrics: Sequence[Any], tags: Mapping[str, str]) -> None:
    from mlflow.entities import RunTag

    entries = [RunTag(key, value) for key, value in tags.items()]
    client.log_batch(run_id, metrics=metrics[:_METRICS_A_CALL], tags=entries)
    for start in range(_METRICS_A_CALL, len(metrics), _METRICS_A_CALL):
        client.log_batch(run_id, metrics=metrics[start : start + _METRICS_A_CALL])


def _metrics(values: Mapping[str, float], at_ms: int) -> list[Any]:
    from mlflow.entities import Metric

    return [Metric(name, float(value), at_ms, 0) for name, value in values.items()]


def _cut(tags: Mapping[str, str]) -> dict[str, str]:
    return {key: value[:MAX_TAG] for key, value in tags.items()}


def _read_state(run_dir: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((run_dir / TRACKING).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found
