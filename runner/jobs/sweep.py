"""Around Hydra's runs: checks before anything is made, and the MLflow parent run of a sweep.

``RunnerCallback`` is what conf/config.yaml gives to Hydra.  Hydra turns an exception in a callback into a warning, so
the checks end the program themselves; and it skips ``on_multirun_end`` when a job failed, so ``finish_sweep`` is
called by the command line.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from runner.config.composition import expand_sweep, to_run_config, typed_words
from runner.core.errors import ConfigError
from runner.core.files import make_folder, write_atomic
from runner.core.layout import FOLDERS, STATE, SWEEP_FILE
from runner.core.paths import display_location, is_url
from runner.core.provenance import git_state, user_name
from runner.core.readable import read_json, read_results
from runner.core.redact import hide_credentials, without_credentials
from runner.devices.detection import unavailable_devices
from runner.output.remote.run import check_staging_dir, take_output
from runner.output.state.locks import acquire_run_lock
from runner.output.state.plan import check_folder
from runner.reporting.naming import SWEPT, swept_settings
from runner.reporting.summary import summarise_sweep

if TYPE_CHECKING:
    from runner.config.schema import RunConfig
    from runner.output.remote.sweep import SweepOutput

log = logging.getLogger(__name__)

SWEEP_ENVIRONMENT = "VGGISH_RUNNER_SWEEP"
"""Path of sweep.json for the jobs, whatever process a launcher runs them in."""


@dataclass
class Sweep:
    """The sweep under way in this process; ``output`` is what it has in an object store."""

    config: RunConfig
    folder: Path
    overrides: tuple[str, ...]
    output: SweepOutput | None = None
    run_dirs: list[Path] = field(default_factory=list)
    swept: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """The settings that differ between its jobs, each with all its values."""

    @property
    def place(self) -> str:
        """Where a person finds the sweep's files: its folder, or its URL."""
        return display_location(self.config.output.dir, self.folder)


_current: Sweep | None = None


class RunnerCallback(Callback):
    """Hydra's hooks."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Before the run's folder is made: is the configuration sound, and is the folder free?"""
        with exit_on_config_error():
            run = to_run_config(config)
            folder = Path(str(config.hydra.run.dir)).absolute()
            if is_url(run.output.dir):
                check_staging_dir("hydra.run.dir", folder, run)
            else:
                check_folder(folder, run)
            acquire_run_lock(folder, run.output.dir)
            if take_output(folder, run):
                check_folder(folder, run)  # as the store has it

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Before a sweep's first job: is every job sound?  Then open the parent run."""
        with exit_on_config_error():
            jobs = expand_sweep(config)
            folder = Path(str(config.hydra.sweep.dir)).absolute()
            overrides = typed_words(config.hydra)
            output = _take_output(folder, jobs)
            check_sweep_folder(folder, overrides, display_location(jobs[0].output.dir, folder))
            _warn_unavailable_devices(config)
            swept = swept_settings([job.to_dict() for job in jobs]) if len(jobs) > 1 else _sought(config)
        start_sweep(Sweep(jobs[0], folder, overrides, output, swept=swept))
        if output:
            with exit_on_config_error():
                output.put_record()

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """After a job, in whatever process: a failure is told once, by the command line."""
        job_return.__class__ = QuietReturn


class QuietReturn(JobReturn):
    """What Hydra has of a job; its own prints the overrides before it raises the job's error."""

    @property  # type: ignore[misc]
    def return_value(self) -> Any:
        """The job's value.

        Raises:
            Exception: what the job raised.
        """
        if isinstance(self._return_value, BaseException):
            raise self._return_value
        return self._return_value


def _sought(config: DictConfig) -> dict[str, list[str]]:
    """The settings that a sweeper chooses as it goes, whose values aren't known yet."""
    keys = map(str, config.hydra.sweeper.get("params") or {})
    return {f"{key}.name" if "." not in key else key: [] for key in keys}


def _take_output(folder: Path, jobs: Sequence[RunConfig]) -> SweepOutput | None:
    """What a sweep has in an object store, taken for this command; None where it stays on a file system.

    Raises:
        ConfigError: its jobs want several places, or as ``runner.output.remote.sweep.take`` does.
    """
    places = {job.output.dir for job in jobs}
    if not any(map(is_url, places)):
        return None
    if len(places) > 1:
        raise ConfigError(
            f"output.dir has {len(places)} values in one sweep, one of them a URL: give one, below which each job gets "
            "a folder of its own"
        )
    check_staging_dir("hydra.sweep.dir", folder, jobs[0])
    from runner.output.remote.sweep import take

    return take(folder, jobs[0])


def with_job_output_dir(job: RunConfig, run_dir: Path, sweep_dir: Path) -> RunConfig:
    """A sweep's job with an ``output.dir`` of its own, below that of the sweep, if that is a URL."""
    url = job.output.dir
    if url is None or not is_url(url):
        return job
    below = Path(os.path.relpath(run_dir, sweep_dir)).as_posix()
    return replace(job, output=replace(job.output, dir=f"{url.rstrip('/')}/{below}"))


def _warn_unavailable_devices(config: DictConfig) -> None:
    """Of a sweep over the devices of this machine: which ones it has not."""
    params = OmegaConf.to_container(config.hydra.sweeper.get("params") or OmegaConf.create({}), resolve=False)
    if isinstance(params, dict) and "runner.devices" in str(params.get("device")):
        for kind, reason in unavailable_devices().items():
            log.warning("device=%s is left out of the sweep: %s", kind.value, reason)


class exit_on_config_error:
    """Ends the program with one message on a configuration error."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, Exception):
            from runner.config.composition import format_hydra_error
            from runner.core.printable import printable

            raise SystemExit(f"error: {printable(format_hydra_error(error))}") from error


def check_sweep_folder(folder: Path, overrides: Sequence[str], place: str) -> None:
    """Whether a sweep may have its files in ``folder``: it is free, or holds the same sweep, which is then resumed.

    Args:
        folder: the sweep's; for an object store its working folder, with the sweep.json of the store.
        overrides: of the command line.
        place: what messages call it.

    Raises:
        ConfigError: it holds a run, or another sweep.
    """
    if any((folder / name).exists() for name in ("result.json", *FOLDERS, STATE)):
        raise ConfigError(f"output.dir={place} already holds a run: name another folder, or move that run away")
    if (folder / SWEEP_FILE).exists():
        before = read_json(folder / SWEEP_FILE)["overrides"]
        if before != list(map(without_credentials, overrides)):
            raise ConfigError(
                f"output.dir={place} already holds another sweep ({' '.join(before)}): "
                "give the same settings to resume it, or name another folder"
            )


def start_sweep(sweep: Sweep) -> None:
    """Open the parent run, and leave sweep.json for the jobs."""
    global _current
    _current = sweep
    make_folder(sweep.folder)
    path = sweep.folder / SWEEP_FILE
    if not path.exists():
        overrides = list(map(without_credentials, sweep.overrides))
        record: dict[str, Any] = {"run_id": None, "overrides": overrides, "jobs": [], SWEPT: sweep.swept}
        record |= {"started_at": time.time(), "user": user_name(), "git": git_state()}
        write_atomic(path, json.dumps(record))
    os.environ[SWEEP_ENVIRONMENT] = str(sweep.folder / SWEEP_FILE)
    if sweep.config.tracking.name == "none":
        return
    from runner.tracking.client import TrackingError
    from runner.tracking.sweeps import open_sweep

    try:
        open_sweep(sweep.config.tracking, _outputs(sweep), sweep.folder, sweep.overrides, sweep.place)
    except TrackingError as error:
        log.warning("%s", error)


def register_job(run_dir: Path) -> str | None:
    """Register a job's folder with the sweep under way; the MLflow id of the sweep's parent run, if it has one."""
    if _current is not None:
        _current.run_dirs.append(run_dir)
    found = read_json(Path(os.environ[SWEEP_ENVIRONMENT]))
    run_id: str | None = found.get("run_id")
    return run_id


def finish_sweep(interrupted: bool) -> bool:
    """Close the parent run of the sweep under way, if there is one, and print the table of its jobs.

    Returns:
        False if the sweep's own files could not be put into its object store.
    """
    global _current
    sweep, _current = _current, None
    if sweep is None:
        return True
    os.environ.pop(SWEEP_ENVIRONMENT, None)
    if not sweep.run_dirs:  # a launcher such as Submitit's ran the jobs elsewhere
        sweep.run_dirs = sorted(
            (found.parent for found in sweep.folder.glob("*/result.json")), key=lambda each: (len(each.name), each.name)
        )
    path = sweep.folder / SWEEP_FILE
    record = read_json(path)
    record["jobs"] = [os.path.relpath(run_dir, sweep.folder) for run_dir in sweep.run_dirs]
    record["interrupted"] = interrupted
    write_atomic(path, json.dumps(record, indent=2))
    hide_credentials(sweep.folder)
    results = read_results(sweep.run_dirs)
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
                place=sweep.place,
            )
            outcome, page = ui_location(store_uri(sweep.config.tracking, _outputs(sweep)), sweep.folder)
        except TrackingError as error:
            log.warning("%s", error)
            outcome = f"not logged; log it later with: python -m runner track {shlex.quote(sweep.place)}"
    is_put = sweep.output is None or sweep.output.put_files(finished=bool(results) and not interrupted)
    place = sweep.place if is_put else f"{sweep.folder}, as they could not all be put to {sweep.place}"
    sys.stdout.flush()
    print(summarise_sweep(results, place, outcome, page))
    return is_put


def _outputs(sweep: Sweep) -> Path:
    return Path(sweep.config.paths.outputs).expanduser().resolve()
