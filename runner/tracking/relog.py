"""Logs runs to MLflow from their files, later: ``python -m runner track RUN_DIR [RUN_DIR ...] [--uri URI]``.

A run's or a sweep's place is a folder, or a URL in an object store (see ``runner.tracking.relog_remote``).
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from runner.config.schema import from_dict
from runner.core.errors import RunnerError
from runner.core.layout import SWEEP_FILE
from runner.core.readable import read_json
from runner.tracking.client import store_uri, ui_command
from runner.tracking.runs import finish_run
from runner.tracking.sweeps import finish_sweep, open_sweep

if TYPE_CHECKING:
    from runner.config.schema import RunConfig


def track(folder: Path, uri: str | None = None, place: str | None = None) -> str:
    """Log a run's or a sweep's folder to MLflow; what was done, in one line.

    Args:
        folder: it.
        uri: of the MLflow store; None for the run's own.
        place: where a person finds the sweep, if that is not the folder.

    Raises:
        RunnerError: the folder holds no run, or MLflow can't be told.
    """
    sweep = folder / SWEEP_FILE
    if not sweep.exists():
        config = logged_with(folder, uri)
        logged = finish_run(config.tracking, outputs_of(config), folder)
        where = ui_command(store_uri(config.tracking, outputs_of(config)))
        return f"{'logged' if logged else 'was logged already'}; {where}"
    record = read_json(sweep)
    run_dirs = [folder / job for job in record["jobs"] if (folder / job / "result.json").exists()]
    if not run_dirs:
        raise RunnerError(f"{place or folder} holds no job that came to a result: there is nothing to log")
    config = logged_with(run_dirs[0], uri)
    open_sweep(config.tracking, outputs_of(config), folder, record["overrides"], place)
    record = read_json(sweep)
    new = 0
    for run_dir in run_dirs:
        own = logged_with(run_dir, uri)
        new += finish_run(own.tracking, outputs_of(own), run_dir, parent_run_id=record["run_id"])
    finish_sweep(
        *(config.tracking, outputs_of(config), folder, run_dirs),
        interrupted=bool(record.get("interrupted")),
        place=place,
    )
    told = [f"logged, {len(run_dirs)} jobs"]
    if before := len(run_dirs) - new:
        told.append(f"{before} of them were logged already")
    if missing := len(record["jobs"]) - len(run_dirs):
        told.append(f"{missing} more came to no result")
    return f"{', '.join(told)}; {ui_command(store_uri(config.tracking, outputs_of(config)))}"


def logged_with(run_dir: Path, uri: str | None) -> RunConfig:
    """The configuration of a run by its result.json, with the tracking that it is to be logged with.

    Raises:
        RunnerError: there is no result.json that can be read.
    """
    try:
        config = from_dict(json.loads((run_dir / "result.json").read_text(encoding="utf-8"))["config"])
    except (OSError, ValueError, KeyError) as error:
        raise RunnerError(f"{run_dir} has no readable result.json ({error}): give the folder of a run") from error
    if uri:
        return replace(config, tracking=replace(config.tracking, uri=uri))
    if config.tracking.name == "none":
        return replace(config, tracking=replace(config.tracking, name="local"))
    return config


def outputs_of(config: RunConfig) -> Path:
    """A run's ``paths.outputs``."""
    return Path(config.paths.outputs).expanduser().resolve()
