"""A report's forms: aligned text, CSV, Markdown, and a page with nothing outside of it."""

from __future__ import annotations

import base64
import csv
import html
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runner.config.params import ACTUAL
from runner.core.metrics import ranking_metric
from runner.reporting.comparability import difference
from runner.reporting.naming import swept_settings
from runner.reporting.pages import fill

if TYPE_CHECKING:
    from runner.reporting.comparability import Comparison, Ranking
    from runner.reporting.intervals import Interval
    from runner.reporting.logged_run import Row

_TOLD = (
    "device.name",
    "device.requested",
    "memory.name",
    "precision.name",
    "precision.requested",
    "memory.batch_size",
    "resolved.",
    ACTUAL,
)
"""Parameters that a setting shows anyway, as they took effect."""


@dataclass(frozen=True)
class Report:
    """What is reported.

    Args:
        comparison: the runs.
        metrics: the columns.
        likes: for each ranking the runs that are not measurably worse than its first.
        leads: for each ranking the interval of its first run's speed over its second's, where there is one.
    """

    comparison: Comparison[Row]
    metrics: tuple[str, ...]
    likes: tuple[tuple[Row, ...], ...]
    leads: tuple[Interval | None, ...]

    @property
    def rankings(self) -> tuple[Ranking[Row], ...]:
        """Those of the comparison."""
        return self.comparison.rankings


def as_table(report: Report) -> str:
    """Aligned text, a table a workload."""
    return "\n\n".join(_sections(report, _aligned))


def as_markdown(report: Report) -> str:
    """Tables for a pull request."""
    return "\n\n".join(_sections(report, _marked))


def as_csv(report: Report) -> str:
    """CSV with raw values: which workload, what it is ranked by, the ends of that metric's interval, and problems."""
    target = io.StringIO()
    writer = csv.writer(target, lineterminator="\n")
    ends = ("ranked_by", "low", "high", "bottleneck", "problems")
    writer.writerow(["workload", "rank", "run_id", "run", "setting", *report.metrics, *ends])
    for number, ranking in enumerate(report.rankings, 1):
        settings = _settings(ranking.ranked)
        for place, (row, setting) in enumerate(zip(ranking.ranked, settings, strict=True), 1):
            told = (ranking.metric, *(row.ends(ranking.metric) or ("", "")), row.tags.get("bottleneck", ""))
            values = map(row.metrics.get, report.metrics)
            writer.writerow([number, place, row.run_id, row.name, setting, *values, *told, "; ".join(ranking.caveats)])
    for row, why in report.comparison.left_out:
        told = ("", "", "", row.tags.get("bottleneck", ""))
        values = map(row.metrics.get, report.metrics)
        writer.writerow(["", "", row.run_id, row.name, row.setting, *values, *told, "; ".join(why)])
    return target.getvalue()


def as_html(report: Report, plots: Sequence[tuple[str, bytes]] = ()) -> str:
    """One page with nothing outside of it."""
    parts = []
    for number, ranking in enumerate(report.rankings):
        parts += [f"<h2>{html.escape(line)}</h2>" for line in _heading(report, number)]
        parts.append(f'<p class="verdict">{html.escape(headline(report, number))}</p>')
        parts += [_bars(ranking), _html_table(*_ranked(ranking, report.metrics))]
    if report.comparison.left_out:
        parts += ["<h2>Not ranked</h2>", _html_table(*_left_out(report), kind="unfit")]
    if not report.rankings:
        parts.insert(0, f'<p class="verdict">{_NONE}</p>')
    every = [*(row for ranking in report.rankings for row in ranking.ranked), *_left_rows(report)]
    commands = "".join(
        f"<dt>{html.escape(row.name)} <small>{row.short_id}</small></dt>"
        f"<dd><code>{html.escape(row.tags.get('command', ''))}</code></dd>"
        for row in every
    )
    images = "".join(
        f'<figure><img alt="{html.escape(name)}" src="data:image/png;base64,{base64.b64encode(png).decode()}"></figure>'
        for name, png in plots
    )
    return fill("report.html", rankings="".join(parts), plots=images, commands=commands)


_NONE = "No run can be ranked."


def sentences(report: Report) -> str:
    """Of every workload which run is first."""
    return " ".join(headline(report, number) for number in range(len(report.rankings))) or _NONE


def headline(report: Report, number: int) -> str:
    """Which run of a workload is first, by how much, how sure that is, and how to run it again."""
    ranking, likes, lead = report.rankings[number], report.likes[number], report.leads[number]
    metric, first = ranking.metric, ranking.ranked[0]
    settings = _settings(ranking.ranked)
    text = f"Best {metric}: {first.name} ({settings[0]}), {_value(first, metric, metric)}"
    if likes:
        several = ", ".join(f"{row.name} {row.short_id}" for row in likes)
        text += f"; no measurable difference to {several}"
    elif len(ranking.ranked) > 1:
        second = ranking.ranked[1]
        times = f"{ranking_metric(metric).goodness(first.metrics[metric], second.metrics[metric]):.2f}"
        if lead is not None:
            times += f" ({lead[0]:.2f} to {lead[1]:.2f})"
        text += f", {times} × as good as the second ({second.name}, {settings[1]})"
    if ranking.caveats:
        text += f"; but {', '.join(ranking.caveats)}"
    return f"{text}. {first.tags.get('command', '')}".rstrip()


Table = tuple[list[str], list[list[str]]]

Form = Callable[[list[str], list[list[str]]], str]


def _sections(report: Report, form: Form) -> list[str]:
    parts = []
    for number, ranking in enumerate(report.rankings):
        parts += _heading(report, number)
        parts += [form(*_ranked(ranking, report.metrics)), headline(report, number)]
    if report.comparison.left_out:
        parts.append(form(*_left_out(report)))
    return parts if report.rankings else [*parts, _NONE]


def _heading(report: Report, number: int) -> list[str]:
    """What tells a workload from the first, where there are several."""
    if len(report.rankings) == 1:
        return []
    own = report.rankings[number].workload
    if number == 0:
        return ["Workload 1: " + ", ".join(f"{key} {value}" for key, value in own.items())]
    why = difference(own, report.rankings[0].workload)
    return [f"Workload {number + 1}: not comparable with workload 1, because {why}"]


def _ranked(ranking: Ranking[Row], metrics: Sequence[str]) -> Table:
    columns = [*dict.fromkeys([*metrics, ranking.metric])]
    header = ["rank", "run", "setting", *columns, "bottleneck"]
    body = []
    for place, (row, setting) in enumerate(zip(ranking.ranked, _settings(ranking.ranked), strict=True), 1):
        values = [_value(row, metric, ranking.metric) for metric in columns]
        body.append([str(place), f"{row.name} {row.short_id}", setting, *values, row.tags.get("bottleneck", "-")])
    return header, body


def _left_out(report: Report) -> Table:
    header = ["not ranked", "setting", *report.metrics, "because"]
    body = [
        [f"{row.name} {row.short_id}", row.setting, *(_value(row, metric) for metric in report.metrics), "; ".join(why)]
        for row, why in report.comparison.left_out
    ]
    return header, body


def _left_rows(report: Report) -> list[Row]:
    return [row for row, _ in report.comparison.left_out]


def _settings(rows: Sequence[Row]) -> list[str]:
    """The settings of runs, with whatever else tells them apart."""
    shared = set.intersection(*(set(row.params) for row in rows)) if rows else set()
    configs = [{key: row.params[key] for key in row.params if key in shared} for row in rows]
    keys = [key for key in swept_settings(configs) if not key.startswith(_TOLD)]
    return [" ".join([row.effective, *(f"{key.rpartition('.')[2]}={row.params[key]}" for key in keys)]) for row in rows]


def _value(row: Row, metric: str, ranked_by: str | None = None) -> str:
    """A value; of what is ranked by with its interval."""
    text = number(row.metrics.get(metric))
    ends = row.ends(metric) if metric == ranked_by else None
    return f"{text} ({number(ends[0])} to {number(ends[1])})" if ends else text


def number(value: float | None) -> str:
    """A figure as people read it."""
    if value is None:
        return "-"
    return f"{value:.1e}" if 0 < abs(value) < 0.01 else f"{value:,.1f}"


def _aligned(header: list[str], body: list[list[str]]) -> str:
    rows = [header, *body]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    words = {place for place, name in enumerate(header) if name in _WORDS}
    lines = [
        "  ".join(
            cell.ljust(width) if column in words else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join(lines)


_WORDS = ("run", "setting", "bottleneck", "not ranked", "because")
"""Columns that are not numbers."""


def _marked(header: list[str], body: list[list[str]]) -> str:
    rows = [header, ["---"] * len(header), *body]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)


def _html_table(header: list[str], body: list[list[str]], kind: str = "") -> str:
    rows = [("th", header, ""), *(("td", row, kind) for row in body)]
    return "<table>" + "".join(_html_row(*row) for row in rows) + "</table>"


def _html_row(tag: str, cells: Sequence[str], kind: str) -> str:
    return f'<tr class="{kind}">' + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"


def _bars(ranking: Ranking[Row]) -> str:
    """Horizontal bars with their intervals, as SVG."""
    metric, rows = ranking.metric, ranking.ranked
    values = [(row.metrics[metric], *(row.ends(metric) or (row.metrics[metric],) * 2)) for row in rows]
    most = max(high for _, _, high in values) or 1.0
    settings = _settings(rows)
    left = 20 + 7 * max(map(len, settings))  # pixels a character of 12 px, at most
    parts = [f'<svg viewBox="0 0 {left + 600} {26 * len(rows)}" role="img" aria-label="{html.escape(metric)}">']
    for place, (setting, ends) in enumerate(zip(settings, values, strict=True)):
        (x, low, high), y = (left + 480 * max(0.0, end) / most for end in ends), 26 * place
        parts.append(f'<text x="{left - 8}" y="{y + 16}" text-anchor="end">{html.escape(setting)}</text>')
        parts.append(f'<rect x="{left}" y="{y + 4}" width="{x - left:.1f}" height="17" fill="#2f6fab"/>')
        parts.append(f'<path d="M{low:.1f} {y + 12}H{high:.1f}" stroke="#222" stroke-width="1.5"/>')
        parts.append(f'<text x="{high + 8:.1f}" y="{y + 16}">{number(ends[0])}</text>')
    return "".join([*parts, "</svg>"])
