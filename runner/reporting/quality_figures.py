"""A run's quality in a picture: the confusion matrix, or the labels' average precision where a row may have several."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from runner.core.layout import RunLayout
from runner.reporting.figures import BLUE, draw, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from runner.contract.evaluation import EvaluationReport

_MOST_LABELS = 30

_MOST_CHARACTERS = 24


def draw_quality(report: EvaluationReport, run_dir: Path) -> list[Path]:
    """Draw ``plots/confusion.png`` or ``plots/labels.png`` into a run's folder; trouble is a warning.

    Args:
        report: of the evaluation.
        run_dir: the run's folder.

    Returns:
        The files written.
    """
    if report.confusion:
        return draw({"confusion": _confusion}, report, run_dir / RunLayout.plots)
    if report.per_label:
        return draw({"labels": _labels}, report, run_dir / RunLayout.plots)
    return []


def _confusion(report: EvaluationReport) -> Figure:
    confusion = report.confusion
    assert confusion is not None
    counts = np.array(confusion.matrix)
    shown = np.sort(np.argsort(-counts.sum(axis=1), kind="stable")[:_MOST_LABELS])
    counts, names = counts[np.ix_(shown, shown)], [_short(confusion.labels[label]) for label in shown]
    side = 2.6 + 0.42 * len(names)
    figure, axes = new_figure(side + 0.6, side)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.grid(False)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("predicted, by a probe that learned from other recordings")
    axes.set_ylabel("label")
    for row, column in zip(*np.nonzero(counts), strict=True):
        color = "white" if shares[row, column] > 0.5 else "#333333"
        axes.text(column, row, f"{counts[row, column]}", ha="center", va="center", color=color, fontsize=8)
    right = counts.trace() / max(counts.sum(), 1)
    left_out = len(confusion.labels) - len(names)
    axes.set_title(
        f"{right:.1%} of {counts.sum():,} {report.quality.data.unit}s on the diagonal"
        + (f"; {left_out:,} rarer labels not shown" if left_out else ""),
        fontsize=10,
    )
    return figure


def _labels(report: EvaluationReport) -> Figure:
    assert report.per_label is not None
    most = sorted(report.per_label.items(), key=lambda pair: -pair[1]["rows"])[:_MOST_LABELS]
    figure, axes = new_figure(8.0, 1.2 + 0.28 * len(most))
    places = range(len(most))[::-1]
    axes.barh(places, [scores["average_precision"] for _, scores in most], color=BLUE, height=0.7)
    chance = [scores["rows"] / report.quality.data.rows for _, scores in most]
    axes.plot(chance, places, "|", color="#222222", markersize=12, label="chance")
    axes.set_yticks(places, [f"{_short(name)} ({scores['rows']:,})" for name, scores in most])
    axes.set_xlim(0, 1)
    axes.set_xlabel("average precision of a probe that learned from other recordings")
    axes.legend(loc="lower right", frameon=False)
    return figure


def _short(name: str) -> str:
    return name if len(name) <= _MOST_CHARACTERS else f"{name[: _MOST_CHARACTERS - 1]}…"
