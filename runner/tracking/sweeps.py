"""The MLflow parent run of a sweep."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from runner.config.command_line import command_line
from runner.contract.files import read_jobs, read_sweep, write_sweep
from runner.contract.sweep import SWEEP_FAD, SWEEP_FAD_REFERENCE
from runner.core.layout import RunLayout
from runner.core.redact import without_credentials
from runner.reporting.advice import rerun_command
from runner.reporting.verdict import only_contest, verdict
from runner.tracking.calls import cut, log_batch, log_dataset, log_params, metrics_at
from runner.tracking.client import experiment_client, find_run, store_uri
from runner.tracking.record import source_tags
from runner.tracking.runs import with_run_id
from runner.tracking.sweep_page import fixed_params, sweep_note, swept_params

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

    from runner.config.schema import TrackingConfig
    from runner.contract.result import RunResult

_MAX_NAME = 250


def open_sweep(
    tracking: TrackingConfig, outputs: Path, sweep_dir: Path, overrides: Sequence[str], location: str | None = None
) -> None:
    """Create the parent run of a sweep, unless the store has it, and write its id to the folder's sweep.json.

    Args:
        tracking: the sweep's.
        outputs: the sweep's ``paths.outputs``.
        sweep_dir: its folder.
        overrides: of its command line.
        location: its location for users, if that is not its folder.
    """
    path = RunLayout(sweep_dir).sweep
    state = read_sweep(path)
    with experiment_client(tracking, outputs) as (client, experiment_id):
        if state.run_id and find_run(client, state.run_id):
            return
        name = " ".join(["sweep", *map(without_credentials, _swept(overrides))])[:_MAX_NAME]
        tags = {
            "run_dir": location or str(sweep_dir),
            "sweep.overrides": " ".join(map(without_credentials, overrides)),
            "command": command_line(overrides, multirun=True),
        } | source_tags(state.user, state.git)
        began_ms = int(1000 * state.started_at) or None
        run_id = client.create_run(experiment_id, began_ms, cut(tags), name).info.run_id
        uri = without_credentials(store_uri(tracking, outputs))
        write_sweep(path, replace(state, run_id=run_id, experiment_id=experiment_id, uri=uri))
        log_params(client, run_id, swept_params(state.swept))


def _swept(overrides: Sequence[str]) -> list[str]:
    """Return the overrides that name a sweep: those with several values, and the experiment."""
    several = [text for text in overrides if "," in text or "(" in text or text.startswith("experiment=")]
    return several or list(overrides)


def finish_sweep(
    tracking: TrackingConfig,
    outputs: Path,
    sweep_dir: Path,
    run_dirs: Sequence[Path],
    *,
    interrupted: bool,
    location: str | None = None,
) -> None:
    """Log the outcome of a sweep's jobs to its parent run, which is created if need be, and close it."""
    path = RunLayout(sweep_dir).sweep
    state = read_sweep(path)
    if state.run_id is None:
        open_sweep(tracking, outputs, sweep_dir, state.overrides, location)
        state = read_sweep(path)
    run_id = state.run_id
    assert run_id is not None
    uri = without_credentials(store_uri(tracking, outputs))
    results = [with_run_id(result, sweep_dir / job, uri) for job, result in read_jobs(sweep_dir, run_dirs).items()]
    count = dict.fromkeys(("finished", "failed", "interrupted"), 0)
    for result in results:
        count[result.status] += 1
    with experiment_client(tracking, outputs) as (client, experiment_id):
        interrupted = bool(interrupted or count["interrupted"])
        params = {}
        if not interrupted:  # a resumed sweep may have other values, which MLflow would refuse
            params = swept_params(state.swept, results) | fixed_params(results, state.overrides)
        known = client.get_run(run_id).data.params
        log_params(client, run_id, {key: value for key, value in params.items() if key not in known})
        tags = {"sweep.jobs": str(len(results)), **{f"sweep.{status}": str(n) for status, n in count.items()}}
        tags["mlflow.note.content"] = sweep_note(results, state.overrides, experiment_id)
        metrics: dict[str, float] = {}
        tags["verdict"] = verdict(results)
        if contest := only_contest(results):
            chosen = contest.chosen
            tags |= {"best.run": chosen.name, "best.command": rerun_command(chosen.best)}
            tags |= {"best.run_id": chosen.best.mlflow_run_id} if chosen.best.mlflow_run_id else {}
            metrics["best_realtime_factor"] = chosen.speed
            metrics["best_speedup"] = chosen.speed / (contest.baseline.speed or 1.0)
        metrics |= {"jobs": len(results), **{f"jobs_{status}": count[status] for status in ("failed", "interrupted")}}
        log_batch(client, run_id, metrics=metrics_at(metrics, int(1000 * time.time())), tags=cut(tags))
        _log_fads(client, results)
        datasets = [result.info.dataset for result in results if result.info.dataset]
        if len({dataset.digest for dataset in datasets}) == 1:
            log_dataset(client, run_id, datasets[0])
        client.log_artifact(run_id, str(path))
        if (sweep_dir / RunLayout.plots).is_dir():
            client.log_artifacts(run_id, str(sweep_dir / RunLayout.plots), RunLayout.plots)
        status = "KILLED" if interrupted else "FAILED" if count["failed"] or not results else "FINISHED"
        ended_at = max((result.ended_at for result in results), default=0.0)
        client.set_terminated(run_id, status, end_time=int(1000 * ended_at) or None)


def _log_fads(client: MlflowClient, results: Sequence[RunResult]) -> None:
    """Log each job's distance from the sweep's reference to its own run."""
    run_ids = {result.fad.job: result.mlflow_run_id for result in results if result.fad and result.mlflow_run_id}
    now_ms = int(1000 * time.time())
    for result in results:
        if result.fad and result.mlflow_run_id and (reference := run_ids.get(result.fad.reference)):
            metrics = metrics_at({SWEEP_FAD: result.fad.fad}, now_ms)
            log_batch(client, result.mlflow_run_id, metrics=metrics, tags={SWEEP_FAD_REFERENCE: reference})
