"""One job from the command's side: data set, weights and plan, then the worker, result.json, MLflow and summary."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from runner.config.command_line import command_line
from runner.contract.files import read_result, read_worker_result, write_result
from runner.contract.result import RunInfo, RunResult, WeightsReport, WorkerResult
from runner.contract.spec import DatasetSummary, RunSpec
from runner.core.errors import ResumeError, RunnerError
from runner.core.failures import failure_of
from runner.core.layout import RunLayout
from runner.core.provenance import git_state, user_name
from runner.core.redact import hide_credentials, without_credentials
from runner.dataset.frozen_listing import list_clips, listing_of_sweep
from runner.devices.host import host_facts, versions
from runner.jobs.spawn import STANDBY
from runner.jobs.spec import requested_run_name
from runner.jobs.terminal import DownloadProgress, RunProgress, say
from runner.jobs.tracker import RunTracking
from runner.jobs.worker_process import InterruptGuard, run_worker
from runner.models.registry import find_model
from runner.output.remote.run import open_remote_run
from runner.output.state.identity import load_precision
from runner.output.state.locks import acquire_run_lock, release_run_lock
from runner.output.state.plan import make_plan
from runner.output.state.plan_file import begin_attempt, check_output_folder, first_attempt_at
from runner.output.verify import files_exist, npz_files_exist
from runner.reporting.advice import advise
from runner.reporting.intervals import interval_metrics
from runner.reporting.naming import run_name
from runner.reporting.summary import summarize
from runner.weights.selection import WeightsRequest, random_weights_banner

if TYPE_CHECKING:
    from runner.dataset.table import Manifest
    from runner.jobs.spec import Job
    from runner.output.remote.run import RemoteRun
    from runner.output.state.plan import Plan
    from runner.weights.selection import WeightsChoice

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Prepared:
    """A job that can begin; ``remote`` is None where its output is a folder."""

    plan: Plan
    weights: WeightsChoice
    remote: RemoteRun | None


def run_job(job: Job) -> RunResult:
    """Carry out one job: result.json, its summary on the terminal and, if tracked, an MLflow run.

    Raises:
        RunnerError: the data set or the weights can't be had, outside a sweep; in a sweep that is a failed result.
    """
    info = RunInfo(
        run_name=requested_run_name(job),
        run_dir=job.location,
        config=job.config,
        started_at=time.time(),
        overrides=tuple(map(without_credentials, job.overrides)),
        swept=job.swept,
        user=user_name(),
    )
    hide_credentials(job.run_dir)
    guard = InterruptGuard()
    with contextlib.ExitStack() as stack:
        try:
            prepared = _prepare(job, stack)
        except RunnerError as error:
            if not job.in_sweep:
                raise
            log.error("%s", error)
            failed = WorkerResult(status="failed", failure=failure_of(error), host=host_facts(), versions=versions())
            return _Attempt(job, info, None, guard).finish(failed)
        finished = _finished_result(job, prepared)
        if isinstance(finished, RunResult):
            say(f"{job.location} is already complete; nothing to do")
            if job.config.evaluate.tasks and finished.evaluation is None:
                say(f"measure its quality with: python -m runner evaluate {shlex.quote(job.location)}")
            print(summarize(finished, job.location, None, clips=RunLayout(job.run_dir).clips))
            return finished
        result = _Attempt(_with_resolved_precision(job), info, prepared, guard).carry_out(finished)
    if guard.requeues:
        if result.status == "interrupted":
            guard.pass_on()  # to Submitit, which queues the job again
    elif guard.count and job.in_sweep and result.status != "interrupted":
        guard.pass_on()  # the signal came too late for this job, and ends the sweep
    return result


def _prepare(job: Job, stack: contextlib.ExitStack) -> _Prepared:
    """Lock the job's folder and output, and plan the run; the stack releases both.

    Raises:
        RunnerError: they are in use or hold another run, or the data set or the weights can't be had.
    """
    acquire_run_lock(job.run_dir, job.config.output.dir)
    stack.callback(release_run_lock, job.run_dir)
    remote = open_remote_run(job.run_dir, job.config, job.in_sweep)
    if remote:
        stack.callback(remote.release)
    check_output_folder(job.run_dir, job.config)
    config = job.config
    manifest = list_clips(config, _listing(job), job.outputs)
    say(manifest.description)
    weights = _choose_weights(job, manifest)
    download = {"download": remote.download_clip_rows} if remote else {}
    return _Prepared(make_plan(job.run_dir, config, manifest, **download), weights, remote)


def _choose_weights(job: Job, manifest: Manifest) -> WeightsChoice:
    config = job.config
    needs_pca = config.output.postprocess != "none"
    request = WeightsRequest(
        config.weights, config.paths.models_folder, manifest.is_demo, needs_pca, DownloadProgress()
    )
    weights = find_model(config.model).choose_weights(request)
    if weights.is_random:
        say(random_weights_banner(weights), style="bold yellow")
    return weights


def _listing(job: Job) -> str | None:
    """Return the listing that the run's partition is cut from: the configuration's, or the sweep's."""
    listing: str | None = job.config.dataset.listing
    if listing is not None or not job.in_sweep:
        return listing
    from runner.jobs.sweep import SWEEP_ENVIRONMENT

    return listing_of_sweep(job.config, job.run_dir, Path(os.environ[SWEEP_ENVIRONMENT]).parent)


def _finished_result(job: Job, prepared: _Prepared) -> RunResult | WorkerResult | None:
    """Return the result of a run that has nothing left to do and still has its files.

    It is the worker's alone where the command was killed before it could complete it; None where there is none.
    """
    run_dir, plan = job.run_dir, prepared.plan
    if not plan.is_finished or not RunLayout(run_dir).clips.exists():
        return None
    if not prepared.remote:
        if "npz" in job.config.output.formats and not npz_files_exist(run_dir, plan.committed):
            return None
        if not files_exist(run_dir, plan.committed):
            return None
    for read in (read_result, read_worker_result):
        with contextlib.suppress(ResumeError):
            result = read(RunLayout(run_dir).result)
            return result if result.status == "finished" else None
    return None


def _with_resolved_precision(job: Job) -> Job:
    """Replace ``precision=auto`` by the precision of the run's first attempt, if there was one."""
    precision = load_precision(job.run_dir)
    if precision is None or job.config.precision.name != "auto":
        return job
    log.info("precision=auto: continuing in %s, as the run started", precision)
    return replace(job, config=replace(job.config, precision=replace(job.config.precision, name=precision)))


class _Attempt:
    """An attempt at a job, from its worker to its summary.

    Args:
        job: the job.
        info: its description so far.
        prepared: None if it could not be prepared.
        guard: counts requests to end.
    """

    def __init__(self, job: Job, info: RunInfo, prepared: _Prepared | None, guard: InterruptGuard) -> None:
        self._job, self._info, self._prepared, self._guard = job, info, prepared, guard
        self._remote = prepared.remote if prepared else None
        self._tracking = RunTracking(job)

    def carry_out(self, finished: WorkerResult | None) -> RunResult:
        """Run the worker, unless it ``finished`` before, when its command was killed; see ``finish``."""
        job, prepared = self._job, self._prepared
        assert prepared is not None
        for note in prepared.plan.notes:
            log.warning("%s", note)
        started_at = self._info.started_at
        attempt = begin_attempt(job.run_dir, started_at, self._info.overrides)
        dataset = DatasetSummary.of(prepared.plan.manifest)
        self._info = replace(
            self._info, attempt=attempt, run_started_at=first_attempt_at(job.run_dir) or started_at, dataset=dataset
        )
        if self._remote:
            self._remote.begin_attempt(prepared.plan)
        with self._guard.installed():
            with RunProgress(dataset.clips) as progress:
                if finished:
                    self._on_worker_started()
                    result = finished
                else:
                    spec = _spec(job, prepared, dataset)
                    result = run_worker(spec, progress, self._guard, self._on_worker_started, self._tracking.note)
            if job.has_next and job.config.engine.name == "local" and not self._guard.count:
                STANDBY.start()
            if result.startup.weights is None:
                startup = replace(result.startup, weights=WeightsReport.of(prepared.weights))
                result = replace(result, startup=startup)
            return self.finish(result)

    def _on_worker_started(self) -> None:
        """Do what can be done while the worker imports TensorFlow."""
        if self._job.config.profile.plots:
            from runner.reporting.figures import import_matplotlib

            threading.Thread(target=import_matplotlib, name="matplotlib", daemon=True).start()
        self._info = replace(self._info, git=git_state())
        self._tracking.begin(self._info, self._remote)

    def finish(self, outcome: WorkerResult) -> RunResult:
        """Complete and write the result, upload and log the run, and print its summary.

        Raises:
            KeyboardInterrupt: the user stopped the logging; all else is done.
        """
        result = self._complete(outcome)
        path = RunLayout(self._job.run_dir).result
        try:
            write_result(path, result)
            result = self._draw_and_upload(result)
            self._tracking.finish(self._remote, result.status == "finished")
            if self._remote:
                self._remote.upload_tracking()
        except OSError as error:
            log.error("%s could not be written (%s)", path, error)
        location = self._job.location if self._remote else str(self._job.run_dir)  # an unprepared run uploads nothing
        page, resume = self._tracking.page, _resume_command(self._job, result)
        clips = RunLayout(self._job.run_dir).clips
        print(summarize(result, location, self._tracking.outcome, resume, page, clips))
        if self._tracking.stopped:
            raise KeyboardInterrupt
        return result

    def _complete(self, outcome: WorkerResult) -> RunResult:
        config, swept = self._info.config, self._info.swept
        result = RunResult(
            **{**vars(outcome), "host": outcome.host or host_facts(), "versions": outcome.versions or versions()},
            info=replace(self._info, run_name=run_name(config, swept, outcome.startup)),
            ended_at=time.time(),
            exit_status={"finished": 0, "interrupted": self._guard.exit_status}.get(outcome.status, 1),
        )
        return replace(result, advice=advise(result), metrics={**result.metrics, **interval_metrics(result)})

    def _evaluate(self, result: RunResult) -> RunResult:
        """Measure the quality of a finished run's embeddings, where that is asked for; trouble is a warning."""
        config = self._job.config.evaluate
        if not config.tasks or result.status != "finished":
            return result
        from runner.evaluation.evaluate import evaluate, with_evaluation, write_evaluation

        say(f"evaluating: {', '.join(config.tasks)}")
        try:
            report = evaluate(self._job.location if self._remote else str(self._job.run_dir), config)
            write_evaluation(report, self._job.run_dir)
            result = with_evaluation(result, report)
        except RunnerError as error:
            log.warning("the quality was not measured: %s", error)
            result = replace(result, warnings=(*result.warnings, f"the quality was not measured: {error}"))
        write_result(RunLayout(self._job.run_dir).result, result)
        return result

    def _draw_and_upload(self, result: RunResult) -> RunResult:
        result = self._evaluate(result)
        has_series = bool(result.stats.throughput_series)
        if self._remote and has_series:
            self._remote.download_sampled_shards()
        if self._job.config.profile.plots and has_series:
            from runner.reporting.run_figures import draw_run

            draw_run(result, self._job.run_dir)
        uploads = (self._remote.upload_remaining, self._remote.upload_result) if self._remote else ()
        for upload in uploads:
            if failure := upload(result.status == "finished"):
                result = replace(result, status="failed", exit_status=1, failure=failure)
                write_result(RunLayout(self._job.run_dir).result, result)
        return result


def _spec(job: Job, prepared: _Prepared, dataset: DatasetSummary) -> RunSpec:
    plan, remote = prepared.plan, prepared.remote
    return RunSpec(
        config=job.config,
        run_dir=job.run_dir,
        manifest=RunLayout(job.run_dir).manifest,
        dataset=dataset,
        shards=tuple(plan.shards),
        row_digests=tuple(plan.row_digests),
        weights=prepared.weights,
        remote=remote.handle() if remote else None,
    )


def _resume_command(job: Job, result: RunResult) -> str | None:
    """Return the command that resumes a run that did not finish; a sweep's jobs are resumed by their sweep."""
    if job.in_sweep or result.status == "finished" or result.info.attempt is None:
        return None
    return command_line(result.info.overrides, output_dir=job.location)
