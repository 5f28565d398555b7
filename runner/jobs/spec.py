"""One job: its configuration and its location."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runner.config.params import config_params
from runner.core.paths import display_location
from runner.reporting.naming import run_name, swept_of

if TYPE_CHECKING:
    from runner.config.schema import RunConfig


@dataclass(frozen=True)
class Job:
    """A configuration to run, the folder of its files, and the overrides that were typed.

    ``sweep_run_id`` is the MLflow parent run of the sweep that this job belongs to, and ``has_next`` whether this
    process has more of its jobs to run.
    """

    config: RunConfig
    run_dir: Path
    overrides: tuple[str, ...] = ()
    in_sweep: bool = False
    sweep_run_id: str | None = None
    has_next: bool = False

    @property
    def location(self) -> str:
        """The run's folder, or its URL in an object store."""
        return display_location(self.config.output.dir, self.run_dir)

    @property
    def outputs(self) -> Path:
        """Its ``paths.outputs``."""
        return self.config.paths.outputs_folder

    @property
    def swept(self) -> dict[str, str]:
        """The job's values of its sweep's settings, as they are shown."""
        if not self.in_sweep:
            return {}
        from runner.jobs.sweep import SWEEP_ENVIRONMENT

        return swept_of(config_params(self.config), os.environ.get(SWEEP_ENVIRONMENT))


def requested_run_name(job: Job) -> str:
    """Name the run by its configuration alone."""
    return run_name(job.config, job.swept)
