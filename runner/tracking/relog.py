"""Logs runs to MLflow from their files, later: ``python -m runner track RUN_DIR [RUN_DIR ...] [--uri URI]``.

The location of a run or a sweep is a folder, or a URL in an object store (see ``runner.tracking.relog_remote``).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from runner.contract.files import read_result, read_sweep
from runner.core.errors import RunnerError
from runner.core.layout import RunLayout
from runner.tracking.client import store_uri, ui_command
from runner.tracking.runs import finish_run
from runner.tracking.sweeps import finish_sweep, open_sweep

if TYPE_CHECKING:
    from runner.config.schema import RunConfig


def track(folder: Path, uri: str | None = None, location: str | None = None) -> str:
    """Log a run's or a sweep's folder to MLflow, and return a line about it.

    Args:
        folder: the run's or the sweep's.
        uri: of the MLflow store; None for the run's own.
        location: the sweep's URL, if the folder is a copy of it.

    Raises:
        RunnerError: the folder holds no run, one of another version of the runner, or MLflow can't be reached.
    """
    sweep = RunLayout(folder).sweep
    if not sweep.exists():
        config = logged_with(folder, uri)
        logged = finish_run(config.tracking, config.paths.outputs_folder, folder)
        where = ui_command(store_uri(config.tracking, config.paths.outputs_folder))
        return f"{'logged' if logged else 'was logged already'}; {where}"
    state = read_sweep(sweep)
    run_dirs = [folder / job for job in state.jobs if RunLayout(folder / job).result.exists()]
    if not run_dirs:
        raise RunnerError(f"{location or folder} holds no job that came to a result: there is nothing to log")
    config = logged_with(run_dirs[0], uri)
    open_sweep(config.tracking, config.paths.outputs_folder, folder, state.overrides, location)
    run_id = read_sweep(sweep).run_id
    new = 0
    for run_dir in run_dirs:
        own = logged_with(run_dir, uri)
        new += finish_run(own.tracking, own.paths.outputs_folder, run_dir, parent_run_id=run_id)
    finish_sweep(
        *(config.tracking, config.paths.outputs_folder, folder, run_dirs),
        interrupted=state.interrupted,
        location=location,
    )
    parts = [f"logged, {len(run_dirs)} jobs"]
    if before := len(run_dirs) - new:
        parts.append(f"{before} of them were logged already")
    if missing := len(state.jobs) - len(run_dirs):
        parts.append(f"{missing} more came to no result")
    return f"{', '.join(parts)}; {ui_command(store_uri(config.tracking, config.paths.outputs_folder))}"


def logged_with(run_dir: Path, uri: str | None) -> RunConfig:
    """Return a run's configuration with the tracking that it is to be logged with.

    Raises:
        RunnerError: there is no result.json, or none that this version of the runner can read.
    """
    path = RunLayout(run_dir).result
    if not path.exists():
        raise RunnerError(f"{run_dir} has no result.json: give the folder of a run")
    config = read_result(path).info.config
    if uri:
        return replace(config, tracking=replace(config.tracking, uri=uri))
    if config.tracking.name == "none":
        return replace(config, tracking=replace(config.tracking, name="local"))
    return config
