"""Lines runs up from MLflow: ``python -m runner.report [RUN or SWEEP or EXPERIMENT ...]``.

Runs that can't be compared (another data set or weights, a loaded machine, failed parity) are listed with the reason
and not ranked.  ``--fail-below METRIC=RATIO:BASELINE`` makes it a regression check: exit status 1 if a run is worse
than that share of the baseline, in the metric's own direction (``runner.metrics``), or if the two can't be compared.
"""

from __future__ import annotations

import argparse
import base64
import csv
import html
import io
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.advice import BUSY, OTHERS
from runner.config import TrackingConfig
from runner.errors import RunnerError
from runner.files import write_atomic
from runner.metrics import Direction, known_metric, ranking_metric
from runner.paths import default_outputs
from runner.record import SWEEP_FILE, TRACKING, without_credentials
from runner.tracking import connected, store_uri

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

DEFAULT_METRICS = ("audio_x_realtime", "cold_start_s", "rss_peak_mib", "parity_rel_err", "model_only_audio_x_realtime")
_MOST_RUNS = 200
_PARENT = "mlflow.parentRunId"


@dataclass(frozen=True)
class Row:
    """A run as MLflow has it; ``problems`` is why it must not be ranked beside the others."""

    run_id: str
    name: str
    status: str
    started_ms: int
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]
    digest: str | None
    problems: tuple[str, ...] = field(default=())

    @property
    def setting(self) -> str:
        """Device, memory policy, precision and batch size, as they were in effect."""
        keys = ("resolved.device", "memory.name", "resolved.precision", "resolved.memory.batch_size")
        return " ".join(self.params.get(key, "-") for key in keys)

    def spread(self, metric: str) -> float | None:
        """One standard deviation, where the metric has one."""
        if metric != "audio_x_realtime":
            return None
        found = self.metrics.get("repeat_audio_x_realtime_std", self.metrics.get("window_audio_x_realtime_std"))
        return None if found is None else float(found)

    def value(self, metric: str) -> float | None:
        """The metric; of throughput the mean of repeated passes, where there are any."""
        if metric == "audio_x_realtime" and "repeat_audio_x_realtime_mean" in self.metrics:
            return self.metrics["repeat_audio_x_realtime_mean"]
        return self.metrics.get(metric)


def lined_up(rows: Sequence[Row], metric: str, reference: Row | None = None) -> tuple[list[Row], list[Row]]:
    """Runs to rank by ``metric``, best first, and those that must not be, each with its problems.

    Args:
        rows: in any order.
        metric: what is ranked.
        reference: the run that the others must be comparable with; when None, the data set and weights that most of the
            runs share.
    """
    digest = reference.digest if reference else _most_common(row.digest for row in rows if row.status == "FINISHED")
    weights = "weights.checksum"
    checksum = (
        reference.tags.get(weights)
        if reference
        else _most_common(row.tags.get(weights) for row in rows if row.status == "FINISHED")
    )
    judged = [replace(row, problems=tuple(_problems(row, metric, digest, checksum))) for row in rows]
    fit = [row for row in judged if not row.problems]
    if not fit:  # on a machine that was busy all the time the runs are ranked among themselves, with that said
        fit = [row for row in judged if len(row.problems) == 1 and row.problems[0].startswith(BUSY)]
    unfit = [row for row in judged if row not in fit]
    higher = ranking_metric(metric).direction is Direction.HIGHER
    fit.sort(key=lambda row: row.value(metric) or 0.0, reverse=higher)
    return fit, unfit


def _problems(row: Row, metric: str, digest: str | None, checksum: str | None) -> list[str]:
    found = []
    if row.status != "FINISHED":
        found.append(row.status.lower())
    value = row.value(metric)
    if value is None or not math.isfinite(value):
        found.append(f"no {metric}" if value is None else f"{metric} is {value}")
    if row.tags.get("parity.passed") == "false":
        found.append("failed parity")
    if row.digest != digest:
        found.append("another data set")
    if row.tags.get("weights.checksum") != checksum:
        found.append("other weights")
    if (load := row.metrics.get("others_cpu_share", 0.0)) > OTHERS:
        found.append(f"{BUSY} {load:.0%} of the processors")
    if row.tags.get("device.fallback_reason"):
        found.append(f"{row.tags.get('device.requested')} was absent: it ran on the CPU")
    return found


def _most_common(values: Iterable[str | None]) -> str | None:
    counted: dict[str | None, int] = {}
    for value in values:
        counted[value] = counted.get(value, 0) + 1
    return max(counted, key=lambda value: counted[value]) if counted else None


class Store:
    """An MLflow store, read only.

    Args:
        client: MLflow's own.
    """

    def __init__(self, client: MlflowClient) -> None:
        self._client = client

    def rows(self, wanted: Sequence[str], default_experiment: str) -> list[Row]:
        """The runs that the words mean; of a sweep, its jobs.

        Args:
            wanted: ids or names of runs, sweeps or experiments, or folders of runs or sweeps; none for the experiment.
            default_experiment: its name.

        Raises:
            RunnerError: a word means nothing here.
        """
        found: dict[str, Any] = {}
        for word in wanted or [default_experiment]:
            runs = self._meant(word)
            if not runs:
                raise RunnerError(f"{word} is no run, sweep, experiment or folder of one in this store")
            for run in runs:
                for each in self._children(run) or [run]:
                    found[each.info.run_id] = each
        return [_row(run) for run in found.values()]

    def pictures(self, row: Row) -> list[tuple[str, bytes]]:
        """The pictures that were logged with the sweep of a run, by name."""
        parent = row.tags.get(_PARENT)
        if parent is None:
            return []
        from mlflow.artifacts import download_artifacts

        found = []
        for artifact in self._client.list_artifacts(parent, "pictures"):
            if artifact.path.endswith(".png"):
                uri = f"runs:/{parent}/{artifact.path}"
                path = download_artifacts(artifact_uri=uri, tracking_uri=self._client.tracking_uri)
                found.append((Path(artifact.path).stem, Path(path).read_bytes()))
        return found

    def _meant(self, word: str) -> list[Any]:
        from mlflow.exceptions import MlflowException

        for name in (TRACKING, SWEEP_FILE):
            if (state := Path(word) / name).is_file():
                import json

                run_id = json.loads(state.read_text(encoding="utf-8")).get("run_id")
                return self._meant(run_id) if run_id else []
        try:
            return [self._client.get_run(word)]
        except MlflowException:
            pass
        experiment = self._client.get_experiment_by_name(word)
        if experiment is not None or word.isdigit():
            ids = [experiment.experiment_id if experiment is not None else word]
            return list(self._client.search_runs(ids, max_results=_MOST_RUNS))
        every = [experiment.experiment_id for experiment in self._client.search_experiments()]
        quoted = word.replace("\\", "\\\\").replace("'", "\\'")
        return list(self._client.search_runs(every, f"attributes.run_name = '{quoted}'", max_results=_MOST_RUNS))

    def _children(self, run: Any) -> list[Any]:
        if _PARENT in run.data.tags or "sweep.overrides" not in run.data.tags:
            return []
        filter_text = f"tags.`{_PARENT}` = '{run.info.run_id}'"
        return list(self._client.search_runs([run.info.experiment_id], filter_text, max_results=_MOST_RUNS))


def _row(run: Any) -> Row:
    inputs = run.inputs.dataset_inputs if run.inputs else []
    return Row(
        run_id=run.info.run_id,
        name=run.info.run_name,
        status=run.info.status,
        started_ms=int(run.info.start_time or 0),
        params=run.data.params,
        metrics=run.data.metrics,
        tags=run.data.tags,
        digest=inputs[0].dataset.digest if inputs else None,
    )


# Forms


def as_table(fit: Sequence[Row], unfit: Sequence[Row], metrics: Sequence[str]) -> str:
    """Aligned text."""
    header, body = _cells(fit, unfit, metrics)
    rows = [header, *body]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    last = len(header) - 1
    lines = [
        "  ".join(
            cell.ljust(width) if column in (1, 2, last) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join([*lines, "", sentence(fit, metrics[0])])


def as_csv(fit: Sequence[Row], unfit: Sequence[Row], metrics: Sequence[str]) -> str:
    """CSV with raw values, and a column for spread and one for problems."""
    target = io.StringIO()
    writer = csv.writer(target, lineterminator="\n")
    writer.writerow(["rank", "run_id", "run", "setting", *metrics, f"{metrics[0]}_std", "bottleneck", "problems"])
    for place, row in enumerate([*fit, *unfit]):
        values = [row.value(metric) for metric in metrics]
        rank = place + 1 if place < len(fit) else ""
        ends = [row.spread(metrics[0]), row.tags.get("bottleneck", ""), "; ".join(row.problems)]
        writer.writerow([rank, row.run_id, row.name, row.setting, *values, *ends])
    return target.getvalue()


def as_markdown(fit: Sequence[Row], unfit: Sequence[Row], metrics: Sequence[str]) -> str:
    """A table for a pull request."""
    header, body = _cells(fit, unfit, metrics)
    rows = [header, ["---"] * len(header), *body]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([*lines, "", sentence(fit, metrics[0])])


def as_html(
    fit: Sequence[Row], unfit: Sequence[Row], metrics: Sequence[str], pictures: Sequence[tuple[str, bytes]] = ()
) -> str:
    """One page with nothing outside of it."""
    header, body = _cells(fit, unfit, metrics)
    table = [_html_row("th", header)]
    table += [_html_row("td", row, "unfit" if place >= len(fit) else "") for place, row in enumerate(body)]
    chart = _bars(fit, metrics[0]) if fit else ""
    commands = "".join(
        f"<dt>{html.escape(row.name)} <small>{row.run_id[:8]}</small></dt>"
        f"<dd><code>{html.escape(row.tags.get('command', ''))}</code></dd>"
        for row in [*fit, *unfit]
    )
    drawn = "".join(
        f'<figure><img alt="{html.escape(name)}" src="data:image/png;base64,{base64.b64encode(png).decode()}"></figure>'
        for name, png in pictures
    )
    return _PAGE.format(
        sentence=html.escape(sentence(fit, metrics[0])),
        chart=chart,
        table="".join(table),
        pictures=drawn,
        commands=commands,
    )


def sentence(fit: Sequence[Row], metric: str) -> str:
    """Which run is first, by how much, and how to run it again."""
    if not fit:
        return "No run can be ranked."
    first = fit[0]
    text = f"Best {metric}: {first.name} ({first.setting}), {_number(first.value(metric))}{_deviation(first, metric)}"
    if len(fit) > 1:
        second = fit[1]
        ratio = ranking_metric(metric).goodness(first.value(metric) or 0.0, second.value(metric) or 0.0)
        text += f", {ratio:.2f} × as good as the second ({second.name}, {second.setting})"
    return f"{text}. {first.tags.get('command', '')}".rstrip()


def _cells(fit: Sequence[Row], unfit: Sequence[Row], metrics: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    header = ["rank", "run", "setting", *metrics, "bottleneck", "not ranked because"]
    body = []
    for place, row in enumerate([*fit, *unfit]):
        values = [_number(row.value(metric)) + _deviation(row, metric) for metric in metrics]
        rank = str(place + 1) if place < len(fit) else "-"
        name = f"{row.name} {row.run_id[:8]}"
        body.append([rank, name, row.setting, *values, row.tags.get("bottleneck", "-"), "; ".join(row.problems)])
    return header, body


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1e}" if 0 < abs(value) < 0.01 else f"{value:,.1f}"


def _deviation(row: Row, metric: str) -> str:
    found = row.spread(metric)
    return "" if found is None else f" ± {found:,.1f}"


def _html_row(tag: str, cells: Sequence[str], kind: str = "") -> str:
    return f'<tr class="{kind}">' + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"


def _bars(rows: Sequence[Row], metric: str) -> str:
    """Horizontal bars with their spread, as SVG."""
    most = max((row.value(metric) or 0.0) + (row.spread(metric) or 0.0) for row in rows) or 1.0
    height = 26 * len(rows)
    parts = [f'<svg viewBox="0 0 900 {height}" role="img" aria-label="{html.escape(metric)}">']
    for place, row in enumerate(rows):
        value, deviation, y = row.value(metric) or 0.0, row.spread(metric) or 0.0, 26 * place
        x, low, high = (250 + 520 * amount / most for amount in (value, value - deviation, value + deviation))
        parts.append(f'<text x="242" y="{y + 16}" text-anchor="end">{html.escape(row.setting)}</text>')
        parts.append(f'<rect x="250" y="{y + 4}" width="{x - 250:.1f}" height="17" fill="#2f6fab"/>')
        parts.append(f'<path d="M{low:.1f} {y + 12}H{high:.1f}" stroke="#222" stroke-width="1.5"/>')
        parts.append(f'<text x="{high + 8:.1f}" y="{y + 16}">{_number(value)}</text>')
    return "".join([*parts, "</svg>"])


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>vggish-runner report</title>
<meta name="viewport" content="width=device-width">
<style>
 body {{ font: 14px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1100px; padding: 0 1rem; color: #222; }}
 table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; display: block; overflow-x: auto; }}
 th, td {{ padding: 4px 10px; border-bottom: 1px solid #e4e6ea; text-align: left; white-space: nowrap; }}
 tr.unfit {{ color: #8a8f98; }} svg {{ width: 100%; max-width: 900px; font-size: 12px; }}
 img {{ max-width: 100%; }} code {{ background: #f3f4f6; padding: 1px 4px; overflow-wrap: anywhere; }}
 p.verdict {{ font-size: 16px; font-weight: 600; }}
</style></head><body>
<h1>Runs side by side</h1>
<p class="verdict">{sentence}</p>
{chart}
<table>{table}</table>
{pictures}
<h2>Commands</h2><dl>{commands}</dl>
</body></html>
"""


# The command


def check(rows: Sequence[Row], store: Store, rule: str, default_experiment: str) -> list[str]:
    """What breaks a rule ``METRIC=RATIO:BASELINE``; empty where all runs keep it.

    Raises:
        RunnerError: the rule can't be read, or names no run.
    """
    metric, _, rest = rule.partition("=")
    ratio_text, _, baseline_word = rest.partition(":")
    try:
        ratio = float(ratio_text)
    except ValueError:
        ratio = math.nan
    if not (metric and baseline_word and math.isfinite(ratio) and ratio > 0):
        raise RunnerError(f"--fail-below {rule}: give METRIC=RATIO:BASELINE, as in audio_x_realtime=0.9:RUN_ID")
    judge = ranking_metric(metric)
    baselines, _ = lined_up(store.rows([baseline_word], default_experiment), metric)
    if not baselines:
        raise RunnerError(f"--fail-below {rule}: {baseline_word} has no finished run with {metric}")
    reference = baselines[0]
    fit, unfit = lined_up([row for row in rows if row.run_id != reference.run_id], metric, reference)
    broken = [f"{row.name} {row.run_id[:8]} can't be compared: {'; '.join(row.problems)}" for row in unfit]
    for row in fit:
        value, expected = row.value(metric) or 0.0, reference.value(metric) or 0.0
        if not judge.goodness(value, expected) >= ratio:
            broken.append(
                f"{row.name} {row.run_id[:8]}: {metric} {_number(value)} is {judge.goodness(value, expected):.3g} × as "
                f"good as {_number(expected)} of {reference.name} {reference.run_id[:8]} ({judge.direction.value} is "
                f"better), which is below {ratio:g}"
            )
    if not fit and not unfit:
        broken.append("there is no run to compare with the baseline")
    return broken


def main(arguments: Sequence[str] | None = None) -> int:
    """Print or write the report; exit status 1 if a rule is broken or nothing can be read."""
    parser = argparse.ArgumentParser(prog="python -m runner.report", description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "runs", nargs="*", metavar="RUN", help="ids, names or folders of runs or sweeps, or experiments (default: all)"
    )
    parser.add_argument("--metric", action="append", metavar="NAME", help="what to rank by, best first, then columns")
    parser.add_argument("--format", choices=("table", "csv", "md", "html"), default="table")
    parser.add_argument("--output", type=Path, help="a file (default: the terminal; of html report.html)")
    parser.add_argument("--uri", help="the MLflow store (default: MLFLOW_TRACKING_URI, else outputs/mlflow.db)")
    parser.add_argument("--experiment", default="vggish-runner", help="looked in when no run is named")
    parser.add_argument(
        "--fail-below",
        action="append",
        default=[],
        metavar="METRIC=RATIO:BASELINE",
        help="exit status 1 if a run is worse than RATIO of the baseline: audio_x_realtime=0.9:ID fails below 0.9 × "
        "its speed; of a metric of which less is better, cold_start_s=0.9:ID fails above 1/0.9 × its time",
    )
    options = parser.parse_args(arguments)
    metrics = tuple(dict.fromkeys(options.metric or DEFAULT_METRICS))
    tracking = TrackingConfig(kind="local", uri=options.uri, experiment=options.experiment)
    try:
        ranking_metric(metrics[0])
        for name in metrics[1:]:
            known_metric(name)
        uri = store_uri(tracking, default_outputs())
        if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
            raise RunnerError(f"there is no MLflow store at {uri}: run something first, or give --uri")
        with connected(tracking, default_outputs()) as client:
            store = Store(client)
            rows = store.rows(options.runs, options.experiment)
            fit, unfit = lined_up(rows, metrics[0])
            _print(options, fit, unfit, metrics, store)
            broken = [line for rule in options.fail_below for line in check(rows, store, rule, options.experiment)]
    except RunnerError as error:
        print(f"error: {without_credentials(str(error))}", file=sys.stderr)
        return 1
    for line in broken:
        print(f"FAILED: {line}", file=sys.stderr)
    return int(bool(broken))


def _print(
    options: argparse.Namespace, fit: Sequence[Row], unfit: Sequence[Row], metrics: Sequence[str], store: Store
) -> None:
    forms: dict[str, Callable[[Sequence[Row], Sequence[Row], Sequence[str]], str]]
    forms = {"table": as_table, "csv": as_csv, "md": as_markdown}
    if options.format == "html":
        text = as_html(fit, unfit, metrics, store.pictures(fit[0]) if fit else ())
        options.output = options.output or Path("report.html")
    else:
        text = forms[options.format](fit, unfit, metrics)
    if options.output is None:
        print(text)
        return
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(options.output, text)
    print(f"{options.output}: {len(fit)} runs ranked, {len(unfit)} not; {sentence(fit, metrics[0])}")


if __name__ == "__main__":
    sys.exit(main())
