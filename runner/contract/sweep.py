"""The state of a sweep: the type of sweep.json, which its command, its jobs and the logging to MLflow share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

SWEEP_FAD, SWEEP_FAD_REFERENCE = "sweep_fad", "sweep_fad.reference"
"""The metric of a job in MLflow, and the tag with the reference's run id."""


@dataclass(frozen=True)
class SweepFad:
    """The Fréchet distance of a job's embeddings from those of the sweep's reference, which has 0 from itself.

    ``job`` and ``reference`` are folders relative to the sweep's; of runs read from MLflow, the ids of these.
    """

    job: str
    reference: str
    fad: float


@dataclass(frozen=True)
class SweepState:
    """A sweep's command line, its jobs, and its parent run in MLflow.

    ``jobs`` are folders relative to the sweep's; ``swept`` are the settings that differ between them, each with all its
    values; ``fads`` are the distances of the finished jobs of one data set and weights; ``uri``, ``experiment_id`` and
    ``run_id`` are of the MLflow run, if there is one; ``started_at`` is in seconds since the epoch.
    """

    overrides: tuple[str, ...] = ()
    jobs: tuple[str, ...] = ()
    swept: Mapping[str, Sequence[str]] = field(default_factory=dict)
    fads: tuple[SweepFad, ...] = ()
    run_id: str | None = None
    experiment_id: str | None = None
    uri: str | None = None
    started_at: float = 0.0
    user: str | None = None
    git: Mapping[str, str | bool] | None = None
    interrupted: bool = False
