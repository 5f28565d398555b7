"""One composed run, seen from the parent: manifest, weights, worker, result.json, MLflow, summary."""

from __future__ import annotations

import json
import logging
import os
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.advice import advise
from runner.config import RunConfig
from runner.errors import RunnerError
from runner.failures import failure_of
from runner.files import write_atomic
from runner.frozen_listing import list_clips, listing_of_sweep
from runner.hardware import host_facts, versions
from runner.intervals import interval_metrics
from runner.journal import STATE, files_are_there
from runner.launch import InterruptGuard, run_worker
from runner.live_tracking import RunTracking
from runner.manifest import Manifest
from runner.naming import run_name, swept_of
from runner.output import CLIPS, npz_are_there
from runner.provenance import git_state, user_name
from runner.record import command_line, hide_credentials, without_credentials
from runner.resume import (
    MANIFEST,
    Plan,
    began_at,
    begin_session,
    check_folder,
    claim,
    make_plan,
    precision_begun_with,
    release,
)
from runner.stores import place_of, take_output
from runner.summary import random_weights_banner, summarise
from runner.terminal import DownloadProgress, RunProgress, say
from runner.weights import WeightsChoice, resolve_weights

if TYPE_CHECKING:
    from runner.store_output import StoreOutput

log = logging.getLogger(__name__)

RESULT_SCHEMA = 1


@dataclass(frozen=True)
class Job:
    """What is to be run: the configuration, where its files go, and what was typed to get it.

    ``sweep_run_id`` is the MLflow parent run of the sweep that this job belongs to.
    """

    config: RunConfig
    run_dir: Path
    overrides: tuple[str, ...] = ()
    in_sweep: bool = False
    sweep_run_id: str | None = None

    @property
    def place(self) -> str:
        """Where a person finds the run's files: its folder, or its URL in an object store."""
        return place_of(self.config.output.dir, self.run_dir)

    @property
    def outputs(self) -> Path:
        """Its ``paths.outputs``."""
        return Path(self.config.paths.outputs).expanduser().resolve()

    @property
    def swept(self) -> dict[str, str]:
        """The job's values of what its sweep sweeps, as they are shown."""
        if not self.in_sweep:
            return {}
        from runner.sweep import SWEEP_ENVIRONMENT

        return swept_of(self.config.to_dict(), os.environ.get(SWEEP_ENVIRONMENT))


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
        claim(job.run_dir, job.config.output.dir)
        store = take_output(job.run_dir, job.config, job.in_sweep)
        check_folder(job.run_dir, job.config)
        manifest, weights = _prepare(job)
        get_parts = {"get_parts": store.get_parts} if store else {}
        plan = make_plan(job.run_dir, job.config, manifest, **get_parts)
    except RunnerError as error:
        if not job.in_sweep:
            raise
        log.error("%s", error)
        return _finish(job, {**base, **_unprepared(error), "run_name": _asked_name(job)}, RunTracking(job), 1)
    finished = _finished_result(job.run_dir) if plan.is_finished else None
    if finished and not store and not _are_there(job, plan):
        finished = None
    if finished and "run_name" in finished:
        say(f"{job.place} is finished already: nothing is left to do")
        print(summarise(finished, job.place, None))
        return finished
    job = _as_begun(job)
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

            def meanwhile() -> None:
                base["git"] = git_state()
                tracking.begin({**base, "run_name": _asked_name(job)}, store)

            if finished:  # by the worker alone, after its command was killed: what is left is to tell of it
                meanwhile()
                found = finished
            else:
                found = run_worker(spec, job.run_dir, progress, guard, meanwhile, tracking.note)
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


def _as_begun(job: Job) -> Job:
    """The job in the precision that its first session chose, where it asks for ``auto``."""
    begun = precision_begun_with(job.run_dir)
    if begun is None or job.config.precision.name != "auto":
        return job
    log.info("precision=auto: the run was begun in %s", begun)
    return replace(job, config=replace(job.config, precision=replace(job.config.precision, name=begun)))


def public(value: Any) -> Any:
    """A plain nested value with the credentials taken out of every address in it."""
    if isinstance(value, dict):
        return {key: public(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [public(inner) for inner in value]
    return without_credentials(value) if isinstance(value, str) else value


def _unprepared(error: RunnerError) -> dict[str, Any]:
    failure = {**failure_of(error)._asdict(), "signal": None, "log_tail": ""}
    return {"status": "failed", "failure": failure}


def _finish(
    job: Job, result: dict[str, Any], tracking: RunTracking, killed_status: int, store: StoreOutput | None = None
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
            store.get_sample()
        if job.config.profile.pictures and result.get("series"):
            from runner.pictures import draw_run

            draw_run(result, job.run_dir)
        if store:
            store.put_rest(result)
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


def _asked_name(job: Job) -> str:
    return run_name({"config": job.config.to_dict(), "swept": job.swept})


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
    if weights.meaningless:
        say(random_weights_banner(weights), style="bold yellow")
    return manifest, weights


def _listing(job: Job) -> str | None:
    """Where the run's part has the listing that it is cut from: the configuration's, or the sweep's."""
    given: str | None = job.config.dataset.listing
    if given is not None or not job.in_sweep:
        return given
    from runner.sweep import SWEEP_ENVIRONMENT

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
