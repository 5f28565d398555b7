"""The MLflow run of a run's folder: the type of tracking.json, which the command and later logging share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class TrackingState:
    """Where a run is in MLflow, and how much of it is logged, so that it is logged later and never twice.

    Attributes:
        uri: The address of the store, without credentials.
        experiment_id: The id of its experiment.
        run_id: Its id.
        attempt: The attempt that was logged last.
        parent_run_id: The id of its sweep's run; None if there is none.
        first_step: The step at which each metric of that attempt begins, after those of earlier attempts.
        state: ``logged`` once the attempt's result is there.
    """

    uri: str
    experiment_id: str
    run_id: str
    attempt: int | None
    parent_run_id: str | None = None
    first_step: Mapping[str, int] = field(default_factory=dict)
    state: Literal["open", "logged"] = "open"
