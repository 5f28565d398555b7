"""``vggish-runner report``: compare runs that MLflow has.

Runs are ranked among those of the same workload (data set, front end, weights); those that can't be ranked (a loaded
machine, failed parity) are listed with the reason.  ``--fail-below METRIC=RATIO:BASELINE`` is a regression check: exit
status 1 if a run is worse than that share of the baseline, in the metric's own direction (``runner.core.metrics``), or
if the two can't be compared; ``--fail-below FILE.yaml`` is one by the values of a file (``runner.reporting.floors``).
Nothing is written to MLflow.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from runner.cli.errors import reports_errors
from runner.core.errors import RunnerError
from runner.core.files import write_atomic
from runner.core.metrics import ranking_metric, require_metric
from runner.core.printable import print_page, printable
from runner.reporting.comparability import FIRST_PASS, REPEATS, compare, difference
from runner.reporting.floors import check_floors
from runner.reporting.report_forms import Report, as_csv, as_html, as_markdown, as_table, number, sentences

if TYPE_CHECKING:
    from runner.reporting.comparability import Ranking
    from runner.reporting.intervals import Interval
    from runner.reporting.logged_run import Row
    from runner.tracking.query import MlflowReader

DEFAULT_METRICS = (FIRST_PASS, REPEATS, "startup_s", "rss_peak_mib", "parity_rel_err", "model_only_realtime_factor")

_MAX_COMPARED = 20
"""Runs after the first whose difference from it is tested; later ones count as worse."""


def make_report(rows: Sequence[Row], reader: MlflowReader, metrics: Sequence[str] | None) -> Report:
    """Compare runs.

    Args:
        rows: the runs.
        reader: of the store that has their series.
        metrics: the metric to rank by, then further columns; None for speed and the default columns.

    Raises:
        RunnerError: an unknown metric, or one that has no direction to rank by.
    """
    from runner.reporting.quality import NAMES as QUALITY_METRICS

    if metrics:
        ranking_metric(metrics[0])
    for name in metrics or ():
        require_metric(name)
    comparison = compare(rows, lambda row: row.facts, metrics[0] if metrics else None)
    certainties = [_certainty(ranking, reader) for ranking in comparison.rankings]
    columns = tuple(dict.fromkeys(metrics or DEFAULT_METRICS))
    if not metrics:  # without the columns that no run has
        columns += tuple(name for name in QUALITY_METRICS if any(name in row.metrics for row in rows))[:1]
        columns = tuple(name for name in columns if any(name in row.metrics for row in rows))
    return Report(comparison, columns, tuple(likes for likes, _ in certainties), tuple(lead for _, lead in certainties))


def _certainty(ranking: Ranking[Row], reader: MlflowReader) -> tuple[tuple[Row, ...], Interval | None]:
    """Return the runs that are not measurably slower than the first, and how much faster that is than the second."""
    from runner.reporting.intervals import ratio

    metric, (first, *others) = ranking.metric, ranking.ranked
    ends = first.ends(metric)
    if ends is None:
        return (), None
    blocks, likes, lead = reader.blocks(first, metric), [], None
    for index, row in enumerate(others[:_MAX_COMPARED]):
        row_ends = row.ends(metric)
        if row_ends is None or (index and row_ends[1] < ends[0]):
            continue
        interval = ratio(first.metrics[metric], [blocks], row.metrics[metric], [reader.blocks(row, metric)])
        lead = interval if index == 0 else lead
        if interval and interval[0] <= 1:
            likes.append(row)
    return tuple(likes), lead


def check(rows: Sequence[Row], reader: MlflowReader, rule: str, default_experiment: str) -> list[str]:
    """Return the violations of a rule ``METRIC=RATIO:BASELINE``.

    Raises:
        RunnerError: the rule can't be read, or its baseline is no run.
    """
    metric, _, rest = rule.partition("=")
    ratio_text, _, query = rest.partition(":")
    try:
        minimum = float(ratio_text)
    except ValueError:
        minimum = math.nan
    if not (metric and query and math.isfinite(minimum) and minimum > 0):
        raise RunnerError(f"--fail-below {rule}: give METRIC=RATIO:BASELINE, as in realtime_factor=0.9:RUN_ID")
    definition = ranking_metric(metric)
    baseline = _baseline(reader.rows([query], default_experiment), metric, rule)
    comparison = compare([row for row in rows if row.run_id != baseline.run_id], lambda row: row.facts, metric)
    violations = [f"{row.name} {row.short_id} can't be compared: {'; '.join(why)}" for row, why in comparison.excluded]
    for ranking in comparison.rankings:
        difference_text = difference(ranking.workload, baseline.facts.workload)
        for row in ranking.ranked:
            value, expected = row.metrics[metric], baseline.metrics[metric]
            if difference_text:
                violations.append(f"{row.name} {row.short_id} can't be compared, because {difference_text}")
            elif not (share := definition.goodness(value, expected)) >= minimum:
                violations.append(
                    f"{row.name} {row.short_id}: {metric} {number(value)} is {share:.3g} × as good as "
                    f"{number(expected)} of {baseline.name} {baseline.short_id}, which is below {minimum:g} "
                    f"({definition.direction.value} is better)"
                )
    if not comparison.rankings and not comparison.excluded:
        violations.append("there is no run to compare with the baseline")
    return violations


def _baseline(rows: Sequence[Row], metric: str, rule: str) -> Row:
    """Return the best of a rule's baseline runs.

    Raises:
        RunnerError: none of them can be ranked, or they have several workloads.
    """
    comparison = compare(rows, lambda row: row.facts, metric)
    if not comparison.rankings:
        why = "; ".join(dict.fromkeys(reason for _, reasons in comparison.excluded for reason in reasons))
        raise RunnerError(f"--fail-below {rule}: the baseline can't be compared with ({why}): name another one")
    if len(comparison.rankings) > 1:
        why = difference(comparison.rankings[1].workload, comparison.rankings[0].workload)
        raise RunnerError(f"--fail-below {rule}: the baseline has runs of several workloads ({why}): name one run")
    return comparison.rankings[0].ranked[0]


@reports_errors
def main(arguments: Sequence[str] | None) -> int:
    """Print or write the report; return exit status 1 if a rule is broken or nothing can be read."""
    options = _parser().parse_args(arguments)
    from runner.config.groups.tracking import TrackingConfig
    from runner.core.paths import default_outputs
    from runner.tracking.client import connected, experiment_of, store_uri
    from runner.tracking.query import MlflowReader

    tracking = TrackingConfig(uri=options.uri, experiment=options.experiment)
    experiment = experiment_of(tracking)
    uri = store_uri(tracking, default_outputs())
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        raise RunnerError(f"there is no MLflow store at {uri}: run something first, or give --uri")
    with connected(tracking, default_outputs()) as client:
        reader = MlflowReader(client)
        rows = reader.rows(options.runs, experiment)
        text = _text(options, make_report(rows, reader, options.metric), reader)
        violations = [
            line
            for rule in options.fail_below
            for line in (check_floors(rows, Path(rule)) if _is_file(rule) else check(rows, reader, rule, experiment))
        ]
    print_page(text)
    for line in violations:
        print(f"FAILED: {printable(line)}", file=sys.stderr)
    return int(bool(violations))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vggish-runner report", description="Compare runs that MLflow has.")
    parser.add_argument(
        "runs",
        nargs="*",
        metavar="RUN",
        help="ids (or their beginnings), names or folders of runs or sweeps, or experiments (default: all)",
    )
    parser.add_argument(
        "--metric",
        action="append",
        metavar="NAME",
        help="the metric to rank by, then further columns (default: speed, of repeated passes if all runs have them)",
    )
    parser.add_argument("--format", choices=("table", "csv", "md", "html"), default="table")
    parser.add_argument("--output", type=Path, help="a file (default: the terminal; report.html for html)")
    parser.add_argument("--uri", help="the MLflow store (default: MLFLOW_TRACKING_URI, else outputs/mlflow.db)")
    parser.add_argument("--experiment", metavar="NAME", help="the experiment whose runs to compare if none are named")
    parser.add_argument(
        "--fail-below",
        action="append",
        default=[],
        metavar="METRIC=RATIO:BASELINE|FILE.yaml",
        help="exit status 1 if a run is worse than RATIO of the baseline: realtime_factor=0.9:ID fails below 0.9 × "
        "its speed, and startup_s=0.9:ID, where lower is better, above 1/0.9 × its time; or than the floors of a file",
    )
    return parser


def _is_file(rule: str) -> bool:
    return rule.endswith((".yaml", ".yml"))


def _text(options: argparse.Namespace, report: Report, reader: MlflowReader) -> str:
    """Return the report, or a line about the file that it was written to."""
    if options.format == "html":
        best = report.rankings[0].ranked[0] if report.rankings else None
        text = as_html(report, reader.plots(best) if best else ())
        options.output = options.output or Path("report.html")
    else:
        text = {"table": as_table, "csv": as_csv, "md": as_markdown}[options.format](report).rstrip("\n")
    if options.output is None:
        return text
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(options.output, text + "\n")
    ranked = sum(len(ranking.ranked) for ranking in report.rankings)
    return f"{options.output}: {ranked} runs ranked, {len(report.comparison.excluded)} not; {sentences(report)}"
