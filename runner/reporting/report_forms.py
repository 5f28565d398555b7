"""A report as aligned text, CSV, Markdown, or a self-contained HTML page."""

from __future__ import annotations

import base64
import csv
import html
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runner.config.params import ACTUAL
from runner.core.metrics import metric_of, ranking_metric
from runner.reporting.comparability import difference
from runner.reporting.naming import swept_settings
from runner.reporting.pages import fill

if TYPE_CHECKING:
    from runner.reporting.comparability import Comparison, Ranking
    from runner.reporting.intervals import Interval
    from runner.reporting.logged_run import Row

_IN_OWN_COLUMNS = (
    "device.name",
    "device.requested",
    "memory.name",
    "precision.name",
    "precision.requested",
    "memory.batch_size",
    "resolved.",
    ACTUAL,
)
"""Parameters that every setting shows, as they took effect."""


@dataclass(frozen=True)
class Report:
    """Compared runs.

    Attributes:
        comparison: the rankings, and the runs in none.
        metrics: the columns.
        likes: for each ranking the runs that are not measurably worse than its first.
        leads: for each ranking the interval of the first run's speed over the second's, if there is one.
    """

    comparison: Comparison[Row]
    metrics: tuple[str, ...]
    likes: tuple[tuple[Row, ...], ...]
    leads: tuple[Interval | None, ...]

    @property
    def rankings(self) -> tuple[Ranking[Row], ...]:
        """The rankings of the comparison."""
        return self.comparison.rankings


def as_table(report: Report) -> str:
    """Return aligned text, with a table for each workload."""
    return "\n\n".join(_sections(report, _aligned))


def as_markdown(report: Report) -> str:
    """Return Markdown tables, for a pull request."""
    return "\n\n".join(_sections(report, _markdown))


def as_csv(report: Report) -> str:
    """Return CSV with raw values, the workload, the metric of its ranking with its interval, and problems."""
    target = io.StringIO()
    writer = csv.writer(target, lineterminator="\n")
    ends = ("ranked_by", "low", "high", "bottleneck", "problems")
    writer.writerow(["workload", "rank", "run_id", "run", "setting", *report.metrics, *ends])
    for number, ranking in enumerate(report.rankings, 1):
        settings = _settings(ranking.ranked)
        for rank, (row, setting) in enumerate(zip(ranking.ranked, settings, strict=True), 1):
            certainty = (ranking.metric, *(row.ends(ranking.metric) or ("", "")), row.tags.get("bottleneck", ""))
            values = map(row.metrics.get, report.metrics)
            caveats = "; ".join(ranking.caveats)
            writer.writerow([number, rank, row.run_id, row.name, setting, *values, *certainty, caveats])
    for row, why in report.comparison.excluded:
        certainty = ("", "", "", row.tags.get("bottleneck", ""))
        values = map(row.metrics.get, report.metrics)
        writer.writerow(["", "", row.run_id, row.name, row.setting, *values, *certainty, "; ".join(why)])
    return target.getvalue()


def as_html(report: Report, plots: Sequence[tuple[str, bytes]] = ()) -> str:
    """Return a page that needs no other file.

    Args:
        report: the runs.
        plots: names of plots to show, and the bytes of their PNG files.
    """
    parts = []
    for number, ranking in enumerate(report.rankings):
        parts += [f"<h2>{html.escape(line)}</h2>" for line in _heading(report, number)]
        parts.append(f'<p class="verdict">{html.escape(headline(report, number))}</p>')
        parts += [_bars(ranking), _html_table(*_ranked(ranking, report.metrics))]
    parts += [f"<p>{html.escape(line)}</p>" for line in _quality(report)]
    if report.comparison.excluded:
        parts += ["<h2>Not ranked</h2>", _html_table(*_excluded(report), css_class="excluded")]
    if not report.rankings:
        parts.insert(0, f'<p class="verdict">{_NONE}</p>')
    every = [*(row for ranking in report.rankings for row in ranking.ranked), *_excluded_rows(report)]
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
    """Return the headline of every workload."""
    return " ".join(headline(report, number) for number in range(len(report.rankings))) or _NONE


def headline(report: Report, number: int) -> str:
    """Return the best run of a workload, its lead with its certainty, and the command that repeats it."""
    ranking, likes, lead = report.rankings[number], report.likes[number], report.leads[number]
    metric, first = ranking.metric, ranking.ranked[0]
    settings = _settings(ranking.ranked)
    text = f"Best {metric}: {first.name} ({settings[0]}), {_value(first, metric, metric)}"
    if likes:
        equals = ", ".join(f"{row.name} {row.short_id}" for row in likes)
        text += f"; no measurable difference to {equals}"
    elif len(ranking.ranked) > 1:
        second = ranking.ranked[1]
        factor = f"{ranking_metric(metric).goodness(first.metrics[metric], second.metrics[metric]):.2f}"
        if lead is not None:
            factor += f" ({lead[0]:.2f} to {lead[1]:.2f})"
        text += f", {factor} × as good as the second ({second.name}, {settings[1]})"
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
    if quality := _quality(report):
        parts.append("\n".join(quality))
    if report.comparison.excluded:
        parts.append(form(*_excluded(report)))
    return parts if report.rankings else [*parts, _NONE]


def _quality(report: Report) -> list[str]:
    """Return the quality of all ranked runs beside their speed, where it was measured."""
    from runner.reporting.quality import quality_findings, quality_of_row

    return quality_findings([quality_of_row(row) for ranking in report.rankings for row in ranking.ranked])


def _heading(report: Report, number: int) -> list[str]:
    """Return the title of a workload, with its difference from the first, if there are several."""
    if len(report.rankings) == 1:
        return []
    workload = report.rankings[number].workload
    if number == 0:
        return ["Workload 1: " + ", ".join(f"{key} {value}" for key, value in workload.items())]
    reason = difference(workload, report.rankings[0].workload)
    return [f"Workload {number + 1}: not comparable with workload 1, because {reason}"]


def _ranked(ranking: Ranking[Row], metrics: Sequence[str]) -> Table:
    columns = [*dict.fromkeys([*metrics, ranking.metric])]
    header = ["rank", "run", "setting", *columns, "bottleneck"]
    body = []
    for rank, (row, setting) in enumerate(zip(ranking.ranked, _settings(ranking.ranked), strict=True), 1):
        values = [_value(row, metric, ranking.metric) for metric in columns]
        body.append([str(rank), f"{row.name} {row.short_id}", setting, *values, row.tags.get("bottleneck", "-")])
    return header, body


def _excluded(report: Report) -> Table:
    header = ["not ranked", "setting", *report.metrics, "because"]
    body = [
        [f"{row.name} {row.short_id}", row.setting, *(_value(row, metric) for metric in report.metrics), "; ".join(why)]
        for row, why in report.comparison.excluded
    ]
    return header, body


def _excluded_rows(report: Report) -> list[Row]:
    return [row for row, _ in report.comparison.excluded]


def _settings(rows: Sequence[Row]) -> list[str]:
    """Return the settings of runs, with all that differs between them."""
    shared = set.intersection(*(set(row.params) for row in rows)) if rows else set()
    params = [{key: row.params[key] for key in row.params if key in shared} for row in rows]
    keys = [key for key in swept_settings(params) if not key.startswith(_IN_OWN_COLUMNS)]
    return [" ".join([row.effective, *(f"{key.rpartition('.')[2]}={row.params[key]}" for key in keys)]) for row in rows]


def _value(row: Row, metric: str, ranked_by: str | None = None) -> str:
    """Return a metric's value as text; that of the ranking's metric with its interval."""
    value, known = row.metrics.get(metric), metric_of(metric)
    is_share = value is not None and known is not None and known.unit == "share"
    text = f"{value:.3f}" if is_share else number(value)
    ends = row.ends(metric) if metric == ranked_by else None
    return f"{text} ({number(ends[0])} to {number(ends[1])})" if ends else text


def number(value: float | None) -> str:
    """Format a value for people."""
    if value is None:
        return "-"
    return f"{value:.1e}" if 0 < abs(value) < 0.01 else f"{value:,.1f}"


def _aligned(header: list[str], body: list[list[str]]) -> str:
    rows = [header, *body]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    texts = {column for column, name in enumerate(header) if name in _TEXT_COLUMNS}
    lines = [
        "  ".join(
            cell.ljust(width) if column in texts else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join(lines)


_TEXT_COLUMNS = ("run", "setting", "bottleneck", "not ranked", "because")
"""Columns that have no numbers."""


def _markdown(header: list[str], body: list[list[str]]) -> str:
    rows = [header, ["---"] * len(header), *body]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)


def _html_table(header: list[str], body: list[list[str]], css_class: str = "") -> str:
    rows = [("th", header, ""), *(("td", row, css_class) for row in body)]
    return "<table>" + "".join(_html_row(*row) for row in rows) + "</table>"


def _html_row(tag: str, cells: Sequence[str], css_class: str) -> str:
    return f'<tr class="{css_class}">' + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"


def _bars(ranking: Ranking[Row]) -> str:
    """Return horizontal bars with their intervals, as SVG."""
    metric, rows = ranking.metric, ranking.ranked
    values = [(row.metrics[metric], *(row.ends(metric) or (row.metrics[metric],) * 2)) for row in rows]
    longest = max(high for _, _, high in values) or 1.0
    settings = _settings(rows)
    left = 20 + 7 * max(map(len, settings))  # at most 7 pixels per character of 12 px
    parts = [f'<svg viewBox="0 0 {left + 600} {26 * len(rows)}" role="img" aria-label="{html.escape(metric)}">']
    for index, (setting, ends) in enumerate(zip(settings, values, strict=True)):
        (x, low, high), y = (left + 480 * max(0.0, end) / longest for end in ends), 26 * index
        parts.append(f'<text x="{left - 8}" y="{y + 16}" text-anchor="end">{html.escape(setting)}</text>')
        parts.append(f'<rect x="{left}" y="{y + 4}" width="{x - left:.1f}" height="17" fill="#2f6fab"/>')
        parts.append(f'<path d="M{low:.1f} {y + 12}H{high:.1f}" stroke="#222" stroke-width="1.5"/>')
        parts.append(f'<text x="{high + 8:.1f}" y="{y + 16}">{number(ends[0])}</text>')
    return "".join([*parts, "</svg>"])
