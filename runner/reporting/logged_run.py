"""A run as MLflow has it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from runner.config.params import _ACTUAL_BEFORE, ACTUAL
from runner.reporting.comparability import FIRST_PASS, REPEATS, Facts, workload
from runner.reporting.intervals import ENDS

if TYPE_CHECKING:
    from runner.reporting.intervals import Interval

SHORT = 8
"""Characters of an id as they are printed; a shorter beginning is taken as long as it is one run's alone."""

_EFFECTIVE = ("device", "memory", "precision", "batch_size")

_SERIES = {FIRST_PASS: "window_realtime_factor", REPEATS: "pass_realtime_factor"}


@dataclass(frozen=True)
class Row:
    """A run as MLflow has it; ``digest`` is its data set's."""

    run_id: str
    name: str
    status: str
    started_ms: int
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]
    digest: str | None

    @property
    def short_id(self) -> str:
        """The beginning of its id."""
        return self.run_id[:SHORT]

    @property
    def effective(self) -> str:
        """Device, memory policy, precision and batch size in effect."""
        keys = (f"{ACTUAL}device", "memory.name", f"{ACTUAL}precision", f"{ACTUAL}memory.batch_size")
        return " ".join(self.params.get(key, "-") for key in keys)

    @property
    def setting(self) -> str:
        """The settings in effect, and whatever else its sweep swept."""
        swept = {key.removeprefix("swept."): value for key, value in self.tags.items() if key.startswith("swept.")}
        more = [f"{key}={value}" for key, value in swept.items() if key not in _EFFECTIVE]
        return " ".join([self.effective, *more])

    @cached_property
    def facts(self) -> Facts:
        """The facts that decide beside which others it may be ranked."""
        passed = self.tags.get("parity.passed")
        return Facts(
            status={"KILLED": "interrupted"}.get(self.status, self.status.lower()),
            metrics=self.metrics,
            workload=workload(self.digest, self.params, self.tags.get("weights.checksum")),
            parity_passed=None if passed is None else passed == "true",
            parity_off=self.params.get("parity.name") == "off",
            fallback=self.tags.get("device.requested") if self.tags.get("device.fallback_reason") else None,
            attempt=int(self.tags.get("attempt") or 1),
        )

    def ends(self, metric: str) -> Interval | None:
        """The 95 % interval of a metric, where it was logged with one."""
        low, high = (self.metrics.get(end) for end in ENDS.get(metric, ("", "")))
        return None if low is None or high is None else (low, high)


def _row(run: Any) -> Row:
    inputs = run.inputs.dataset_inputs if run.inputs else []
    before = {key: value for key, value in run.data.params.items() if key.startswith(_ACTUAL_BEFORE)}
    renamed = {f"{ACTUAL}{key.removeprefix(_ACTUAL_BEFORE)}": value for key, value in before.items()}
    return Row(
        run_id=run.info.run_id,
        name=run.info.run_name,
        status=run.info.status,
        started_ms=int(run.info.start_time or 0),
        params=run.data.params | renamed,
        metrics={key: value for key, value in run.data.metrics.items() if not math.isnan(value)},
        tags=run.data.tags,
        digest=inputs[0].dataset.digest if inputs else None,
    )
