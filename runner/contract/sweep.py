"""The state of a sweep: the type of sweep.json, which its command, its jobs and the logging to MLflow share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class SweepState:
    """A sweep's command line, its jobs, and its parent run in MLflow.

    ``jobs`` are folders relative to the sweep's; ``swept`` are the settings that differ between them, each with all its
    values; ``uri``, ``experiment_id`` and ``run_id`` are of the MLflow run, if there is one; ``started_at`` is in
    seconds since the epoch.
    """

    overrides: tuple[str, ...] = ()
    jobs: tuple[str, ...] = ()
    swept: Mapping[str, Sequence[str]] = field(default_factory=dict)
    run_id: str | None = None
    experiment_id: str | None = None
    uri: str | None = None
    started_at: float = 0.0
    user: str | None = None
    git: Mapping[str, str | bool] | None = None
    interrupted: bool = False
