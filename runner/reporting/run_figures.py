"""A run in pictures: PNG files of a few kB each, and the map of embeddings also as a page to click in.

Drawn from result.json and the run's files, so that they can be drawn again at any time.  matplotlib is imported when
the first picture is drawn.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.core.layout import PLOTS
from runner.core.paths import is_url
from runner.reporting.figures import BLUE, GREY, ORANGE, RED, draw, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from runner.contract.result import RunResult

log = logging.getLogger(__name__)

_COLD = ("import", "device", "weights", "calibration", "compile", "batch_size", "parity", "pin")

_STAGES = ("decode", "copy", "compute", "write")

_MOST_ACTORS = 40


def draw_run(result: RunResult, run_dir: Path) -> list[Path]:
    """Draw a run's pictures into its folder; those for which it has no figures are left out.

    Args:
        result: its result.json.
        run_dir: its folder.

    Returns:
        The files written.
    """
    from runner.reporting.embedding_map import draw_map

    folder = run_dir / PLOTS
    drawings: dict[str, Callable[[RunResult], Figure | None]] = {
        "throughput": _throughput,
        "stages": _stages,
        "actors": _actors,
        "batch_size": _batch_size,
        "memory": _memory,
    }
    written = draw(drawings, result, folder)
    kind = result.info.config.profile.projection
    root = result.info.dataset.root if result.info.dataset else ""
    if kind != "none":
        try:
            written += draw_map(run_dir, folder, kind, "" if is_url(root) else root)
        except Exception as error:
            log.warning("the map of the embeddings was not drawn: %s", error)
    return written


# A run


def _throughput(result: RunResult) -> Figure | None:
    windows = result.stats.throughput_series
    if not windows:
        return None
    metrics = result.metrics
    cold = metrics.get("startup_s", 0.0)
    figure, axes = new_figure()
    _shade_startup(axes, metrics)
    warm_up = windows[0]["t_s"]
    axes.axvspan(cold, cold + warm_up, color=ORANGE, alpha=0.12, linewidth=0)
    axes.text(cold + warm_up / 2, 1.0, "warm-up", **_ABOVE(axes), color=ORANGE)
    ends = [cold + window["t_s"] for window in windows]
    speeds = [window["realtime_factor"] for window in windows]
    axes.stairs(speeds, [cold, *ends], color=BLUE, linewidth=1.6)
    mean = metrics["realtime_factor"]
    axes.hlines(mean, cold, ends[-1], color=GREY, linestyles="--", linewidth=1)
    axes.annotate(f"{mean:,.0f} × over the steady state", (ends[-1], mean), (0, 4), textcoords="offset points",
                  ha="right", fontsize=8, color=GREY)  # fmt: skip
    axes.set_xlim(0, ends[-1])
    axes.set_ylim(0, 1.15 * max(*speeds, mean))
    axes.set_xlabel("seconds since the worker was started")
    axes.set_ylabel("× realtime")
    axes.set_title(f"Throughput: {result.info.run_name}", fontsize=10, loc="left")
    return figure


def _ABOVE(axes: Axes) -> dict[str, Any]:
    return {"transform": axes.get_xaxis_transform(), "ha": "center", "va": "bottom", "fontsize": 7}


def _shade_startup(axes: Axes, metrics: Mapping[str, float]) -> None:
    """The cold start as a grey block, its longer parts named."""
    whole = metrics.get("startup_s", 0.0)
    axes.axvspan(0, whole, color=GREY, alpha=0.12, linewidth=0)
    parts = {name: metrics.get(f"startup_{name}_s", 0.0) for name in _COLD}
    at = max(0.0, whole - sum(parts.values()))
    for name, seconds in parts.items():
        if seconds > 0.07 * whole:
            axes.axvline(at, color=GREY, linewidth=0.5, alpha=0.5)
            axes.text(at + seconds / 2, 0.5, f"{name} {seconds:.1f} s", transform=axes.get_xaxis_transform(),
                      rotation=90, ha="center", va="center", fontsize=7, color=GREY)  # fmt: skip
        at += seconds
    axes.text(whole / 2, 1.0, "cold start", **_ABOVE(axes), color=GREY)


def _stages(result: RunResult) -> Figure | None:
    metrics = result.metrics
    shares = {name: metrics[f"{name}_busy_share"] for name in _STAGES if f"{name}_busy_share" in metrics}
    if not shares:
        return None
    starved = [value for key, value in metrics.items() if key.endswith("_input_wait_share")]
    if starved:
        shares["replicas waiting for batches"] = sum(starved) / len(starved)
    figure, axes = new_figure(height=0.5 + 0.42 * len(shares) + 0.5)
    names = list(shares)[::-1]
    colors = [ORANGE if name == result.stats.bottleneck else GREY if " " in name else BLUE for name in names]
    bars = axes.barh(names, [100 * shares[name] for name in names], color=colors, height=0.62)
    axes.bar_label(bars, fmt="%.0f %%", padding=3, fontsize=8)
    axes.set_xlim(0, max(105.0, 108 * max(shares.values())))
    axes.set_xlabel("% of the steady state")
    axes.set_title(f"Where the time went: {result.stats.bottleneck}-bound", fontsize=10, loc="left")
    return figure


def _actors(result: RunResult) -> Figure | None:
    """Each actor's own speed while it was at work, machine by machine, the slowest ones where there are many."""
    measured = [(actor.realtime_factor, actor) for actor in result.stats.actors or () if actor.realtime_factor]
    if len(measured) < 2:
        return None
    measured = sorted(measured, key=lambda pair: pair[0])[:_MOST_ACTORS]
    measured.sort(key=lambda pair: (pair[1].host, pair[1].node, -pair[0]))
    machines = list(dict.fromkeys(actor.node for _, actor in measured))
    figure, axes = new_figure(height=1.0 + 0.25 * len(measured))
    colors = [(BLUE, ORANGE)[machines.index(actor.node) % 2] for _, actor in measured]
    names = [f"{actor.host}:{actor.pid} on {actor.device_name}" for _, actor in measured]
    bars = axes.barh(names, [speed for speed, _ in measured], color=colors, height=0.62)
    axes.bar_label(bars, fmt="%.0f", padding=3, fontsize=8)
    axes.invert_yaxis()
    axes.tick_params(axis="y", labelsize=7)
    axes.set_xlabel("× realtime while at work")
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
    axes.annotate(f"in use: {curve.batch_size}", (curve.batch_size, 0), (4, 6), textcoords="offset points",
                  fontsize=8, color=ORANGE)  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.set_ylim(0, 1.1 * max(speeds))
    axes.set_xlabel("examples a batch")
    axes.set_ylabel("examples/s, the model alone")
    memory = [step.memory_mib for step in curve.steps if step.memory_mib is not None]
    if len(memory) == len(sizes):
        right = axes.twinx()
        right.plot(sizes, memory, color=GREY, linewidth=1, marker=".")
        right.set_ylabel("MiB of tensors at most", color=GREY)
        right.set_ylim(0)
    axes.set_title("Speed over batch sizes", fontsize=10, loc="left")
    return figure


def _memory(result: RunResult) -> Figure | None:
    samples = result.stats.memory_series
    if len(samples) < 2:
        return None
    times = [sample["t_s"] for sample in samples]
    figure, axes = new_figure()
    axes.axvspan(times[0], 0, color=GREY, alpha=0.12, linewidth=0)
    axes.plot(times, [sample["rss_mib"] for sample in samples], color=BLUE, label="worker, resident")
    on_device = [(sample["t_s"], sample["device_memory_mib"]) for sample in samples if "device_memory_mib" in sample]
    if on_device:
        axes.plot(*zip(*on_device, strict=True), color=ORANGE, label="GPU, held by the process")
    ceiling = result.info.config.memory.host_limit_mib
    if ceiling:
        axes.axhline(ceiling, color=RED, linestyle="--", linewidth=1, label="memory.host_limit_mib")
    axes.set_xlim(times[0], max(times[-1], 0.1))
    axes.set_ylim(0)
    axes.set_xlabel("seconds since the steady state began (grey: cold start)")
    axes.set_ylabel("MiB")
    axes.legend(fontsize=8, frameon=False)
    axes.set_title("Memory", fontsize=10, loc="left")
    return figure
