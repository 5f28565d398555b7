"""Floors of a machine: values that its runs must reach, from a YAML file (``report --fail-below FILE``).

    machine: 2 cores of a Xeon
    floors:
      - when: {actual.device: cpu, actual.precision: float32}
        realtime_factor: 150
        startup_s: 12

``when`` has parameters or tags that a run has in MLflow; a metric of which lower values are better must not exceed its
value.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from runner.core.errors import RunnerError
from runner.core.metrics import Direction, ranking_metric
from runner.reporting.comparability import exclusion_reasons
from runner.reporting.report_forms import number

if TYPE_CHECKING:
    from runner.reporting.logged_run import Row


@dataclass(frozen=True)
class Floors:
    """The limits of metrics, for runs that have all the parameters or tags of ``when``."""

    when: Mapping[str, str]
    limits: Mapping[str, float]

    def apply_to(self, run: Row) -> bool:
        """Whether a run has to keep them."""
        return all(run.params.get(key, run.tags.get(key)) == value for key, value in self.when.items())


def read_floors(path: Path) -> list[Floors]:
    """Read a file of floors.

    Raises:
        RunnerError: it can't be read, has another form, or names a metric that has no direction.
    """
    try:
        entries = yaml.safe_load(path.read_text())["floors"]
        floors = [
            Floors(
                when={key: str(value) for key, value in entry.get("when", {}).items()},
                limits={name: float(value) for name, value in entry.items() if name != "when"},
            )
            for entry in entries
        ]
    except (OSError, UnicodeError, yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise RunnerError(
            f"--fail-below {path}: can't be read ({error}): give a file with a list 'floors' of metrics with values"
        ) from error
    for name in (name for entry in floors for name in entry.limits):
        ranking_metric(name)
    return floors


def check_floors(runs: Sequence[Row], path: Path) -> list[str]:
    """Return the violations of a file's floors; a run that none of them applies to, or that can't be ranked, is one.

    Raises:
        RunnerError: as ``read_floors``.
    """
    floors = read_floors(path)
    violations = [] if runs else ["there is no run to compare with the floors"]
    for run in runs:
        own = [entry for entry in floors if entry.apply_to(run)]
        lines = [line for entry in own for line in _violations(run, entry)] if own else [f"{path} has no floor for it"]
        violations += [f"{run.name} {run.short_id}: {line}" for line in dict.fromkeys(lines)]
    return violations


def _violations(run: Row, floors: Floors) -> Iterator[str]:
    for name, limit in floors.limits.items():
        if reasons := exclusion_reasons(run.facts, name):
            yield f"can't be compared: {'; '.join(reasons)}"
            continue
        value, metric = run.metrics[name], ranking_metric(name)
        if metric.goodness(value, limit) < 1:
            side = "below its floor" if metric.direction is Direction.HIGHER else "above its ceiling"
            yield f"{name} {number(value)} is {side} of {number(limit)}"
