"""Has the command start the double's worker, in every process that imports this module.

A sweep's launcher that takes other processes (Submitit, joblib) sends them ``task`` by its name, and they import this
module for it: so their jobs have the double's worker, too.
"""

from __future__ import annotations

import sys
from typing import Any

from omegaconf import DictConfig

from runner.cli import run
from runner.jobs import spawn

_task = run.task


def task(config: DictConfig) -> dict[str, Any] | float:
    """See ``runner.cli.task``."""
    return _task(config)


spawn.WORKER = (sys.executable, "-m", "tests.double.worker")
run.task = task
