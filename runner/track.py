"""Logs runs to MLflow from their files, later: ``python -m runner.track RUN_DIR [RUN_DIR ...] [--uri URI]``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from runner.config import RunConfig, from_dict
from runner.errors import RunnerError
from runner.tracking import finish_run, finish_sweep, open_sweep, store_uri, ui_command


def main(arguments: Sequence[str] | None = None) -> int:
    """Log the folders given; exit status 1 if one could not be logged."""
    parser = argparse.ArgumentParser(
        prog="python -m runner.track", description="Log runs or sweeps to MLflow that could not be logged at the time."
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="RUN_DIR", help="a run's or a sweep's folder")
    parser.add_argument("--uri", help="the MLflow store (default: the run's own tracking settings)")
    options = parser.parse_args(arguments)
    failed = False
    for folder in options.folders:
        try:
            print(f"{folder}: {track(folder.resolve(), options.uri)}")
        except RunnerError as error:
            failed = True
            print(f"{folder}: error: {error}", file=sys.stderr)
    return int(failed)


def track(folder: Path, uri: str | None = None) -> str:
    """Log a run's or a sweep's folder to MLflow; what was done, in one line.

    Raises:
        RunnerError: the folder holds no run, or MLflow can't be told.
    """
    sweep = folder / "sweep.json"
    if not sweep.exists():
        config = _config(folder, uri)
        logged = finish_run(config.tracking, _outputs(config), folder)
        where = ui_command(store_uri(config.tracking, _outputs(config)))
        return f"{'logged' if logged else 'was logged already'}; {where}"
    record = json.loads(sweep.read_text(encoding="utf-8"))
    run_dirs = [folder / job for job in record["jobs"]]
    if not run_dirs:
        raise RunnerError(f"{folder} holds no job: there is nothing to log")
    config = _config(run_dirs[0], uri)
    if not record.get("run_id") or uri:
        open_sweep(config.tracking, _outputs(config), folder, record["overrides"])
        record = json.loads(sweep.read_text(encoding="utf-8"))
    for run_dir in run_dirs:
        own = _config(run_dir, uri)
        finish_run(own.tracking, _outputs(own), run_dir, parent_run_id=record["run_id"])
    finish_sweep(config.tracking, _outputs(config), folder, run_dirs, interrupted=bool(record.get("interrupted")))
    return f"logged, {len(run_dirs)} jobs; {ui_command(store_uri(config.tracking, _outputs(config)))}"


def _config(run_dir: Path, uri: str | None) -> RunConfig:
    try:
        config = from_dict(json.loads((run_dir / "result.json").read_text(encoding="utf-8"))["config"])
    except (OSError, ValueError, KeyError) as error:
        raise RunnerError(f"{run_dir} has no readable result.json ({error}): give the folder of a run") from error
    if uri:
        return replace(config, tracking=replace(config.tracking, uri=uri))
    if config.tracking.kind == "none":
        return replace(config, tracking=replace(config.tracking, kind="local"))
    return config


def _outputs(config: RunConfig) -> Path:
    return Path(config.paths.outputs).expanduser().resolve()


if __name__ == "__main__":
    sys.exit(main())
