"""A run and a sweep in pictures: PNG files of a few kB each, and the map of embeddings also as a page to click in.

Drawn from result.json and the run's files, so that they can be drawn again at any time.  matplotlib is imported when
the first picture is drawn.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.advice import Result, baseline, rankable, setting, speed, spread
from runner.stores import is_url

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)

PICTURES = "pictures"
"""Folder of a run's or a sweep's pictures."""
_BLUE, _GREY, _ORANGE, _GREEN, _RED = "#2f6fab", "#8a8f98", "#d9822b", "#3a8f5d", "#b5443c"
_COLD = ("import", "device", "weights", "calibration", "compile", "batch_size", "parity", "pin")
_STAGES = ("decode", "copy", "compute", "write")
_DPI = 110
_LEADER = {"arrowstyle": "-", "color": "#c9ccd2", "lw": 0.6}
_MOST_ACTORS = 40


def draw_run(result: Result, run_dir: Path) -> list[Path]:
    """Draw a run's pictures into its folder; those for which it has no figures are left out.

    Args:
        result: its result.json.
        run_dir: its folder.

    Returns:
        The files written.
    """
    from runner.embedding_map import draw_map

    folder = run_dir / PICTURES
    drawings: dict[str, Callable[[Result], Figure | None]] = {
        "throughput": _throughput,
        "stages": _stages,
        "actors": _actors,
        "batch_size": _batch_size,
        "memory": _memory,
    }
    written = _draw(drawings, result, folder)
    kind = result["config"]["profile"].get("map", "pca")
    root = str((result.get("dataset") or {}).get("root", ""))
    if kind != "none":
        try:
            written += draw_map(run_dir, folder, kind, "" if is_url(root) else root)
        except Exception as error:
            log.warning("the map of the embeddings was not drawn: %s", error)
    return written


def draw_sweep(results: Sequence[Result], sweep_dir: Path) -> list[Path]:
    """Draw a sweep's pictures into its folder, from the result.json of its jobs."""
    drawings: dict[str, Callable[[Sequence[Result]], Figure | None]] = {
        "throughput": _sweep_throughput,
        "speedup": _speedup,
        "pareto": _pareto,
        "parity": _parity_table,
    }
    return _draw(drawings, results, sweep_dir / PICTURES)


def new_figure(width: float = 8.0, height: float = 3.6) -> tuple[Figure, Axes]:
    """A figure in the project's style, and its axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    axes = figure.subplots()
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.grid(True, color="#e4e6ea", linewidth=0.7)
    axes.set_axisbelow(True)
    return figure, axes


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as a small PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})
    return path


def _draw(drawings: Mapping[str, Callable[[Any], Figure | None]], given: Any, folder: Path) -> list[Path]:
    written = []
    for name, drawing in drawings.items():
        try:
            figure = drawing(given)
            if figure is not None:
                written.append(save(figure, folder / f"{name}.png"))
        except Exception as error:  # a picture never costs a run
            log.warning("the picture %s was not drawn: %s", name, error)
    return written


# A run


def _throughput(result: Result) -> Figure | None:
    windows = result.get("series") or []
    if not windows:
        return None
    metrics = result["metrics"]
    cold = metrics.get("cold_start_s", 0.0)
    figure, axes = new_figure()
    _shade_cold_start(axes, metrics)
    warm_up = windows[0]["t_s"]
    axes.axvspan(cold, cold + warm_up, color=_ORANGE, alpha=0.12, linewidth=0)
    axes.text(cold + warm_up / 2, 1.0, "warm-up", **_ABOVE(axes), color=_ORANGE)
    ends = [cold + window["t_s"] for window in windows]
    speeds = [window["audio_x_realtime"] for window in windows]
    axes.stairs(speeds, [cold, *ends], color=_BLUE, linewidth=1.6)
    mean = metrics["audio_x_realtime"]
    axes.hlines(mean, cold, ends[-1], color=_GREY, linestyles="--", linewidth=1)
    axes.annotate(f"{mean:,.0f} × over the steady state", (ends[-1], mean), (0, 4), textcoords="offset points",
                  ha="right", fontsize=8, color=_GREY)  # fmt: skip
    axes.set_xlim(0, ends[-1])
    axes.set_ylim(0, 1.15 * max(*speeds, mean))
    axes.set_xlabel("seconds since the worker was started")
    axes.set_ylabel("× realtime")
    axes.set_title(f"Throughput: {result['run_name']}", fontsize=10, loc="left")
    return figure


def _ABOVE(axes: Axes) -> dict[str, Any]:
    return {"transform": axes.get_xaxis_transform(), "ha": "center", "va": "bottom", "fontsize": 7}


def _shade_cold_start(axes: Axes, metrics: Mapping[str, float]) -> None:
    """The cold start as a grey block, its longer parts named."""
    whole = metrics.get("cold_start_s", 0.0)
    axes.axvspan(0, whole, color=_GREY, alpha=0.12, linewidth=0)
    parts = {name: metrics.get(f"cold_start_{name}_s", 0.0) for name in _COLD}
    at = max(0.0, whole - sum(parts.values()))
    for name, seconds in parts.items():
        if seconds > 0.07 * whole:
            axes.axvline(at, color=_GREY, linewidth=0.5, alpha=0.5)
            axes.text(at + seconds / 2, 0.5, f"{name} {seconds:.1f} s", transform=axes.get_xaxis_transform(),
                      rotation=90, ha="center", va="center", fontsize=7, color=_GREY)  # fmt: skip
        at += seconds
    axes.text(whole / 2, 1.0, "cold start", **_ABOVE(axes), color=_GREY)


def _stages(result: Result) -> Figure | None:
    metrics = result["metrics"]
    shares = {name: metrics[f"{name}_busy_share"] for name in _STAGES if f"{name}_busy_share" in metrics}
    if not shares:
        return None
    starved = [value for key, value in metrics.items() if key.endswith("_starved_share")]
    if starved:
        shares["lanes waiting for batches"] = sum(starved) / len(starved)
    figure, axes = new_figure(height=0.5 + 0.42 * len(shares) + 0.5)
    names = list(shares)[::-1]
    colors = [_ORANGE if name == result.get("bottleneck") else _GREY if " " in name else _BLUE for name in names]
    bars = axes.barh(names, [100 * shares[name] for name in names], color=colors, height=0.62)
    axes.bar_label(bars, fmt="%.0f %%", padding=3, fontsize=8)
    axes.set_xlim(0, max(105.0, 108 * max(shares.values())))
    axes.set_xlabel("% of the steady state")
    axes.set_title(f"Where the time went: {result.get('bottleneck')}-bound", fontsize=10, loc="left")
    return figure


def _actors(result: Result) -> Figure | None:
    """Each actor's own speed while it was at work, machine by machine, the slowest ones where there are many."""
    found = [each for each in result.get("actors") or [] if each.get("audio_x_realtime")]
    if len(found) < 2:
        return None
    found = sorted(found, key=lambda each: float(each["audio_x_realtime"]))[:_MOST_ACTORS]
    found.sort(key=lambda each: (str(each["host"]), str(each["node"]), -float(each["audio_x_realtime"])))
    machines = list(dict.fromkeys(each["node"] for each in found))
    figure, axes = new_figure(height=1.0 + 0.25 * len(found))
    colors = [(_BLUE, _ORANGE)[machines.index(each["node"]) % 2] for each in found]
    names = [f"{each['host']}:{each['pid']} on {each['device_name']}" for each in found]
    bars = axes.barh(names, [each["audio_x_realtime"] for each in found], color=colors, height=0.62)
    axes.bar_label(bars, fmt="%.0f", padding=3, fontsize=8)
    axes.invert_yaxis()
    axes.tick_params(axis="y", labelsize=7)
    axes.set_xlabel("× realtime while at work")
    axes.set_title(f"Actors: {result.get('cluster')}", fontsize=10, loc="left")
    return figure


def _batch_size(result: Result) -> Figure | None:
    curve = result.get("batch_size_curve")
    if not curve or len(curve["steps"]) < 2:
        return None
    sizes = [step["batch_size"] for step in curve["steps"]]
    speeds = [step["examples_per_s"] for step in curve["steps"]]
    figure, axes = new_figure()
    axes.plot(sizes, speeds, color=_BLUE, marker="o", markersize=4)
    axes.axvline(curve["batch_size"], color=_ORANGE, linestyle="--", linewidth=1)
    axes.annotate(f"in use: {curve['batch_size']}", (curve["batch_size"], 0), (4, 6), textcoords="offset points",
                  fontsize=8, color=_ORANGE)  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.set_ylim(0, 1.1 * max(speeds))
    axes.set_xlabel("examples a batch")
    axes.set_ylabel("examples/s, the model alone")
    memory = [step["memory_mib"] for step in curve["steps"]]
    if all(value is not None for value in memory):
        right = axes.twinx()
        right.plot(sizes, memory, color=_GREY, linewidth=1, marker=".")
        right.set_ylabel("MiB of tensors at most", color=_GREY)
        right.set_ylim(0)
    axes.set_title("Speed over batch sizes", fontsize=10, loc="left")
    return figure


def _memory(result: Result) -> Figure | None:
    samples = result.get("memory_series") or []
    if len(samples) < 2:
        return None
    times = [sample["t_s"] for sample in samples]
    figure, axes = new_figure()
    axes.axvspan(times[0], 0, color=_GREY, alpha=0.12, linewidth=0)
    axes.plot(times, [sample["rss_mib"] for sample in samples], color=_BLUE, label="worker, resident")
    on_device = [(sample["t_s"], sample["device_memory_mib"]) for sample in samples if "device_memory_mib" in sample]
    if on_device:
        axes.plot(*zip(*on_device, strict=True), color=_ORANGE, label="GPU, held by the process")
    ceiling = result["config"]["memory"].get("host_memory_mib")
    if ceiling:
        axes.axhline(ceiling, color=_RED, linestyle="--", linewidth=1, label="memory.host_memory_mib")
    axes.set_xlim(times[0], max(times[-1], 0.1))
    axes.set_ylim(0)
    axes.set_xlabel("seconds since the steady state began (grey: cold start)")
    axes.set_ylabel("MiB")
    axes.legend(fontsize=8, frameon=False)
    axes.set_title("Memory", fontsize=10, loc="left")
    return figure


# A sweep


def _label(result: Result) -> str:
    """What tells a job from the others: its setting, and a swept batch size."""
    words = " ".join(setting(result))
    sizes = [each.partition("=")[2] for each in result.get("overrides", []) if each.startswith("memory.batch_size=")]
    return f"{words} b{sizes[0]}" if sizes else words


def _by_setting(results: Sequence[Result]) -> tuple[list[str], list[str], dict[tuple[str, str], list[Result]]]:
    """Groups (device and precision) and, within them, memory policies (or what else was swept)."""
    cells: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        device, _, precision = setting(result)
        group = f"{device}\n{precision}"
        rest = _label(result).replace(f"{device} ", "", 1).replace(f" {precision}", "", 1)
        cells.setdefault((group, rest), []).append(result)
    groups = list(dict.fromkeys(group for group, _ in cells))
    return groups, list(dict.fromkeys(rest for _, rest in cells)), cells


def _sweep_throughput(results: Sequence[Result]) -> Figure | None:
    fit = rankable(results)
    if not fit:
        return None
    groups, bars, cells = _by_setting(fit)
    figure, axes = new_figure(width=max(6.0, 1.2 + 0.55 * len(groups) * len(bars)), height=4.0)
    colors = (_BLUE, _ORANGE, _GREEN, _GREY, _RED, "#7a5ea8", "#4aa3a2", "#a0793d")
    width = 0.8 / len(bars)
    for place, bar in enumerate(bars):
        found = [(n, cells[group, bar][0]) for n, group in enumerate(groups) if (group, bar) in cells]
        at = [n + (place - (len(bars) - 1) / 2) * width for n, _ in found]
        drawn = axes.bar(at, [speed(each) or 0.0 for _, each in found], 0.92 * width, label=bar,
                         color=colors[place % len(colors)], yerr=[spread(each) or 0.0 for _, each in found],
                         error_kw={"ecolor": "#444", "elinewidth": 1, "capsize": 2})  # fmt: skip
        axes.bar_label(drawn, fmt="{:,.0f}", fontsize=7, padding=2)
    axes.set_xticks(range(len(groups)), groups, fontsize=8)
    axes.grid(False, axis="x")
    axes.set_ylabel("× realtime (± one standard deviation)")
    axes.margins(y=0.15)
    axes.legend(fontsize=8, frameon=False)
    axes.set_title("Throughput by device, precision and memory", fontsize=10, loc="left")
    return figure


def _speedup(results: Sequence[Result]) -> Figure | None:
    base = baseline(results)
    if base is None:
        return None
    fit = sorted(rankable(results), key=lambda each: speed(each) or 0.0)
    figure, axes = new_figure(height=1.0 + 0.34 * len(fit))
    factors = [(speed(each) or 0.0) / (speed(base) or 1.0) for each in fit]
    names = [f"{_label(each)}{' (baseline)' if each is base else ''}" for each in fit]
    drawn = axes.barh(range(len(fit)), factors, color=[_GREY if each is base else _BLUE for each in fit], height=0.62)
    axes.set_yticks(range(len(fit)), names, fontsize=8)
    axes.bar_label(drawn, fmt="%.2f ×", padding=3, fontsize=8)
    axes.axvline(1.0, color=_GREY, linestyle="--", linewidth=1)
    axes.margins(x=0.12)
    axes.grid(False, axis="y")
    axes.set_xlabel(f"× the speed of {_label(base)}")
    axes.set_title("Speed-up over the CPU baseline" if setting(base)[0] == "cpu" else "Speed-up over the slowest",
                   fontsize=10, loc="left")  # fmt: skip
    return figure


def _pareto(results: Sequence[Result]) -> Figure | None:
    fit = rankable(results)
    if len(fit) < 2:
        return None
    measured = all("joules_per_audio_hour" in each["metrics"] for each in fit)
    key = "joules_per_audio_hour" if measured else "rss_peak_mib"
    points = [(each["metrics"][key], speed(each) or 0.0, each) for each in fit if key in each["metrics"]]
    figure, axes = new_figure(height=4.0)
    front = [point for point in points if not any(_dominates(other, point) for other in points)]
    axes.scatter([point[0] for point in points], [point[1] for point in points], color=_GREY, s=28)
    front.sort(key=lambda point: point[0])
    axes.plot([point[0] for point in front], [point[1] for point in front], color=_BLUE, marker="o", linewidth=1.2)
    points.sort(key=lambda point: -point[1])
    for number, (cost, fast, each) in enumerate(points):
        axes.annotate(_label(each), (cost, fast), (1.03, 0.97 - 0.9 * number / len(points)), fontsize=7, va="center",
                      textcoords="axes fraction", arrowprops=_LEADER)  # fmt: skip
    axes.margins(x=0.2, y=0.15)
    axes.set_ylim(0)
    axes.set_xlabel("joules an hour of audio" if measured else "worker's memory at most, MiB")
    axes.set_ylabel("× realtime")
    axes.set_title("Speed against energy" if measured else "Speed against memory", fontsize=10, loc="left")
    return figure


def _dominates(one: tuple[float, float, Result], other: tuple[float, float, Result]) -> bool:
    return one[0] <= other[0] and one[1] >= other[1] and one[:2] != other[:2]


def _parity_table(results: Sequence[Result]) -> Figure | None:
    rows = []
    for result in results:
        parity, metrics = result.get("parity"), result.get("metrics", {})
        if parity is None or "parity_rel_err" not in metrics:
            continue
        error, cosine = f"{metrics['parity_rel_err']:.1e}", f"{metrics['parity_min_cosine']:.7f}"
        rows.append([_label(result), "passed" if parity["passed"] else "FAILED", error, cosine])
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
            cell.get_text().set_color(_GREEN if rows[row - 1][1] == "passed" else _RED)
    axes.set_title("Numbers against the reference in float64", fontsize=10, loc="left")
    return figure
