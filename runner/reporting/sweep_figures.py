"""Plots of a sweep, from its jobs' results: throughput, speed-up, speed against energy or memory, parity."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.core.layout import RunLayout
from runner.reporting.advice import configuration_label
from runner.reporting.comparability import NAMES
from runner.reporting.figures import BLUE, GRAY, GREEN, ORANGE, RED, draw, new_figure
from runner.reporting.verdict import contests, only_contest, with_interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from runner.contract.result import RunResult
    from runner.reporting.verdict import Contest, Variant

_KINDS = (BLUE, ORANGE, GREEN, RED)
"""Colors of the kinds of device."""

_LEADER = {"arrowstyle": "-", "color": "#c9ccd2", "lw": 0.6}

_MAX_FOOTNOTE = 400
"""Characters."""

_WHISKERS = {"ecolor": "#444", "elinewidth": 1, "capsize": 2}


def draw_sweep(results: Sequence[RunResult], sweep_dir: Path) -> list[Path]:
    """Draw the plots of a sweep into its folder; return the files written."""
    plots: dict[str, Callable[[Sequence[RunResult]], Figure | None]] = {
        "throughput": _sweep_throughput,
        "speedup": _speedup,
        "pareto": _pareto,
        "parity": _parity_table,
    }
    return draw(plots, results, sweep_dir / RunLayout.plots)


def _sweep_throughput(results: Sequence[RunResult]) -> Figure | None:
    groups, excluded = contests(results)
    if not groups:
        return None
    bars = [variant for contest in groups for variant in contest.variants]
    figure, axes = new_figure(height=1.5 + 0.34 * len(bars) + 0.4 * (len(groups) - 1))
    devices = list(dict.fromkeys(configuration_label(variant.best)[0] for variant in bars))
    longest = max(end for variant in bars for end in (variant.speed, *(variant.interval or ())))
    y, ticks = 0.0, []
    for contest in groups:
        if len(groups) > 1:
            axes.text(0.0, y - 0.1, _distinguish(contest, groups), fontsize=7, va="bottom", color=GRAY)
            y += 0.5
        for variant in contest.variants:
            speed = variant.speed
            low, high = variant.interval or (speed, speed)
            color = _KINDS[devices.index(configuration_label(variant.best)[0]) % len(_KINDS)]
            axes.barh(y, speed, height=0.62, color=color, xerr=[[speed - low], [high - speed]], error_kw=_WHISKERS)
            axes.annotate(
                with_interval(speed, None), (high, y), (5, 0), textcoords="offset points", va="center", fontsize=8
            )
            ticks.append((y, variant.name))
            y += 1
        y += 0.4
    axes.set_yticks([position for position, _ in ticks], [name for _, name in ticks], fontsize=8)
    axes.set_ylim(y - 0.7, -0.6)
    axes.set_xlim(0, 1.15 * longest)
    axes.grid(False, axis="y")
    metrics = " or ".join(dict.fromkeys(NAMES[contest.ranking.metric] for contest in groups))
    certainty = ", with 95 % intervals" if any(variant.interval for variant in bars) else ", measured once"
    not_ranked = "; ".join(f"{result.info.run_name} ({', '.join(reasons)})" for result, reasons in excluded)
    footnote = textwrap.shorten(f"not ranked: {not_ranked}", _MAX_FOOTNOTE, placeholder=" …") if excluded else ""
    axes.set_xlabel("\n".join([f"× realtime of {metrics}{certainty}", *textwrap.wrap(footnote, 110)]), fontsize=8)
    title = "Throughput" if len(groups) == 1 else "Throughput by workload (groups are not comparable)"
    axes.set_title(title, fontsize=10, loc="left")
    return figure


def _distinguish(contest: Contest, groups: Sequence[Contest]) -> str:
    """Return the properties in which a workload differs from the others."""
    workloads = [group.ranking.workload for group in groups]
    items = contest.ranking.workload.items()
    return ", ".join(f"{key} {value}" for key, value in items if len({each.get(key) for each in workloads}) > 1)


def _speedup(results: Sequence[RunResult]) -> Figure | None:
    contest = only_contest(results)
    if contest is None:
        return None
    base, variants = contest.baseline, contest.variants[::-1]
    figure, axes = new_figure(height=1.0 + 0.34 * len(variants))
    factors = [variant.speed / (base.speed or 1.0) for variant in variants]
    intervals = [None if variant is base else variant.times(base) for variant in variants]
    names = [f"{variant.name}{' (baseline)' if variant is base else ''}" for variant in variants]
    colors = [GRAY if variant is base else BLUE for variant in variants]
    lows = [factor - (interval or (factor,))[0] for factor, interval in zip(factors, intervals, strict=True)]
    highs = [(interval or (factor,))[-1] - factor for factor, interval in zip(factors, intervals, strict=True)]
    positions = range(len(variants))
    bars = axes.barh(positions, factors, color=colors, height=0.62, xerr=[lows, highs], error_kw=_WHISKERS)
    axes.set_yticks(positions, names, fontsize=8)
    axes.bar_label(bars, [f"{factor:.2f} ×" for factor in factors], padding=3, fontsize=8)
    axes.axvline(1.0, color=GRAY, linestyle="--", linewidth=1)
    axes.margins(x=0.12)
    axes.grid(False, axis="y")
    axes.set_xlabel(f"× the speed of {base.name}")
    on_cpu = configuration_label(base.best)[0] == "cpu"
    axes.set_title("Speed-up over the CPU baseline" if on_cpu else "Speed-up over the slowest", fontsize=10, loc="left")
    return figure


def _pareto(results: Sequence[RunResult]) -> Figure | None:
    contest = only_contest(results)
    if contest is None or len(contest.variants) < 2:
        return None
    has_energy = all("joules_per_audio_hour" in variant.best.metrics for variant in contest.variants)
    key = "joules_per_audio_hour" if has_energy else "rss_peak_mib"
    variants = [variant for variant in contest.variants if key in variant.best.metrics]
    points = [(float(variant.best.metrics[key]), variant.speed, variant) for variant in variants]
    figure, axes = new_figure(height=4.0)
    front = [point for point in points if not any(_dominates(other, point) for other in points)]
    axes.scatter([point[0] for point in points], [point[1] for point in points], color=GRAY, s=28)
    front.sort(key=lambda point: point[0])
    axes.plot([point[0] for point in front], [point[1] for point in front], color=BLUE, marker="o", linewidth=1.2)
    points.sort(key=lambda point: -point[1])
    for number, (cost, speed, variant) in enumerate(points):
        label_at = (1.03, 0.97 - 0.9 * number / len(points))
        style: dict[str, Any] = {"fontsize": 7, "va": "center", "textcoords": "axes fraction", "arrowprops": _LEADER}
        axes.annotate(variant.name, (cost, speed), label_at, **style)
    axes.margins(x=0.2, y=0.15)
    axes.set_ylim(0)
    axes.set_xlabel("joules per hour of audio" if has_energy else "peak memory of the worker, MiB")
    axes.set_ylabel("× realtime")
    axes.set_title("Speed against energy" if has_energy else "Speed against memory", fontsize=10, loc="left")
    return figure


def _dominates(one: tuple[float, float, Variant], other: tuple[float, float, Variant]) -> bool:
    return one[0] <= other[0] and one[1] >= other[1] and one[:2] != other[:2]


def _parity_table(results: Sequence[RunResult]) -> Figure | None:
    rows = []
    for result in results:
        parity, metrics = result.startup.parity, result.metrics
        if parity is None or "parity_rel_err" not in metrics:
            continue
        error, cosine = f"{metrics['parity_rel_err']:.1e}", f"{metrics['parity_min_cosine']:.7f}"
        rows.append([result.info.run_name, "passed" if parity.passed else "FAILED", error, cosine])
    if not rows:
        return None
    figure, axes = new_figure(height=0.7 + 0.28 * len(rows))
    axes.set_axis_off()
    headings = ["setting", "parity", "largest error over largest value", "least cosine"]
    table = axes.table(rows, colLabels=headings, loc="upper left", cellLoc="left", colWidths=[0.4, 0.12, 0.3, 0.18])
    table.auto_set_font_size(False)
    table.set_fontsize(8)
    for (row, column), cell in table.get_celld().items():
        cell.set_edgecolor("#e4e6ea")
        if row and column == 1:
            cell.get_text().set_color(GREEN if rows[row - 1][1] == "passed" else RED)
    axes.set_title("Parity with the float64 reference", fontsize=10, loc="left")
    return figure
