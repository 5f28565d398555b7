"""A map of a run's embeddings: their projection to two dimensions, by label, as a PNG and as an interactive page."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from runner.core.layout import RunLayout
from runner.output.run_model import RunModel
from runner.reporting.map_page import MapPoints, write_page

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from runner.config.schema import RunConfig

MAX_POINTS = 3000

_SHARDS = 40

_LABELS = 19
"""Most frequent labels, which have a color each; the others share one."""

_OTHER_LABELS = "other labels"

_COLORS = [
    "#1f77b4",
    "#ff7f0e",
    "#2ca02c",
    "#d62728",
    "#9467bd",
    "#8c564b",
    "#e377c2",
    "#17becf",
    "#bcbd22",
    "#393b79",
    "#637939",
    "#8c6d31",
    "#843c39",
    "#7b4173",
    "#3182bd",
    "#e6550d",
    "#31a354",
    "#756bb1",
    "#636363",
]

_GRAY = "#b5b9c0"


def draw_map(run_dir: Path, folder: Path, config: RunConfig) -> list[Path]:
    """Draw the map of a run's Parquet embeddings, if it has at least three.

    Args:
        run_dir: the run's folder.
        folder: where to write the map.
        config: ``profile.projection``, which is ``pca`` or ``umap`` (the extra of that name), ``profile.log_mels`` and
            ``frontend`` count.

    Returns:
        The files written.

    Raises:
        ImportError: UMAP is not installed.
    """
    table = sample(run_dir / RunLayout.embeddings)
    if table is None or table.num_rows < 3:
        return []
    vectors = table["embedding"].combine_chunks().flatten().to_numpy().reshape(table.num_rows, -1).astype(np.float64)
    projection = config.profile.projection
    if projection == "umap":
        points, axes = umap(vectors), ("UMAP 1", "UMAP 2")
    else:
        points, shares = pca(vectors)
        axes = (f"PC 1 ({shares[0]:.0%} of the variance)", f"PC 2 ({shares[1]:.0%})")
    labels = [label or "(no label)" for label in table["label"].to_pylist()]
    shown = [label for label, _ in Counter(labels).most_common(_LABELS)]
    colors = dict(zip(shown, _COLORS, strict=False))
    from runner.reporting.figures import save

    plot = save(_draw(points, labels, colors, axes, projection), folder / "projection.png")
    clips, starts = table["clip"].to_pylist(), table["start_s"].to_pylist()
    return [plot, *write_page(MapPoints(points, axes, clips, starts, labels, colors, _GRAY), run_dir, folder, config)]


def sample(folder: Path, max_points: int = MAX_POINTS) -> pa.Table | None:
    """Read about ``max_points`` embeddings, evenly from at most 40 of the shards in a folder; None if it has none.

    The first output is the column ``embedding``, whatever its name.
    """
    shards = sorted(folder.glob("part-*.parquet"))
    if not shards:
        return None
    shards = shards[:: -(-len(shards) // _SHARDS)]
    metadata = pq.read_schema(shards[0]).metadata or {}
    model = RunModel.from_metadata({key.decode(): value.decode() for key, value in metadata.items()})
    columns = ["clip", "start_s", "label", model.outputs[0].name]
    tables = []
    for shard in shards:
        with pq.ParquetFile(shard) as file:
            rows = file.metadata.num_rows
            every = max(1, rows * len(shards) // max_points)
            chosen = np.arange(0, rows, every)[: max(1, max_points // len(shards))]
            start = 0
            for number in range(file.num_row_groups):  # by row group: a shard may have gigabytes
                end = start + file.metadata.row_group(number).num_rows
                rows_in_group = chosen[(chosen >= start) & (chosen < end)] - start
                if len(rows_in_group):
                    tables.append(file.read_row_group(number, columns=columns).take(rows_in_group))
                start = end
    if not tables:
        return None
    return pa.concat_tables(table.replace_schema_metadata(None) for table in tables).rename_columns(
        ["clip", "start_s", "label", "embedding"]
    )


def pca(vectors: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the first two principal components, float64 [n, 2], and their shares of the variance, [2]."""
    centered = vectors - vectors.mean(axis=0)
    left, scales, _ = np.linalg.svd(centered, full_matrices=False)
    variance = scales**2
    return left[:, :2] * scales[:2], variance[:2] / max(variance.sum(), 1e-300)


def umap(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return UMAP's two dimensions, float64 [n, 2].

    Raises:
        ImportError: the extra is not installed.
    """
    try:
        from umap import UMAP
    except ImportError as error:
        raise ImportError("profile.projection=umap needs the extra: pip install 'vggish-runner[umap]'") from error
    return np.asarray(UMAP(random_state=0).fit_transform(vectors), np.float64)


def _draw(
    points: NDArray[np.float64], labels: list[str], colors: dict[str, str], axes_names: tuple[str, str], projection: str
) -> Figure:
    from runner.reporting.figures import new_figure

    figure, axes = new_figure(height=5.0)
    names = np.array([label if label in colors else _OTHER_LABELS for label in labels])
    for label in [*([_OTHER_LABELS] if _OTHER_LABELS in names else []), *colors]:
        own = points[names == label]
        axes.scatter(own[:, 0], own[:, 1], s=9, color=colors.get(label, _GRAY), label=_short(label), linewidths=0)
    axes.set_xlabel(axes_names[0])
    axes.set_ylabel(axes_names[1])
    if len(set(labels)) > 1:
        axes.legend(fontsize=7, frameon=False, markerscale=2, loc="center left", bbox_to_anchor=(1.0, 0.5))
    axes.set_title(f"{len(points):,} embeddings ({projection.upper()})", fontsize=10, loc="left")
    return figure


def _short(label: str) -> str:
    shown = label if len(label) <= 28 else f"{label[:27]}…"
    return shown.replace("$", r"\$").replace("_", " ", 1) if shown.startswith("_") else shown.replace("$", r"\$")
