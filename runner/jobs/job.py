"""One composed run, seen from the parent: manifest, weights, worker, result.json, MLflow, summary."""

from __future__ import annotations

import json
import logging
import os
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.config.command_line import command_line
from runner.core.errors import RunnerError
from runner.core.failures import failure_of
from runner.core.files import write_atomic
from runner.core.layout import CLIPS, MANIFEST, STATE
from runner.core.provenance import git_state, user_name
from runner.core.redact import hide_credentials, public
from runner.dataset.frozen_listing import list_clips, listing_of_sweep
from runner.devices.host import host_facts, versions
from runner.jobs.spec import requested_run_name
from runner.jobs.terminal import DownloadProgress, RunProgress, say
from runner.jobs.tracker import RunTracking
from runner.jobs.worker_process import InterruptGuard, run_worker
from runner.output.remote.run import take_output
from runner.output.state.identity import load_precision
from runner.output.state.locks import acquire_run_lock, release
from runner.output.state.plan import began_at, begin_session, check_folder, make_plan
from runner.output.verify import files_are_there, npz_are_there
from runner.reporting.advice import advise
from runner.reporting.intervals import interval_metrics
from runner.reporting.naming import run_name
from runner.reporting.summary import summarise
from runner.weights.selection import random_weights_banner, resolve_weights

if TYPE_CHECKING:
    from runner.dataset.table import Manifest
    from runner.jobs.spec import Job
    from runner.output.remote.run import RemoteRun
    from runner.output.state.plan import Plan
    from runner.weights.selection import WeightsChoice

log = logging.getLogger(__name__)

RESULT_SCHEMA = 1


def run_job(job: Job) -> dict[str, Any]:
    """Carry out one job and return its result.json; what it says is on the terminal and, if tracked, in MLflow.

    Raises:
        RunnerError: the data set or the weights can't be had, outside a sweep; in a sweep that is a failed result.
    """
    started_at = time.time()
    base = {
        "schema": RESULT_SCHEMA,
        "run_dir": job.place,
        "config": public(job.config.to_dict()),
        "overrides": public(list(job.overrides)),
        "swept": job.swept,
        "started_at": started_at,
        "user": user_name(),
        "host": host_facts(),
        "versions": versions(),
    }
    hide_credentials(job.run_dir)
    store = None
    try:
        acquire_run_lock(job.run_dir, job.config.output.dir)
        store = take_output(job.run_dir, job.config, job.in_sweep)
        check_folder(job.run_dir, job.config)
        manifest, weights = _prepare(job)
        get_parts = {"get_parts": store.get_parts} if store else {}
        plan = make_plan(job.run_dir, job.config, manifest, **get_parts)
    except RunnerError as error:
        if not job.in_sweep:
            raise
        log.error("%s", error)
        return _finish(
            job, {**base, **_preparation_failure(error), "run_name": requested_run_name(job)}, RunTracking(job), 1
        )
    finished = _finished_result(job.run_dir) if plan.is_finished else None
    if finished and not store and not _are_there(job, plan):
        finished = None
    if finished and "run_name" in finished:
        say(f"{job.place} is already complete; nothing to do")
        print(summarise(finished, job.place, None))
        return finished
    job = _with_resolved_precision(job)
    for note in plan.notes:
        log.warning("%s", note)
    dataset = _describe(plan.manifest)
    base["session"] = begin_session(job.run_dir, {"started_at": started_at, "overrides": base["overrides"]})
    base["run_started_at"] = began_at(job.run_dir) or started_at
    if store:
        store.begin_session(plan)
    base |= {"dataset": dataset, "weights": asdict(weights)}
    tracking = RunTracking(job)
    with InterruptGuard().installed() as guard:
        with RunProgress(dataset["clips"]) as progress:
            spec = _spec(job, plan, weights, dataset) | ({"store": store.spec()} if store else {})

            def on_worker_started() -> None:
                base["git"] = git_state()
                tracking.begin({**base, "run_name": requested_run_name(job)}, store)

            if finished:  # by the worker alone, after its command was killed: what is left is to tell of it
                on_worker_started()
                found = finished
            else:
                found = run_worker(spec, job.run_dir, progress, guard, on_worker_started, tracking.note)
            result = {**base, **found}
        result["run_name"] = run_name(result)
        result = _finish(job, result, tracking, guard.exit_status, store)
    if guard.requeues:
        if result["status"] == "killed":
            guard.pass_on()  # to Submitit, which queues the job again
    elif guard.count and job.in_sweep and result["status"] != "killed":
        guard.pass_on()  # the signal came too late for this job, and ends the sweep
    return result


def _are_there(job: Job, plan: Plan) -> bool:
    """Whether a finished run still has its files, by a quick look."""
    if "npz" in job.config.output.formats and not npz_are_there(job.run_dir, plan.done):
        return False
    return files_are_there(job.run_dir, plan.done)


def _finished_result(run_dir: Path) -> dict[str, Any] | None:
    """The result.json of a finished run; None if its last session did not get so far."""
    try:
        result: dict[str, Any] = json.loads((run_dir / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return result if result.get("status") == "finished" and (run_dir / CLIPS).exists() else None


def _with_resolved_precision(job: Job) -> Job:
    """The job in the precision that its first session chose, where it asks for ``auto``."""
    begun = load_precision(job.run_dir)
    if begun is None or job.config.precision.name != "auto":
        return job
    log.info("precision=auto: continuing in %s, as the run started", begun)
    return replace(job, config=replace(job.config, precision=replace(job.config.precision, name=begun)))


def _preparation_failure(error: RunnerError) -> dict[str, Any]:
    failure = {**failure_of(error)._asdict(), "signal": None, "log_tail": ""}
    return {"status": "failed", "failure": failure}


def _finish(
    job: Job, result: dict[str, Any], tracking: RunTracking, killed_status: int, store: RemoteRun | None = None
) -> dict[str, Any]:
    """Write result.json, then tell MLflow and the person; with an object store, put what is not there yet.

    Raises:
        KeyboardInterrupt: an end of the logging was asked for; all else is done.
    """
    result["ended_at"] = time.time()
    result["advice"] = advise(result)
    result["metrics"] = {**result.get("metrics", {}), **interval_metrics(result)}
    result["exit_status"] = {"finished": 0, "killed": killed_status}.get(result["status"], 1)
    try:
        write_atomic(job.run_dir / "result.json", json.dumps(result, indent=2))
        if store and result.get("series"):
            store.download_sampled_shards()
        if job.config.profile.plots and result.get("series"):
            from runner.reporting.run_figures import draw_run

            draw_run(result, job.run_dir)
        if store:
            store.upload_remaining(result)
            store.put_result(result)
        tracking.finish(store, result["status"] == "finished")
        if store:
            store.put_tracking()
    except OSError as error:
        log.error("%s could not be written (%s)", job.run_dir / "result.json", error)
    if store:
        store.release()
    release(job.run_dir)
    place = job.place if store else str(job.run_dir)  # a run that could not be prepared puts nothing
    print(summarise(result, place, tracking.outcome, _resume_command(job, result), tracking.page))
    if tracking.stopped:
        raise KeyboardInterrupt
    return result


def _resume_command(job: Job, result: dict[str, Any]) -> str | None:
    """The command that goes on with a run that did not finish; a sweep's jobs go on with their sweep."""
    if job.in_sweep or result["status"] == "finished" or "session" not in result:
        return None
    return command_line(result["overrides"], output_dir=job.place)


def _prepare(job: Job) -> tuple[Manifest, WeightsChoice]:
    config = job.config
    manifest = list_clips(config, _listing(job), job.outputs)
    say(manifest.description)
    weights = resolve_weights(
        config.weights,
        Path(config.paths.models).expanduser().resolve(),
        is_demo=manifest.is_demo,
        needs_pca=config.output.postprocess != "none",
        progress=DownloadProgress(),
    )
    if weights.is_random:
        say(random_weights_banner(weights), style="bold yellow")
    return manifest, weights


def _listing(job: Job) -> str | None:
    """Where the run's part has the listing that it is cut from: the configuration's, or the sweep's."""
    given: str | None = job.config.dataset.listing
    if given is not None or not job.in_sweep:
        return given
    from runner.jobs.sweep import SWEEP_ENVIRONMENT

    return listing_of_sweep(job.config, job.run_dir, Path(os.environ[SWEEP_ENVIRONMENT]).parent)


def _describe(manifest: Manifest) -> dict[str, Any]:
    return {
        "root": manifest.root,
        "digest": manifest.digest,
        "clips": manifest.table.num_rows,
        "description": manifest.description,
        "is_demo": manifest.is_demo,
        "ignored": manifest.ignored,
        "part": manifest.part,
    }


def _spec(job: Job, plan: Plan, weights: WeightsChoice, dataset: dict[str, Any]) -> dict[str, Any]:
    return {
        "config": public(job.config.to_dict()),
        "run_dir": str(job.run_dir),
        "manifest": str(job.run_dir / STATE / MANIFEST),
        "dataset": dataset,
        "shards": plan.shards,
        "rows": plan.rows,
        "weights": asdict(weights),
    }
