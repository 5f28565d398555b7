"""Open, resume and finish a run in MLflow.

tracking.json in the run's folder has the state of its MLflow run, so that it can be logged later, and never twice.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from runner.contract.files import read_result
from runner.core.files import write_atomic
from runner.core.layout import RunLayout
from runner.core.paths import display_location
from runner.core.redact import without_credentials
from runner.tracking.calls import cut, log_batch, log_dataset, log_files, log_params, log_record, steps_after
from runner.tracking.client import connected, experiment_client, known_run, store_uri, ui_command
from runner.tracking.links import run_list_page, run_page
from runner.tracking.record import early_tags, record_from_result, requested_params, source_tags

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

    from runner.config.schema import TrackingConfig
    from runner.contract.result import RunInfo, RunResult


class OpenRun(NamedTuple):
    """A run that is open in MLflow; ``first_step`` is the step at which metrics of earlier attempts continue."""

    run_id: str
    first_step: Mapping[str, int]


def ui_location(uri: str, folder: Path) -> tuple[str, str | None]:
    """Return the command that starts MLflow's UI, and the page of a run or of a sweep's list of runs, if logged."""
    state = _read_state(folder)
    if "experiment_id" not in state:
        try:
            state = json.loads((folder / RunLayout.sweep).read_text(encoding="utf-8"))
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
    info: RunInfo,
    *,
    parent_run_id: str | None = None,
) -> OpenRun:
    """Create the MLflow run of a folder, with its parameters and data set, or resume that of an earlier attempt.

    Args:
        tracking: the store.
        outputs: the run's ``paths.outputs``.
        run_dir: its folder.
        info: its description.
        parent_run_id: that of its sweep.
    """
    with experiment_client(tracking, outputs) as (client, experiment_id):
        uri = without_credentials(store_uri(tracking, outputs))
        state = _open(client, experiment_id, uri, run_dir, info, parent_run_id)
    return OpenRun(state["run_id"], state["first_step"])


def _open(
    client: MlflowClient,
    experiment_id: str,
    uri: str,
    run_dir: Path,
    info: RunInfo,
    parent_run_id: str | None,
) -> dict[str, Any]:
    """Create or resume the folder's MLflow run; return the state that tracking.json then has."""
    state = _load_state(client, uri, run_dir)
    tags = early_tags(replace(info, run_dir=display_location(info.config.output.dir, run_dir)))
    tags |= source_tags(info.user, info.git)
    params = requested_params(info.config)
    if run_id := state.get("run_id"):
        run = client.get_run(run_id)
        first_step, known = steps_after(run), run.data.params
        client.update_run(run_id, status="RUNNING")
        tags |= {f"resumed.{key}": value for key, value in params.items() if known.get(key, value) != value}
        log_batch(client, run_id, metrics=[], tags=cut(tags))
    else:
        first_step, known = {}, {}
        parent = parent_run_id or state.get("parent_run_id")
        if parent and known_run(client, parent):
            tags["mlflow.parentRunId"] = parent
        began_ms = int(1000 * info.first_attempt_at) or None
        run_id = client.create_run(experiment_id, began_ms, cut(tags), info.run_name).info.run_id
        state = {"uri": uri, "experiment_id": experiment_id, "run_id": run_id, "parent_run_id": parent}
    state |= {"attempt": info.attempt, "first_step": first_step, "state": "open"}
    _save_state(run_dir, state)
    log_params(client, run_id, {key: value for key, value in params.items() if key not in known})
    if info.dataset:
        log_dataset(client, run_id, info.dataset)
    return state


def finish_run(tracking: TrackingConfig, outputs: Path, run_dir: Path, *, parent_run_id: str | None = None) -> bool:
    """Log a result and the folder's files, and close the MLflow run, which is opened first if need be.

    Returns:
        False if this store has the finished run already; then nothing is logged.
    """
    result = read_result(run_dir / RunLayout.result)
    record = record_from_result(result)
    uri = without_credentials(store_uri(tracking, outputs))
    with experiment_client(tracking, outputs) as (client, experiment_id):
        state = _load_state(client, uri, run_dir)
        if _is_of(state, result) and state["state"] == "logged":
            return False
        if not _is_of(state, result):
            state = _open(client, experiment_id, uri, run_dir, result.info, parent_run_id)
        log_record(client, state["run_id"], record, state.get("first_step") or {})
        log_files(client, state["run_id"], run_dir, embeddings=tracking.log_embeddings)
        client.set_terminated(state["run_id"], record.status, end_time=int(1000 * record.ended_at))
        if tracking.log_model and record.status == "FINISHED":
            from runner.tracking.logged_model import log_model

            log_model(client, state["experiment_id"], state["run_id"], run_dir)
    _save_state(run_dir, {**state, "state": "logged"})
    return True


def is_logged(tracking: TrackingConfig, outputs: Path, run_dir: Path) -> bool:
    """Whether this store has the finished run of the folder."""
    if _read_state(run_dir).get("state") != "logged":
        return False
    with connected(tracking, outputs) as client:
        state = _load_state(client, without_credentials(store_uri(tracking, outputs)), run_dir)
    return _is_of(state, read_result(run_dir / RunLayout.result))


def _load_state(client: MlflowClient, uri: str, run_dir: Path) -> dict[str, Any]:
    """Return the state of the folder's MLflow run; of a run that this store lacks, only the parent's id."""
    state = _read_state(run_dir)
    if state.get("uri") != uri:
        return {}
    if "run_id" in state and known_run(client, state["run_id"]):
        return state
    return {"parent_run_id": state.get("parent_run_id")}


def _is_of(state: Mapping[str, Any], result: RunResult) -> bool:
    """Whether a state is that of the attempt that wrote this result, rather than of an earlier one."""
    attempt = result.info.attempt
    return "run_id" in state and state.get("attempt", attempt) == attempt


def _save_state(run_dir: Path, state: Mapping[str, Any]) -> None:
    write_atomic(run_dir / RunLayout.tracking, json.dumps(state, indent=2))


def _with_run_id(result: RunResult, run_dir: Path, uri: str) -> RunResult:
    """Return a result with the id of its MLflow run, if this store has one."""
    state = _read_state(run_dir)
    return replace(result, mlflow_run_id=state["run_id"]) if state.get("uri") == uri and "run_id" in state else result


def _read_state(run_dir: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = json.loads((run_dir / RunLayout.tracking).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return state
