"""``vggish-runner report``: compare runs that MLflow has.

Runs are ranked among those of the same workload (data set, front end, weights); those that can't be ranked (a loaded
machine, failed parity) are listed with the reason.  ``--fail-below METRIC=RATIO:BASELINE`` is a regression check: exit
status 1 if a run is worse than that share of the baseline, in the metric's own direction (``runner.core.metrics``), or
if the two can't be compared.  Nothing is written to MLflow.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from runner.core.errors import RunnerError
from runner.core.files import write_atomic
from runner.core.metrics import known_metric, ranking_metric
from runner.core.printable import printable
from runner.core.redact import without_credentials
from runner.reporting.comparability import FIRST_PASS, REPEATS, compare, difference
from runner.reporting.report_forms import Report, as_csv, as_html, as_markdown, as_table, number, sentences

if TYPE_CHECKING:
    from runner.reporting.comparability import Ranking
    from runner.reporting.intervals import Interval
    from runner.reporting.logged_run import Row
    from runner.tracking.query import Store

DEFAULT_METRICS = (*(FIRST_PASS, REPEATS, "startup_s", "rss_peak_mib", "parity_rel_err", "model_only_realtime_factor"),)

_MOST_COMPARED = 20
"""Runs behind the first whose difference from it is looked at; those further behind count as worse."""


def reported(rows: Sequence[Row], store: Store, metrics: Sequence[str] | None) -> Report:
    """Compare runs.

    Args:
        rows: the runs.
        store: where their series are.
        metrics: what to rank by, then further columns; None for speed, first or repeated passes, and the usual columns.

    Raises:
        RunnerError: a metric that is none, or that can't be ranked by.
    """
    if metrics:
        ranking_metric(metrics[0])
    for name in metrics or ():
        known_metric(name)
    comparison = compare(rows, lambda row: row.facts, metrics[0] if metrics else None)
    found = [_certainty(ranking, store) for ranking in comparison.rankings]
    columns = tuple(dict.fromkeys(metrics or DEFAULT_METRICS))
    if not metrics:  # no empty column for passes that nobody repeated
        columns = tuple(name for name in columns if any(name in row.metrics for row in rows))
    return Report(comparison, columns, tuple(likes for likes, _ in found), tuple(lead for _, lead in found))


def _certainty(ranking: Ranking[Row], store: Store) -> tuple[tuple[Row, ...], Interval | None]:
    """Return the runs that are not measurably slower than the first, and how much faster that is than the second."""
    from runner.reporting.intervals import ratio

    metric, (first, *others) = ranking.metric, ranking.ranked
    ends = first.ends(metric)
    if ends is None:
        return (), None
    own, likes, lead = store.blocks(first, metric), [], None
    for place, row in enumerate(others[:_MOST_COMPARED]):
        its = row.ends(metric)
        if its is None or (place and its[1] < ends[0]):
            continue
        found = ratio(first.metrics[metric], [own], row.metrics[metric], [store.blocks(row, metric)])
        lead = found if place == 0 else lead
        if found and found[0] <= 1:
            likes.append(row)
    return tuple(likes), lead


def check(rows: Sequence[Row], store: Store, rule: str, default_experiment: str) -> list[str]:
    """What breaks a rule ``METRIC=RATIO:BASELINE``; empty where all runs keep it.

    Raises:
        RunnerError: the rule can't be read, or names no run.
    """
    metric, _, rest = rule.partition("=")
    ratio_text, _, baseline_word = rest.partition(":")
    try:
        least = float(ratio_text)
    except ValueError:
        least = math.nan
    if not (metric and baseline_word and math.isfinite(least) and least > 0):
        raise RunnerError(f"--fail-below {rule}: give METRIC=RATIO:BASELINE, as in realtime_factor=0.9:RUN_ID")
    judge = ranking_metric(metric)
    reference = _baseline(store.rows([baseline_word], default_experiment), metric, rule)
    comparison = compare([row for row in rows if row.run_id != reference.run_id], lambda row: row.facts, metric)
    broken = [f"{row.name} {row.short_id} can't be compared: {'; '.join(why)}" for row, why in comparison.left_out]
    for ranking in comparison.rankings:
        why_not = difference(ranking.workload, reference.facts.workload)
        for row in ranking.ranked:
            value, expected = row.metrics[metric], reference.metrics[metric]
            if why_not:
                broken.append(f"{row.name} {row.short_id} can't be compared, because {why_not}")
            elif not (share := judge.goodness(value, expected)) >= least:
                broken.append(
                    f"{row.name} {row.short_id}: {metric} {number(value)} is {share:.3g} × as "
                    f"good as {number(expected)} of {reference.name} {reference.short_id} ({judge.direction.value} is "
                    f"better), which is below {least:g}"
                )
    if not comparison.rankings and not comparison.left_out:
        broken.append("there is no run to compare with the baseline")
    return broken


def _baseline(rows: Sequence[Row], metric: str, rule: str) -> Row:
    """The best of the runs that a rule names.

    Raises:
        RunnerError: none of them can be ranked, or they are of several workloads.
    """
    found = compare(rows, lambda row: row.facts, metric)
    if not found.rankings:
        why = "; ".join(dict.fromkeys(each for _, reasons in found.left_out for each in reasons))
        raise RunnerError(f"--fail-below {rule}: the baseline can't be compared with ({why}): name another one")
    if len(found.rankings) > 1:
        why = difference(found.rankings[1].workload, found.rankings[0].workload)
        raise RunnerError(f"--fail-below {rule}: the baseline has runs of several workloads ({why}): name one run")
    return found.rankings[0].ranked[0]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print or write the report; return exit status 1 if a rule is broken or nothing can be read."""
    options = _parser().parse_args(arguments)
    from runner.config.groups.tracking import TrackingConfig
    from runner.core.paths import default_outputs
    from runner.tracking.client import connected, experiment_of, store_uri
    from runner.tracking.query import Store

    try:
        tracking = TrackingConfig(uri=options.uri, experiment=options.experiment)
        experiment = experiment_of(tracking)
        uri = store_uri(tracking, default_outputs())
        if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
            raise RunnerError(f"there is no MLflow store at {uri}: run something first, or give --uri")
        with connected(tracking, default_outputs()) as client:
            store = Store(client)
            rows = store.rows(options.runs, experiment)
            text = _text(options, reported(rows, store, options.metric), store)
            broken = [line for rule in options.fail_below for line in check(rows, store, rule, experiment)]
    except RunnerError as error:
        print(f"error: {printable(without_credentials(str(error)))}", file=sys.stderr)
        return 1
    _say(printable(text))
    for line in broken:
        print(f"FAILED: {printable(line)}", file=sys.stderr)
    return int(bool(broken))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vggish-runner report", description="Compare runs that MLflow has.")
    parser.add_argument(
        "runs",
        nargs="*",
        metavar="RUN",
        help="ids (their beginning will do), names or folders of runs or sweeps, or experiments (default: all)",
    )
    parser.add_argument(
        "--metric",
        action="append",
        metavar="NAME",
        help="what to rank by, best first, then columns (default: speed, of repeated passes where all runs have them)",
    )
    parser.add_argument("--format", choices=("table", "csv", "md", "html"), default="table")
    parser.add_argument("--output", type=Path, help="a file (default: the terminal; of html report.html)")
    parser.add_argument("--uri", help="the MLflow store (default: MLFLOW_TRACKING_URI, else outputs/mlflow.db)")
    parser.add_argument("--experiment", metavar="NAME", help="the experiment whose runs to compare if none are named")
    parser.add_argument(
        "--fail-below",
        action="append",
        default=[],
        metavar="METRIC=RATIO:BASELINE",
        help="exit status 1 if a run is worse than RATIO of the baseline: realtime_factor=0.9:ID fails below 0.9 × "
        "its speed; of a metric of which less is better, startup_s=0.9:ID fails above 1/0.9 × its time",
    )
    return parser


def _text(options: argparse.Namespace, report: Report, store: Store) -> str:
    """The report, or where it was written."""
    if options.format == "html":
        best = report.rankings[0].ranked[0] if report.rankings else None
        text = as_html(report, store.pictures(best) if best else ())
        options.output = options.output or Path("report.html")
    else:
        text = {"table": as_table, "csv": as_csv, "md": as_markdown}[options.format](report).rstrip("\n")
    if options.output is None:
        return text
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(options.output, text + "\n")
    ranked = sum(len(ranking.ranked) for ranking in report.rankings)
    return f"{options.output}: {ranked} runs ranked, {len(report.comparison.left_out)} not; {sentences(report)}"


def _say(text: str) -> None:
    """Print; a reader that has gone (``| head``) has read enough."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nor may Python's own last flush fail
