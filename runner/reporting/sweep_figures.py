"""A sweep in pictures: throughput, speed-up, speed against energy or memory, parity; from its jobs' result.json."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from runner.core.layout import PLOTS
from runner.reporting.advice import configuration_label
from runner.reporting.comparability import NAMES
from runner.reporting.figures import BLUE, GREEN, GREY, ORANGE, RED, draw, new_figure
from runner.reporting.verdict import contests, only_contest, with_interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from runner.contract.result import RunResult
    from runner.reporting.verdict import Contest, Variant

_KINDS = (BLUE, ORANGE, GREEN, RED)
"""Colours of kinds of device."""

_LEADER = {"arrowstyle": "-", "color": "#c9ccd2", "lw": 0.6}

_MOST_SAID = 400

_WHISKERS = {"ecolor": "#444", "elinewidth": 1, "capsize": 2}


def draw_sweep(results: Sequence[RunResult], sweep_dir: Path) -> list[Path]:
    """Draw a sweep's pictures into its folder, from the result.json of its jobs."""
    drawings: dict[str, Callable[[Sequence[RunResult]], Figure | None]] = {
        "throughput": _sweep_throughput,
        "speedup": _speedup,
        "pareto": _pareto,
        "parity": _parity_table,
    }
    return draw(drawings, results, sweep_dir / PLOTS)


def _sweep_throughput(results: Sequence[RunResult]) -> Figure | None:
    found, excluded = contests(results)
    if not found:
        return None
    bars = [(contest, each) for contest in found for each in contest.variants]
    figure, axes = new_figure(height=1.5 + 0.34 * len(bars) + 0.4 * (len(found) - 1))
    kinds = list(dict.fromkeys(configuration_label(each.best)[0] for _, each in bars))
    most = max(end for _, each in bars for end in (each.speed, *(each.interval or ())))
    y, ticks = 0.0, []
    for contest in found:
        if len(found) > 1:
            text = _one_workload(contest, found)
            axes.text(0.0, y - 0.1, text, fontsize=7, va="bottom", color=GREY)
            y += 0.5
        for each in contest.variants:
            low, high = each.interval or (each.speed, each.speed)
            color = _KINDS[kinds.index(configuration_label(each.best)[0]) % len(_KINDS)]
            axes.barh(y, each.speed, height=0.62, color=color, xerr=[[each.speed - low], [high - each.speed]],
                      error_kw=_WHISKERS)  # fmt: skip
            axes.annotate(
                with_interval(each.speed, None), (high, y), (5, 0), textcoords="offset points", va="center", fontsize=8
            )
            ticks.append((y, each.name))
            y += 1
        y += 0.4
    axes.set_yticks([at for at, _ in ticks], [name for _, name in ticks], fontsize=8)
    axes.set_ylim(y - 0.7, -0.6)
    axes.set_xlim(0, 1.15 * most)
    axes.grid(False, axis="y")
    likes = " or ".join(dict.fromkeys(NAMES[contest.ranking.metric] for contest in found))
    ends = ", with 95 % intervals" if any(each.interval for _, each in bars) else ", measured once"
    not_ranked = "; ".join(f"{result.info.run_name} ({', '.join(reasons)})" for result, reasons in excluded)
    foot = textwrap.shorten(f"not ranked: {not_ranked}", _MOST_SAID, placeholder=" …") if excluded else ""
    axes.set_xlabel("\n".join([f"× realtime of {likes}{ends}", *textwrap.wrap(foot, 110)]), fontsize=8)
    axes.set_title("Throughput" if len(found) == 1 else "Throughput, a group a workload: not comparable between groups",
                   fontsize=10, loc="left")  # fmt: skip
    return figure


def _one_workload(contest: Contest, found: Sequence[Contest]) -> str:
    """What tells a workload from the others."""
    every = [each.ranking.workload for each in found]
    own = contest.ranking.workload
    return ", ".join(f"{key} {value}" for key, value in own.items() if len({each.get(key) for each in every}) > 1)


def _speedup(results: Sequence[RunResult]) -> Figure | None:
    contest = only_contest(results)
    if contest is None:
        return None
    base, variants = contest.baseline, contest.variants[::-1]
    figure, axes = new_figure(height=1.0 + 0.34 * len(variants))
    factors = [each.speed / (base.speed or 1.0) for each in variants]
    ends = [None if each is base else each.times(base) for each in variants]
    names = [f"{each.name}{' (baseline)' if each is base else ''}" for each in variants]
    errors = [[factor - low, high - factor] for factor, (low, high) in
              ((factor, end or (factor, factor)) for factor, end in zip(factors, ends, strict=True))]  # fmt: skip
    drawn = axes.barh(range(len(variants)), factors, color=[GREY if each is base else BLUE for each in variants],
                      height=0.62, xerr=[*zip(*errors, strict=True)],
                      error_kw=_WHISKERS)  # fmt: skip
    axes.set_yticks(range(len(variants)), names, fontsize=8)
    axes.bar_label(drawn, [f"{factor:.2f} ×" for factor in factors], padding=3, fontsize=8)
    axes.axvline(1.0, color=GREY, linestyle="--", linewidth=1)
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
    measured = all("joules_per_audio_hour" in each.best.metrics for each in contest.variants)
    key = "joules_per_audio_hour" if measured else "rss_peak_mib"
    points = [
        (float(each.best.metrics[key]), each.speed, each) for each in contest.variants if key in each.best.metrics
    ]
    figure, axes = new_figure(height=4.0)
    front = [point for point in points if not any(_dominates(other, point) for other in points)]
    axes.scatter([point[0] for point in points], [point[1] for point in points], color=GREY, s=28)
    front.sort(key=lambda point: point[0])
    axes.plot([point[0] for point in front], [point[1] for point in front], color=BLUE, marker="o", linewidth=1.2)
    points.sort(key=lambda point: -point[1])
    for number, (cost, fast, each) in enumerate(points):
        axes.annotate(each.name, (cost, fast), (1.03, 0.97 - 0.9 * number / len(points)), fontsize=7, va="center",
                      textcoords="axes fraction", arrowprops=_LEADER)  # fmt: skip
    axes.margins(x=0.2, y=0.15)
    axes.set_ylim(0)
    axes.set_xlabel("joules an hour of audio" if measured else "worker's memory at most, MiB")
    axes.set_ylabel("× realtime")
    axes.set_title("Speed against energy" if measured else "Speed against memory", fontsize=10, loc="left")
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
    heads = ["setting", "parity", "largest error over largest value", "least cosine"]
    table = axes.table(rows, colLabels=heads, loc="upper left", cellLoc="left", colWidths=[0.4, 0.12, 0.3, 0.18])
    table.auto_set_font_size(False)
    table.set_fontsize(8)
    for (row, column), cell in table.get_celld().items():
        cell.set_edgecolor("#e4e6ea")
        if row and column == 1:
            cell.get_text().set_color(GREEN if rows[row - 1][1] == "passed" else RED)
    axes.set_title("Numbers against the reference in float64", fontsize=10, loc="left")
    return figure
