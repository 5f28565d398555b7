"""Open, resume and finish a run in MLflow.

tracking.json in the run's folder has the state of its MLflow run, so that it can be logged later, and never twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from runner.contract.files import read_result, read_sweep, read_tracking, write_tracking
from runner.contract.tracking import TrackingState
from runner.core.errors import ResumeError
from runner.core.layout import RunLayout
from runner.core.paths import display_location
from runner.core.redact import without_credentials
from runner.tracking.calls import cut, log_batch, log_dataset, log_files, log_params, log_record, steps_after
from runner.tracking.client import TrackingError, connected, experiment_client, find_run, store_uri, ui_command
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
    if state := _read_state(folder):
        page = run_page(state.experiment_id, state.run_id)
    else:
        try:
            experiment_id = read_sweep(folder / RunLayout.sweep).experiment_id
        except ResumeError:
            experiment_id = None
        if experiment_id is None:
            return ui_command(uri), None
        page = run_list_page(experiment_id)
    root = without_credentials(uri).rstrip("/") if uri.startswith(("http://", "https://")) else "http://127.0.0.1:5000"
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
    return OpenRun(state.run_id, state.first_step)


def _open(
    client: MlflowClient,
    experiment_id: str,
    uri: str,
    run_dir: Path,
    info: RunInfo,
    parent_run_id: str | None,
) -> TrackingState:
    """Create or resume the folder's MLflow run; return the state that tracking.json then has."""
    state, earlier_parent = _load_state(client, uri, run_dir)
    tags = early_tags(replace(info, run_dir=display_location(info.config.output.dir, run_dir)))
    tags |= source_tags(info.user, info.git)
    params = requested_params(info.config)
    known: Mapping[str, str] = {}
    if state:
        run = client.get_run(state.run_id)
        known = run.data.params
        client.update_run(state.run_id, status="RUNNING")
        tags |= {f"resumed.{key}": value for key, value in params.items() if known.get(key, value) != value}
        log_batch(client, state.run_id, metrics=[], tags=cut(tags))
        state = replace(state, attempt=info.attempt, first_step=steps_after(run), state="open")
    else:
        parent = parent_run_id or earlier_parent
        if parent and find_run(client, parent):
            tags["mlflow.parentRunId"] = parent
        began_ms = int(1000 * info.first_attempt_at) or None
        run_id = client.create_run(experiment_id, began_ms, cut(tags), info.run_name).info.run_id
        state = TrackingState(uri, experiment_id, run_id, info.attempt, parent)
    write_tracking(run_dir / RunLayout.tracking, state)
    log_params(client, state.run_id, {key: value for key, value in params.items() if key not in known})
    if info.dataset:
        log_dataset(client, state.run_id, info.dataset)
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
        state, _ = _load_state(client, uri, run_dir)
        if state is None or state.attempt != result.info.attempt:
            state = _open(client, experiment_id, uri, run_dir, result.info, parent_run_id)
        elif state.state == "logged":
            return False
        log_record(client, state.run_id, record, state.first_step)
        log_files(client, state.run_id, run_dir, embeddings=tracking.log_embeddings)
        client.set_terminated(state.run_id, record.status, end_time=int(1000 * record.ended_at))
        if tracking.log_model and record.status == "FINISHED":
            from runner.tracking.logged_model import log_model

            log_model(client, state.experiment_id, state.run_id, run_dir)
    write_tracking(run_dir / RunLayout.tracking, replace(state, state="logged"))
    return True


def is_logged(tracking: TrackingConfig, outputs: Path, run_dir: Path) -> bool:
    """Whether this store has the finished run of the folder."""
    state = _read_state(run_dir)
    if state is None or state.state != "logged":
        return False
    with connected(tracking, outputs) as client:
        state, _ = _load_state(client, without_credentials(store_uri(tracking, outputs)), run_dir)
    return state is not None and state.attempt == read_result(run_dir / RunLayout.result).info.attempt


def _load_state(client: MlflowClient, uri: str, run_dir: Path) -> tuple[TrackingState | None, str | None]:
    """Return the state of the folder's MLflow run, if this store has it, and the id of its sweep's run.

    The id is there also if the run itself was deleted from the store.
    """
    state = _read_state(run_dir)
    if state is None or state.uri != uri:
        return None, None
    return state if find_run(client, state.run_id) else None, state.parent_run_id


def with_run_id(result: RunResult, run_dir: Path, uri: str) -> RunResult:
    """Return a result with the id of its MLflow run, if this store has one."""
    state = _read_state(run_dir)
    return replace(result, mlflow_run_id=state.run_id) if state and state.uri == uri else result


def _read_state(run_dir: Path) -> TrackingState | None:
    try:
        return read_tracking(run_dir / RunLayout.tracking)
    except ResumeError as error:
        raise TrackingError(str(error)) from error
