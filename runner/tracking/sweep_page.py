"""The page of a sweep's parent run in MLflow: a short table, the verdict, commands, and parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from runner.config.command_line import command_line
from runner.config.params import config_params
from runner.config.quoting import shell_lines
from runner.reporting.comparability import REPEATS
from runner.reporting.naming import SWEPT, setting_name
from runner.reporting.verdict import commands, contests, findings, with_interval
from runner.tracking.links import compare_page, run_page
from runner.tracking.record import actual_params, requested_params

if TYPE_CHECKING:
    from runner.contract.result import RunResult
    from runner.reporting.verdict import Contest, Variant

_ROWS = 5
"""Largest number of settings in the table of a workload, besides the baseline."""

_FIXED = (
    "actual.device",
    "actual.memory",
    "actual.precision",
    "actual.memory.batch_size",
    "device.requested",
    "precision.requested",
    "weights.name",
    "dataset.name",
    "dataset.root",
    "dataset.path",
    "engine.name",
)
"""Parameters that decide numbers or speed, besides those of ``frontend``."""

_LOCATIONS = ("output.", "paths.", "tracking.", "hydra")


def swept_params(swept: Mapping[str, Sequence[str]], results: Sequence[RunResult] = ()) -> dict[str, str]:
    """Return the parent's parameters of swept settings, with all values: ``swept.memory``.

    Args:
        swept: the settings that differ between jobs, each with its values; without values if a sweeper searches them.
        results: of the jobs, which have the values of such a search.
    """
    jobs = [config_params(result.info.config) for result in results]
    tried = {key: dict.fromkeys(job[key] for job in jobs if key in job) for key in swept}
    texts = {key: ", ".join(values or tried[key]) for key, values in swept.items()}
    return {f"{SWEPT}.{setting_name(key)}": text for key, text in texts.items() if text}


def fixed_params(results: Sequence[RunResult], overrides: Sequence[str]) -> dict[str, str]:
    """Return the parent's parameters that all its jobs share, if they decide numbers or speed, or were typed.

    Args:
        results: of all jobs.
        overrides: of the command line.
    """
    keys = [override.lstrip("+").partition("=")[0] for override in overrides]
    typed = {key for key in keys if not key.startswith(_LOCATIONS)}
    jobs = [actual_params(result) | requested_params(result.info.config) for result in results]
    return {
        key: value
        for key, value in (jobs[0].items() if jobs else ())
        if (key in _FIXED or key.startswith("frontend.") or setting_name(key) in typed)
        and all(job.get(key) == value for job in jobs)
    }


def sweep_note(results: Sequence[RunResult], overrides: Sequence[str], experiment_id: str) -> str:
    """Return the description on the parent's page, in Markdown.

    Args:
        results: of the jobs, with ``mlflow_run_id`` where that is known.
        overrides: of the sweep's command line.
        experiment_id: MLflow's, of the jobs.
    """
    groups, _ = contests(results)
    tables = [line for contest in groups for line in _table(contest, experiment_id)]
    first, *others = findings(results)
    lines = [*tables, f"**{first}**  ", *(f"{line}  " for line in others)]  # two blanks break the line
    titled = [*commands(results), ("Repeat the sweep", command_line(overrides, multirun=True))]
    for title, command in titled:
        lines += ["", f"{title}:", "", *(f"    {line}" for line in shell_lines(command))]
    return "\n".join(lines)


def _table(contest: Contest, experiment_id: str) -> list[str]:
    names = "repeated passes" if contest.ranking.metric == REPEATS else "first pass"
    shown = contest.variants[:_ROWS]
    if contest.baseline not in shown:
        shown = (*shown, contest.baseline)
    lines = [_cells("setting", f"× realtime, {names} (95 %)", "× baseline", "parity error", "peak MiB")]
    lines.append("| --- | ---: | ---: | ---: | ---: |")
    lines += [_row(variant, contest.baseline, experiment_id) for variant in shown]
    notes = []
    if more := len(contest.variants) - len(shown):
        notes.append(f"{more} more in the run list.")
    ids = [variant.best.mlflow_run_id for variant in shown if variant.best.mlflow_run_id]
    if len(ids) > 1:
        notes.append(f"[Compare them]({compare_page(experiment_id, ids)})")
    return [*lines, "", *([" ".join(notes), ""] if notes else [])]


def _row(variant: Variant, baseline: Variant, experiment_id: str) -> str:
    error = variant.best.metrics.get("parity_rel_err")
    cells = (
        _name(variant.name, variant.best, experiment_id),
        with_interval(variant.speed, variant.interval, ",.1f"),
        "baseline" if variant is baseline else f"{variant.speed / (baseline.speed or 1.0):.2f}",
        "-" if error is None else f"{error:.1e}",
        f"{variant.memory_mib:,.0f}" if math.isfinite(variant.memory_mib) else "-",
    )
    return _cells(*cells)


def _cells(*texts: str) -> str:
    """Return a row of a table, with space between columns, since MLflow's pages have none."""
    return f"| {'&emsp;| '.join(texts)} |"


def _name(name: str, result: RunResult, experiment_id: str) -> str:
    """Return a run's name, linked to its page if it was logged."""
    text = name.replace("|", "\\|")
    return f"[{text}]({run_page(experiment_id, result.mlflow_run_id)})" if result.mlflow_run_id else text
