"""Plots of a run, as PNG files of a few kB, and the map of its embeddings, also as an interactive page.

They are drawn from the run's files alone.  matplotlib is imported with the first plot.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.core.layout import RunLayout
from runner.reporting.figures import BLUE, GRAY, ORANGE, RED, draw, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from runner.contract.result import RunResult

log = logging.getLogger(__name__)

_STARTUP = ("import", "device", "weights", "calibration", "compile", "batch_size", "parity", "pin")

_STAGES = ("decode", "copy", "compute", "write")

_MAX_ACTORS = 40


def draw_run(result: RunResult, run_dir: Path) -> list[Path]:
    """Draw the plots of a run into its folder, those that it has measurements for.

    Args:
        result: the run's.
        run_dir: its folder.

    Returns:
        The files written.
    """
    from runner.reporting.embedding_map import draw_map

    folder = run_dir / RunLayout.plots
    plots: dict[str, Callable[[RunResult], Figure | None]] = {
        "throughput": _throughput,
        "stages": _stages,
        "actors": _actors,
        "batch_size": _batch_size,
        "memory": _memory,
    }
    written = draw(plots, result, folder)
    if result.info.config.profile.projection != "none":
        try:
            written += draw_map(run_dir, folder, result.info.config)
        except Exception as error:
            log.warning("could not draw the map of the embeddings: %s", error)
    return written


def _throughput(result: RunResult) -> Figure | None:
    windows = result.stats.throughput_series
    if not windows:
        return None
    metrics = result.metrics
    startup_s = metrics.get("startup_s", 0.0)
    figure, axes = new_figure()
    _shade_startup(axes, metrics)
    warm_up = windows[0]["t_s"]
    axes.axvspan(startup_s, startup_s + warm_up, color=ORANGE, alpha=0.12, linewidth=0)
    axes.text(startup_s + warm_up / 2, 1.0, "warm-up", **_above(axes), color=ORANGE)
    ends = [startup_s + window["t_s"] for window in windows]
    speeds = [window["realtime_factor"] for window in windows]
    axes.stairs(speeds, [startup_s, *ends], color=BLUE, linewidth=1.6)
    mean = metrics["realtime_factor"]
    axes.hlines(mean, startup_s, ends[-1], color=GRAY, linestyles="--", linewidth=1)
    label = f"{mean:,.0f} × in the steady state"
    style: dict[str, Any] = {"textcoords": "offset points", "ha": "right", "fontsize": 8, "color": GRAY}
    axes.annotate(label, (ends[-1], mean), (0, 4), **style)
    axes.set_xlim(0, ends[-1])
    axes.set_ylim(0, 1.15 * max(*speeds, mean))
    axes.set_xlabel("seconds since the worker started")
    axes.set_ylabel("× realtime")
    axes.set_title(f"Throughput: {result.info.run_name}", fontsize=10, loc="left")
    return figure


def _above(axes: Axes) -> dict[str, Any]:
    """Return the style of a text above the plot, at a time on its axis."""
    return {"transform": axes.get_xaxis_transform(), "ha": "center", "va": "bottom", "fontsize": 7}


def _shade_startup(axes: Axes, metrics: Mapping[str, float]) -> None:
    """Draw the startup as a gray block, with its longer steps."""
    startup_s = metrics.get("startup_s", 0.0)
    axes.axvspan(0, startup_s, color=GRAY, alpha=0.12, linewidth=0)
    steps = {name: metrics.get(f"startup_{name}_s", 0.0) for name in _STARTUP}
    start = max(0.0, startup_s - sum(steps.values()))
    style: dict[str, Any] = {"rotation": 90, "ha": "center", "va": "center", "fontsize": 7, "color": GRAY}
    for name, seconds in steps.items():
        if seconds > 0.07 * startup_s:
            axes.axvline(start, color=GRAY, linewidth=0.5, alpha=0.5)
            label = f"{name} {seconds:.1f} s"
            axes.text(start + seconds / 2, 0.5, label, transform=axes.get_xaxis_transform(), **style)
        start += seconds
    axes.text(startup_s / 2, 1.0, "startup", **_above(axes), color=GRAY)


def _stages(result: RunResult) -> Figure | None:
    metrics = result.metrics
    shares = {name: metrics[f"{name}_busy_share"] for name in _STAGES if f"{name}_busy_share" in metrics}
    if not shares:
        return None
    waiting = [value for key, value in metrics.items() if key.endswith("_input_wait_share")]
    if waiting:
        shares["replicas waiting for batches"] = sum(waiting) / len(waiting)
    figure, axes = new_figure(height=0.5 + 0.42 * len(shares) + 0.5)
    names = list(shares)[::-1]
    colors = [ORANGE if name == result.stats.bottleneck else GRAY if " " in name else BLUE for name in names]
    bars = axes.barh(names, [100 * shares[name] for name in names], color=colors, height=0.62)
    axes.bar_label(bars, fmt="%.0f %%", padding=3, fontsize=8)
    axes.set_xlim(0, max(105.0, 108 * max(shares.values())))
    axes.set_xlabel("% of the steady state")
    axes.set_title(f"Where the time went: {result.stats.bottleneck}-bound", fontsize=10, loc="left")
    return figure


def _actors(result: RunResult) -> Figure | None:
    """Draw the speed of each actor while it worked, by machine; of many actors the slowest."""
    measured = [(actor.realtime_factor, actor) for actor in result.stats.actors or () if actor.realtime_factor]
    if len(measured) < 2:
        return None
    measured = sorted(measured, key=lambda pair: pair[0])[:_MAX_ACTORS]
    measured.sort(key=lambda pair: (pair[1].host, pair[1].node, -pair[0]))
    machines = list(dict.fromkeys(actor.node for _, actor in measured))
    figure, axes = new_figure(height=1.0 + 0.25 * len(measured))
    colors = [(BLUE, ORANGE)[machines.index(actor.node) % 2] for _, actor in measured]
    names = [f"{actor.host}:{actor.pid} on {actor.device_name}" for _, actor in measured]
    bars = axes.barh(names, [speed for speed, _ in measured], color=colors, height=0.62)
    axes.bar_label(bars, fmt="%.0f", padding=3, fontsize=8)
    axes.invert_yaxis()
    axes.tick_params(axis="y", labelsize=7)
    axes.set_xlabel("× realtime while working")
    axes.set_title(f"Actors: {result.stats.actors_summary}", fontsize=10, loc="left")
    return figure


def _batch_size(result: RunResult) -> Figure | None:
    curve = result.startup.batch_size_curve
    if not curve or len(curve.steps) < 2:
        return None
    sizes = [step.batch_size for step in curve.steps]
    speeds = [step.examples_per_s for step in curve.steps]
    figure, axes = new_figure()
    axes.plot(sizes, speeds, color=BLUE, marker="o", markersize=4)
    axes.axvline(curve.batch_size, color=ORANGE, linestyle="--", linewidth=1)
    style: dict[str, Any] = {"textcoords": "offset points", "fontsize": 8, "color": ORANGE}
    axes.annotate(f"in use: {curve.batch_size}", (curve.batch_size, 0), (4, 6), **style)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.set_ylim(0, 1.1 * max(speeds))
    axes.set_xlabel("examples per batch")
    axes.set_ylabel("examples/s of the model alone")
    memory = [step.memory_mib for step in curve.steps if step.memory_mib is not None]
    if len(memory) == len(sizes):
        right = axes.twinx()
        right.plot(sizes, memory, color=GRAY, linewidth=1, marker=".")
        right.set_ylabel("peak MiB of tensors", color=GRAY)
        right.set_ylim(0)
    axes.set_title("Speed over batch sizes", fontsize=10, loc="left")
    return figure


def _memory(result: RunResult) -> Figure | None:
    samples = result.stats.memory_series
    if len(samples) < 2:
        return None
    times = [sample["t_s"] for sample in samples]
    figure, axes = new_figure()
    axes.axvspan(times[0], 0, color=GRAY, alpha=0.12, linewidth=0)
    axes.plot(times, [sample["rss_mib"] for sample in samples], color=BLUE, label="worker, resident")
    on_device = [(sample["t_s"], sample["device_memory_mib"]) for sample in samples if "device_memory_mib" in sample]
    if on_device:
        axes.plot(*zip(*on_device, strict=True), color=ORANGE, label="GPU, held by the process")
    ceiling = result.startup.resolved.get("memory.host_limit_mib")
    if isinstance(ceiling, int):
        axes.axhline(ceiling, color=RED, linestyle="--", linewidth=1, label="memory.host_limit_mib")
    axes.set_xlim(times[0], max(times[-1], 0.1))
    axes.set_ylim(0)
    axes.set_xlabel("seconds since the steady state began (gray: startup)")
    axes.set_ylabel("MiB")
    axes.legend(fontsize=8, frameon=False)
    axes.set_title("Memory", fontsize=10, loc="left")
    return figure
