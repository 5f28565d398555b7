"""The style of all figures, and functions to save them."""

from __future__ import annotations

import contextlib
import importlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)

BLUE, GRAY, ORANGE, GREEN, RED = "#2f6fab", "#8a8f98", "#d9822b", "#3a8f5d", "#b5443c"
"""The project's colors."""

_DPI = 110


def import_matplotlib() -> None:
    """Import what drawing takes, which the first figure does otherwise; that one reports any trouble."""
    with contextlib.suppress(Exception):
        for name in ("matplotlib.figure", "matplotlib.backends.backend_agg"):
            importlib.import_module(name)


def new_figure(width: float = 8.0, height: float = 3.6) -> tuple[Figure, Axes]:
    """Return an empty figure in the project's style, ``width`` × ``height`` inches, and its axes."""
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


def draw(plots: Mapping[str, Callable[[Any], Figure | None]], data: Any, folder: Path) -> list[Path]:
    """Draw plots of the data into a folder, by name; one that fails is a warning."""
    written = []
    for name, plot in plots.items():
        try:
            figure = plot(data)
            if figure is not None:
                written.append(save(figure, folder / f"{name}.png"))
        except Exception as error:  # a plot never ends a run
            log.warning("could not draw the plot %s: %s", name, error)
    return written
