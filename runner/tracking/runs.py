"""MLflow, from the parent's side: a run from its opening to its end, and the parent run of a sweep.

What is told of a run's folder is noted in its tracking.json, so that it can be told later and is not told twice.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from runner.contract.files import read_result
from runner.core.files import write_atomic
from runner.core.layout import RESULT, SWEEP_FILE, TRACKING
from runner.core.paths import display_location
from runner.core.redact import without_credentials
from runner.tracking.calls import cut, log_batch, log_dataset, log_files, log_params, log_record, steps_after
from runner.tracking.client import connected, known_run, store_uri, telling, ui_command
from runner.tracking.links import run_list_page, run_page
from runner.tracking.record import early_tags, record_from_result, requested_params, source_tags

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

    from runner.config.schema import TrackingConfig
    from runner.contract.result import RunInfo, RunResult


class OpenRun(NamedTuple):
    """A run that is open in MLflow; ``first_step`` is where metrics go on that earlier sessions have told of."""

    run_id: str
    first_step: Mapping[str, int]


def ui_location(uri: str, folder: Path) -> tuple[str, str | None]:
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
    info: RunInfo,
    *,
    parent_run_id: str | None = None,
) -> OpenRun:
    """Create the MLflow run, RUNNING, with the requested parameters and the data set; note it in tracking.json.

    The run of an earlier session in the folder is taken up instead, if this store has it.

    Args:
        tracking: the store.
        outputs: the run's ``paths.outputs``.
        run_dir: its folder.
        info: its description.
        parent_run_id: of the sweep that it belongs to.
    """
    with telling(tracking, outputs) as (client, experiment_id):
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
    """Create or take up the folder's MLflow run; what is then noted in tracking.json."""
    state = _noted(client, uri, run_dir)
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
        began_ms = int(1000 * info.began_at) or None
        run_id = client.create_run(experiment_id, began_ms, cut(tags), info.run_name).info.run_id
        state = {"uri": uri, "experiment_id": experiment_id, "run_id": run_id, "parent_run_id": parent}
    state |= {"attempt": info.attempt, "first_step": first_step, "state": "open"}
    _note(run_dir, state)
    log_params(client, run_id, {key: value for key, value in params.items() if key not in known})
    if info.dataset:
        log_dataset(client, run_id, info.dataset)
    return state


def finish_run(tracking: TrackingConfig, outputs: Path, run_dir: Path, *, parent_run_id: str | None = None) -> bool:
    """Log result.json and the folder's files, and close the MLflow run; opens one if there is none of this session yet.

    Returns:
        False if the folder's run was logged already (to this store, which still has it): nothing is logged twice.
    """
    result = read_result(run_dir / RESULT)
    record = record_from_result(result)
    uri = without_credentials(store_uri(tracking, outputs))
    with telling(tracking, outputs) as (client, experiment_id):
        state = _noted(client, uri, run_dir)
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
    _note(run_dir, {**state, "state": "logged"})
    return True


def is_logged(tracking: TrackingConfig, outputs: Path, run_dir: Path) -> bool:
    """Whether the folder's run was logged to this store to the end, and is still there."""
    if _read_state(run_dir).get("state") != "logged":
        return False
    with connected(tracking, outputs) as client:
        state = _noted(client, without_credentials(store_uri(tracking, outputs)), run_dir)
    return _is_of(state, read_result(run_dir / RESULT))


def _noted(client: MlflowClient, uri: str, run_dir: Path) -> dict[str, Any]:
    """What is noted of the folder's MLflow run; at most its parent's id, where this store hasn't that run."""
    state = _read_state(run_dir)
    if state.get("uri") != uri:
        return {}
    if "run_id" in state and known_run(client, state["run_id"]):
        return state
    return {"parent_run_id": state.get("parent_run_id")}


def _is_of(state: Mapping[str, Any], result: RunResult) -> bool:
    """Whether the noted MLflow run is of the attempt that left this result.json, and not of one before it."""
    attempt = result.info.attempt
    return "run_id" in state and state.get("attempt", attempt) == attempt


def _note(run_dir: Path, state: Mapping[str, Any]) -> None:
    write_atomic(run_dir / TRACKING, json.dumps(state, indent=2))


def _with_run_id(result: RunResult, run_dir: Path, uri: str) -> RunResult:
    """A result with the id of the MLflow run that it was logged as, if it was, in this store."""
    state = _read_state(run_dir)
    return replace(result, mlflow_run_id=state["run_id"]) if state.get("uri") == uri and "run_id" in state else result


def _read_state(run_dir: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((run_dir / TRACKING).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found
