"""``python -m runner.cli.export_run RUN_DIR FOLDER``: export the model that a finished run embedded with."""

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
    """Return the configuration that exports the model of a run.

    Args:
        result: the run's result.json.
        folder: of the SavedModel.
    """
    config = from_dict(result["config"])
    weights = result["weights"]
    if weights["source"] == "random":  # on demo clips also where the released ones were not available
        config = replace(config, weights=RandomWeights(seed=int(weights["seed"] or 0)))
    precision = PrecisionConfig(result["precision"]["effective"])
    return replace(config, precision=precision, output=replace(config.output, dir=str(folder)))


def main(run_dir: str, folder: str) -> int:
    """Export a run's model to a folder; return exit status 1 if that fails."""
    from runner.inference.saved_model import export

    try:
        export(config_of(read_json(Path(run_dir) / "result.json"), Path(folder)))
    except RunnerError as error:
        print(f"{error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
