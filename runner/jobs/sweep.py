"""Around Hydra's runs: checks before anything is made, and the MLflow parent run of a sweep.

``RunnerCallback`` is Hydra's callback in conf/config.yaml.  Hydra turns an exception in a callback into a warning, so
the checks end the program themselves; and it skips ``on_multirun_end`` when a job failed, so the command line calls
``finish_sweep``.
"""

from __future__ import annotations

import logging
import os
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from runner.config.composition import expand_sweep, to_run_config, typed_words
from runner.config.params import config_params
from runner.contract.files import read_jobs, read_sweep, write_sweep
from runner.contract.sweep import SweepState
from runner.core.errors import ConfigError
from runner.core.files import make_folder
from runner.core.layout import FORMAT_FOLDERS, RunLayout
from runner.core.paths import display_location, is_url
from runner.core.provenance import git_state, user_name
from runner.core.redact import hide_credentials, without_credentials
from runner.devices.detection import unavailable_devices
from runner.jobs.spawn import STANDBY
from runner.output.remote.run import check_staging_dir, open_remote_run
from runner.output.state.locks import acquire_run_lock
from runner.output.state.plan_file import check_output_folder
from runner.reporting.naming import swept_settings
from runner.reporting.summary import summarize_sweep

if TYPE_CHECKING:
    from runner.config.schema import RunConfig
    from runner.output.remote.sweep import RemoteSweep

log = logging.getLogger(__name__)

SWEEP_ENVIRONMENT = "VGGISH_RUNNER_SWEEP"
"""Path of sweep.json for the jobs, whatever process a launcher runs them in."""


@dataclass
class Sweep:
    """The sweep in progress in this process.

    Attributes:
        config: its first job's.
        folder: of its files.
        overrides: of the command line.
        output: its files in an object store; None where they stay in the folder.
        count: of its jobs, whose workers may be started ahead.
        run_dirs: its jobs' folders so far.
        swept: the settings that differ between its jobs, each with all its values.
    """

    config: RunConfig
    folder: Path
    overrides: tuple[str, ...]
    output: RemoteSweep | None = None
    count: int = 0
    run_dirs: list[Path] = field(default_factory=list)
    swept: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def location(self) -> str:
        """The sweep's folder, or its URL in an object store."""
        return display_location(self.config.output.dir, self.folder)


_current: Sweep | None = None
"""Set by Hydra's callback, read by the command: Hydra makes the callback itself, and gives nothing of it back."""


class RunnerCallback(Callback):
    """Hydra's hooks."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check the configuration and lock the run's folder, before it is made."""
        with exit_on_config_error():
            run = to_run_config(config)
            folder = Path(str(config.hydra.run.dir)).absolute()
            if is_url(run.output.dir):
                check_staging_dir("hydra.run.dir", folder, run)
            else:
                check_output_folder(folder, run)
            acquire_run_lock(folder, run.output.dir)
            if open_remote_run(folder, run):
                check_output_folder(folder, run)  # as the store has it
        _start_ahead(config, run)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check every job's configuration, and open the parent run, before a sweep's first job."""
        with exit_on_config_error():
            jobs = expand_sweep(config)
            folder = Path(str(config.hydra.sweep.dir)).absolute()
            overrides = typed_words(config.hydra)
            output = _open_output(folder, jobs)
            check_sweep_folder(folder, overrides, display_location(jobs[0].output.dir, folder))
            _warn_unavailable_devices(config)
            params = list(map(config_params, jobs))
            swept = swept_settings(params) if len(params) > 1 else _searched_settings(config)
        _start_ahead(config, jobs[0])
        start_sweep(Sweep(jobs[0], folder, overrides, output, _jobs_started_ahead(config, jobs), swept=swept))
        if output:
            with exit_on_config_error():
                output.upload_state()

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Silence Hydra's own report of a failed job, which the command line reports once."""
        job_return.__class__ = QuietReturn


class QuietReturn(JobReturn):
    """Hydra's record of a job, which here raises the job's error without printing its overrides."""

    @property  # type: ignore[misc]
    def return_value(self) -> Any:
        """The job's value.

        Raises:
            Exception: the job's.
        """
        if isinstance(self._return_value, BaseException):
            raise self._return_value
        return self._return_value


def _may_start_ahead(config: DictConfig, run: RunConfig) -> bool:
    """Whether a worker may be started before its job: this process runs the jobs, all in the same environment."""
    runs_jobs = config.hydra.mode == RunMode.RUN or str(config.hydra.launcher["_target_"]).endswith("BasicLauncher")
    return runs_jobs and run.engine.name == "local" and not config.hydra.job.env_set


def _start_ahead(config: DictConfig, run: RunConfig) -> None:
    """Start a worker ahead of its job, unless one waits, where that is possible; else end the one that waits."""
    if _may_start_ahead(config, run):
        STANDBY.start()
    else:
        STANDBY.close()


def _jobs_started_ahead(config: DictConfig, jobs: Sequence[RunConfig]) -> int:
    """Return the number of a sweep's jobs whose workers may be started before them."""
    if not _may_start_ahead(config, jobs[0]):
        return 0
    return len(jobs) if len(jobs) > 1 else int(config.hydra.sweeper.get("n_trials") or 1)


def _searched_settings(config: DictConfig) -> dict[str, list[str]]:
    """Return the settings that a sweeper chooses as it goes, without their values, which are not known yet."""
    keys = map(str, config.hydra.sweeper.get("params") or {})
    return {f"{key}.name" if "." not in key else key: [] for key in keys}


def _open_output(folder: Path, jobs: Sequence[RunConfig]) -> RemoteSweep | None:
    """Acquire a sweep's output in an object store for this command; None where it is a folder.

    Raises:
        ConfigError: its jobs have several locations, or as ``runner.output.remote.sweep.open_remote_sweep`` does.
    """
    locations = {job.output.dir for job in jobs}
    if not any(map(is_url, locations)):
        return None
    if len(locations) > 1:
        raise ConfigError(
            f"output.dir has {len(locations)} values in one sweep, one of them a URL: give one, below which each job "
            "gets a folder of its own"
        )
    check_staging_dir("hydra.sweep.dir", folder, jobs[0])
    from runner.output.remote.sweep import open_remote_sweep

    return open_remote_sweep(folder, jobs[0])


def with_job_output_dir(job: RunConfig, run_dir: Path, sweep_dir: Path) -> RunConfig:
    """Return a sweep's job with its own ``output.dir`` below the sweep's, if that is a URL."""
    url = job.output.dir
    if url is None or not is_url(url):
        return job
    below = Path(os.path.relpath(run_dir, sweep_dir)).as_posix()
    return replace(job, output=replace(job.output, dir=f"{url.rstrip('/')}/{below}"))


def _warn_unavailable_devices(config: DictConfig) -> None:
    """Warn of devices that a sweep over this machine's devices leaves out."""
    params = OmegaConf.to_container(config.hydra.sweeper.get("params") or OmegaConf.create({}), resolve=False)
    if isinstance(params, dict) and "runner.devices" in str(params.get("device")):
        for kind, reason in unavailable_devices().items():
            log.warning("device=%s is left out of the sweep: %s", kind.value, reason)


@contextmanager
def exit_on_config_error() -> Iterator[None]:
    """End the program with one message on an error."""
    try:
        yield
    except Exception as error:
        from runner.config.composition import format_hydra_error
        from runner.core.printable import printable

        raise SystemExit(f"error: {printable(format_hydra_error(error))}") from error


def check_sweep_folder(folder: Path, overrides: Sequence[str], location: str) -> None:
    """Check that a sweep may have its files in ``folder``: it is free, or holds the same sweep, which is then resumed.

    Args:
        folder: the sweep's; for an object store its staging folder, with the sweep.json of the store.
        overrides: of the command line.
        location: the folder or URL, for messages.

    Raises:
        ConfigError: it holds a run, or another sweep.
    """
    if any((folder / name).exists() for name in (RunLayout.result, *FORMAT_FOLDERS, RunLayout.state)):
        raise ConfigError(f"output.dir={location} already holds a run: name another folder, or move that run away")
    if RunLayout(folder).sweep.exists():
        before = read_sweep(RunLayout(folder).sweep).overrides
        if before != tuple(map(without_credentials, overrides)):
            raise ConfigError(
                f"output.dir={location} already holds another sweep ({' '.join(before)}): "
                "give the same settings to resume it, or name another folder"
            )


def start_sweep(sweep: Sweep) -> None:
    """Write sweep.json for the jobs, and open the parent run."""
    global _current
    _current = sweep
    make_folder(sweep.folder)
    path = RunLayout(sweep.folder).sweep
    if not path.exists():
        state = SweepState(
            overrides=tuple(map(without_credentials, sweep.overrides)),
            swept=sweep.swept,
            started_at=time.time(),
            user=user_name(),
            git=git_state(),
        )
        write_sweep(path, state)
    os.environ[SWEEP_ENVIRONMENT] = str(path)
    if sweep.config.tracking.name == "none":
        return
    from runner.tracking.client import TrackingError
    from runner.tracking.sweeps import open_sweep

    try:
        open_sweep(sweep.config.tracking, _outputs(sweep), sweep.folder, sweep.overrides, sweep.location)
    except TrackingError as error:
        log.warning("%s", error)


def register_job(run_dir: Path) -> str | None:
    """Register a job's folder with the sweep in progress; return the MLflow id of its parent run, if it has one."""
    if _current is not None:
        _current.run_dirs.append(run_dir)
    return read_sweep(Path(os.environ[SWEEP_ENVIRONMENT])).run_id


def has_next_job() -> bool:
    """Whether the sweep in progress in this process has jobs after the registered ones."""
    return _current is not None and len(_current.run_dirs) < _current.count


def finish_sweep(interrupted: bool) -> bool:
    """Close the parent run of the sweep in progress, if there is one, and print the table of its jobs.

    Returns:
        False if the sweep's own files could not be put into its object store.
    """
    global _current
    STANDBY.close()
    sweep, _current = _current, None
    if sweep is None:
        return True
    os.environ.pop(SWEEP_ENVIRONMENT, None)
    from runner.evaluation.sweep_fad import sweep_fads  # NumPy, which checks of a configuration do without

    if not sweep.run_dirs:  # a launcher such as Submitit's ran the jobs elsewhere
        sweep.run_dirs = sorted(
            (path.parent for path in sweep.folder.glob("*/result.json")),
            key=lambda folder: (len(folder.name), folder.name),
        )
    path = RunLayout(sweep.folder).sweep
    jobs = tuple(os.path.relpath(run_dir, sweep.folder) for run_dir in sweep.run_dirs)
    results_by_job = read_jobs(sweep.folder, sweep.run_dirs)
    fads = sweep_fads(sweep.folder, results_by_job)
    write_sweep(path, replace(read_sweep(path), jobs=jobs, fads=tuple(fads.values()), interrupted=interrupted))
    hide_credentials(sweep.folder)
    results = [replace(result, fad=fads.get(job)) for job, result in results_by_job.items()]
    if sweep.config.profile.plots and results:
        from runner.reporting.sweep_figures import draw_sweep

        draw_sweep(results, sweep.folder)
    outcome = page = None
    if sweep.config.tracking.name != "none":
        from runner.tracking.client import TrackingError, store_uri
        from runner.tracking.runs import ui_location
        from runner.tracking.sweeps import finish_sweep as log_sweep

        try:
            log_sweep(
                *(sweep.config.tracking, _outputs(sweep), sweep.folder, sweep.run_dirs),
                interrupted=interrupted,
                location=sweep.location,
            )
            outcome, page = ui_location(store_uri(sweep.config.tracking, _outputs(sweep)), sweep.folder)
        except TrackingError as error:
            log.warning("%s", error)
            outcome = f"not logged; log it later with: python -m runner track {shlex.quote(sweep.location)}"
    is_uploaded = sweep.output is None or sweep.output.upload_files(is_finished=bool(results) and not interrupted)
    location = sweep.location if is_uploaded else f"{sweep.folder}, as they could not all be put to {sweep.location}"
    sys.stdout.flush()
    print(summarize_sweep(results, location, outcome, page, len(sweep.run_dirs) - len(results)))
    return is_uploaded


def _outputs(sweep: Sweep) -> Path:
    return sweep.config.paths.outputs_folder
