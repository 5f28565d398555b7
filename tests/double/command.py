"""``python -m tests.double.command``: the real command, whose worker is the double's (``tests.double.worker``).

A sweep's launcher that takes other processes (Submitit, joblib) finds ``task`` by the name of this module, and so
imports it there: its jobs have the double's worker, too.
"""

from __future__ import annotations

import sys
from typing import Any

from omegaconf import DictConfig

from runner import cli, launch

launch.WORKER = (sys.executable, "-m", "tests.double.worker")
_task = cli.task


def task(config: DictConfig) -> dict[str, Any] | float:
    """See ``runner.cli.task``."""
    return _task(config)


task.__module__ = "tests.double.command"  # also where this is __main__
cli.task = task

if __name__ == "__main__":
    sys.exit(cli.main())
