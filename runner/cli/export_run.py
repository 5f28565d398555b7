"""Exports what a finished run embedded with, in a process of its own: ``python -m runner.cli.export_run RUN_DIR
FOLDER``."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.config.schema import PrecisionConfig, RandomWeights, from_dict
from runner.core.errors import RunnerError
from runner.core.readable import read_json

if TYPE_CHECKING:
    from runner.config.schema import RunConfig


def config_of(result: dict[str, Any], folder: Path) -> RunConfig:
    """The configuration to export what a run embedded with.

    Args:
        result: the run's result.json.
        folder: where the SavedModel goes.
    """
    config = from_dict(result["config"])
    weights = result["weights"]
    if weights["source"] == "random":  # on demo clips also where the released ones could not be had
        config = replace(config, weights=RandomWeights(seed=int(weights["seed"] or 0)))
    precision = PrecisionConfig(result["precision"]["effective"])
    return replace(config, precision=precision, output=replace(config.output, dir=str(folder)))


def main(run_dir: str, folder: str) -> int:
    """Export a run's model to a folder; exit status 1 if that can't be done."""
    from runner.inference.saved_model import export

    try:
        export(config_of(read_json(Path(run_dir) / "result.json"), Path(folder)))
    except RunnerError as error:
        print(f"{error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
