"""What the page of a sweep's parent run in MLflow says: a short table, the verdict, commands, and parameters."""

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
    from runner.reporting.advice import Result
    from runner.reporting.verdict import Contest, Variant

RUN_ID = "mlflow_run_id"
"""Key of a result: the run that it was logged as, if it was."""

_ROWS = 5
"""Settings that the table of a workload shows at most, beside the baseline."""

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
    "frontend.hop_s",
    "frontend.short_clips",
    "frontend.tail",
    "frontend.resampler",
    "engine.name",
)
"""Parameters that decide numbers or speed."""

_OF_PLACES = ("output.", "paths.", "tracking.", "hydra")


def swept_params(swept: Mapping[str, Sequence[str]], results: Sequence[Result] = ()) -> dict[str, str]:
    """Parameters of the parent that say what was swept, with all values: ``swept.memory``.

    Args:
        swept: the settings that differ between jobs, each with all its values; without any where a sweeper seeks them.
        results: of the jobs, whose values those are then.
    """
    jobs = [config_params(result["config"]) for result in results]
    tried = {key: dict.fromkeys(job[key] for job in jobs if key in job) for key in swept}
    every = {key: ", ".join(values or tried[key]) for key, values in swept.items()}
    return {f"{SWEPT}.{setting_name(key)}": values for key, values in every.items() if values}


def fixed_params(results: Sequence[Result], overrides: Sequence[str]) -> dict[str, str]:
    """Parameters of the parent that all its jobs have in common, as far as they matter or were typed.

    Args:
        results: of all jobs.
        overrides: of the command line.
    """
    to_run_config = {each.lstrip("+").partition("=")[0] for each in overrides if not each.startswith(_OF_PLACES)}
    jobs = [actual_params(result) | requested_params(result["config"]) for result in results]
    return {
        key: value
        for key, value in (jobs[0].items() if jobs else ())
        if (key in _FIXED or setting_name(key) in to_run_config) and all(job.get(key) == value for job in jobs)
    }


def sweep_note(results: Sequence[Result], overrides: Sequence[str], experiment_id: str) -> str:
    """The description on the parent's page, in Markdown.

    Args:
        results: of the jobs, with ``RUN_ID`` where that is known.
        overrides: of the sweep's command line.
        experiment_id: MLflow's, which the jobs are in.
    """
    found, _ = contests(results)
    tables = [line for contest in found for line in _table(contest, experiment_id)]
    first, *others = findings(results)
    lines = [*tables, f"**{first}**  ", *(f"{line}  " for line in others)]  # two blanks: a line of its own
    told = [*commands(results), ("Repeat the sweep", command_line(overrides, multirun=True))]
    for what, words in told:
        lines += ["", f"{what}:", "", *(f"    {line}" for line in shell_lines(words))]
    return "\n".join(lines)


def _table(contest: Contest, experiment_id: str) -> list[str]:
    names = "repeated passes" if contest.ranking.metric == REPEATS else "first pass"
    shown = contest.variants[:_ROWS]
    if contest.baseline not in shown:
        shown = (*shown, contest.baseline)
    lines = [_cells("setting", f"× realtime, {names} (95 %)", "× baseline", "parity error", "peak MiB")]
    lines.append("| --- | ---: | ---: | ---: | ---: |")
    lines += [_row(each, contest.baseline, experiment_id) for each in shown]
    told = []
    if more := len(contest.variants) - len(shown):
        told.append(f"{more} more in the run list.")
    ids = [each.best[RUN_ID] for each in shown if each.best.get(RUN_ID)]
    if len(ids) > 1:
        told.append(f"[Compare them]({compare_page(experiment_id, ids)})")
    return [*lines, "", *([" ".join(told), ""] if told else [])]


def _row(variant: Variant, baseline: Variant, experiment_id: str) -> str:
    error = variant.best["metrics"].get("parity_rel_err")
    cells = (
        _name(variant.name, variant.best, experiment_id),
        with_interval(variant.speed, variant.interval, ",.1f"),
        "baseline" if variant is baseline else f"{variant.speed / (baseline.speed or 1.0):.2f}",
        "-" if error is None else f"{error:.1e}",
        f"{variant.memory_mib:,.0f}" if math.isfinite(variant.memory_mib) else "-",
    )
    return _cells(*cells)


def _cells(*texts: str) -> str:
    """A row of a table; MLflow's pages leave no room between columns."""
    return f"| {'&emsp;| '.join(texts)} |"


def _name(name: str, result: Result, experiment_id: str) -> str:
    """A run's name, which leads to its page where that is known."""
    told = name.replace("|", "\\|")
    return f"[{told}]({run_page(experiment_id, result[RUN_ID])})" if result.get(RUN_ID) else told
