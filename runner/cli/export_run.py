"""Exports what a finished run embedded with, in a process of its own: ``python -m runner.cli.export_run RUN_DIR
FOLDER``."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from runner.config.schema import PrecisionConfig, RandomWeights
from runner.contract.files import read_result
from runner.core.errors import ResumeError, RunnerError
from runner.core.layout import RunLayout

if TYPE_CHECKING:
    from runner.config.schema import RunConfig
    from runner.contract.result import RunResult


def config_of(result: RunResult, folder: Path) -> RunConfig:
    """The configuration to export what a run embedded with.

    Args:
        result: the run's.
        folder: where the SavedModel goes.
    """
    config, weights, precision = result.info.config, result.startup.weights, result.startup.precision
    if weights is None or precision is None:
        raise ResumeError(f"{result.info.run_dir} is of a run that loaded no model: there is none to export")
    if weights.source == "random":  # on demo clips also where the released ones could not be had
        config = replace(config, weights=RandomWeights(seed=weights.seed or 0))
    return replace(
        config, precision=PrecisionConfig(precision.effective), output=replace(config.output, dir=str(folder))
    )


def main(run_dir: str, folder: str) -> int:
    """Export a run's model to a folder; exit status 1 if that can't be done."""
    from runner.inference.saved_model import export

    try:
        export(config_of(read_result(RunLayout(Path(run_dir)).result), Path(folder)))
    except RunnerError as error:
        print(f"{error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
