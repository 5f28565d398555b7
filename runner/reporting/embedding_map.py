"""The map of a run's embeddings: two dimensions, coloured by label; as a PNG and as a page to click in."""

from __future__ import annotations

import html
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from runner.core.files import write_atomic
from runner.core.layout import EMBEDDINGS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_POINTS = 3000

_SHARDS = 40

_LABELS = 19
"""More labels than this, by number of examples, share the last colour."""

_OTHERS = "other labels"

_COLORS = (
    *("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#17becf", "#bcbd22", "#393b79"),
    *("#637939", "#8c6d31", "#843c39", "#7b4173", "#3182bd", "#e6550d", "#31a354", "#756bb1", "#636363"),
)

_GREY = "#b5b9c0"


def draw_map(run_dir: Path, folder: Path, kind: str, root: str) -> list[Path]:
    """Draw the map of a run's Parquet embeddings; nothing where it has none, or fewer than three.

    Args:
        run_dir: the run's folder.
        folder: where the map goes.
        kind: ``pca``, or ``umap`` (the extra of that name).
        root: the data set's, for links to its files.

    Returns:
        The files written.
    """
    table = sample(run_dir / EMBEDDINGS)
    if table is None or table.num_rows < 3:
        return []
    vectors = np.stack(table["embedding"].combine_chunks().flatten().to_numpy().reshape(-1, 128)).astype(np.float64)
    if kind == "umap":
        points, axes = umap(vectors), ("UMAP 1", "UMAP 2")
    else:
        points, shares = pca(vectors)
        axes = (f"PC 1 ({shares[0]:.0%} of the variance)", f"PC 2 ({shares[1]:.0%})")
    labels = [label or "(no label)" for label in table["label"].to_pylist()]
    shown = [label for label, _ in Counter(labels).most_common(_LABELS)]
    colors = {label: _COLORS[place] for place, label in enumerate(shown)}
    from runner.reporting.figures import save

    picture = save(_picture(points, labels, colors, axes, kind), folder / "projection.png")
    page = folder / "embeddings.html"
    clips, starts = table["clip"].to_pylist(), table["start_s"].to_pylist()
    write_atomic(page, _page(points, labels, colors, axes, list(zip(clips, starts, strict=True)), root))
    return [picture, page]


def sample(folder: Path, most: int = MOST_POINTS) -> pa.Table | None:
    """Rows of the embeddings below ``folder``, evenly from at most 40 of its shards; None if there is none."""
    shards = sorted(folder.glob("part-*.parquet"))
    if not shards:
        return None
    shards = shards[:: -(-len(shards) // _SHARDS)]
    columns = ["clip", "start_s", "label", "embedding"]
    tables = []
    for shard in shards:
        with pq.ParquetFile(shard) as file:
            rows = file.metadata.num_rows
            every = max(1, rows * len(shards) // most)
            wanted, before = np.arange(0, rows, every)[: max(1, most // len(shards))], 0
            for number in range(file.num_row_groups):  # a shard is not read whole: there may be gigabytes of it
                end = before + file.metadata.row_group(number).num_rows
                own = wanted[(wanted >= before) & (wanted < end)] - before
                if len(own):
                    tables.append(file.read_row_group(number, columns=columns).take(own))
                before = end
    return pa.concat_tables(table.replace_schema_metadata(None) for table in tables) if tables else None


def pca(vectors: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The two first principal components, float64 [n, 2], and their shares of the variance."""
    centred = vectors - vectors.mean(axis=0)
    left, scales, _ = np.linalg.svd(centred, full_matrices=False)
    variance = scales**2
    return left[:, :2] * scales[:2], variance[:2] / max(variance.sum(), 1e-300)


def umap(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """UMAP's two dimensions, float64 [n, 2]; raises ImportError where the extra is not installed."""
    try:
        from umap import UMAP
    except ImportError as error:
        raise ImportError("profile.projection=umap needs the extra: pip install 'vggish-runner[umap]'") from error
    return np.asarray(UMAP(random_state=0).fit_transform(vectors), np.float64)


def _picture(
    points: NDArray[np.float64], labels: list[str], colors: dict[str, str], axes_names: tuple[str, str], kind: str
) -> Figure:
    from runner.reporting.figures import new_figure

    figure, axes = new_figure(height=5.0)
    names = np.array([label if label in colors else _OTHERS for label in labels])
    for label in [*([_OTHERS] if _OTHERS in names else []), *colors]:
        own = points[names == label]
        axes.scatter(own[:, 0], own[:, 1], s=9, color=colors.get(label, _GREY), label=_short(label), linewidths=0)
    axes.set_xlabel(axes_names[0])
    axes.set_ylabel(axes_names[1])
    if len(set(labels)) > 1:
        axes.legend(fontsize=7, frameon=False, markerscale=2, loc="center left", bbox_to_anchor=(1.0, 0.5))
    axes.set_title(f"{len(points):,} embeddings ({kind.upper()})", fontsize=10, loc="left")
    return figure


def _short(label: str) -> str:
    shown = label if len(label) <= 28 else f"{label[:27]}…"
    return shown.replace("$", r"\$").replace("_", " ", 1) if shown.startswith("_") else shown.replace("$", r"\$")


def _page(
    points: NDArray[np.float64],
    labels: list[str],
    colors: dict[str, str],
    axes: tuple[str, str],
    clips: list[tuple[str, float]],
    root: str,
) -> str:
    low, high = points.min(axis=0), points.max(axis=0)
    scaled = (points - low) / np.where(high > low, high - low, 1.0)
    data: dict[str, Any] = {
        "points": [[round(float(x), 4), round(1 - float(y), 4)] for x, y in scaled],
        "labels": labels,
        "clips": [[clip, round(start, 3)] for clip, start in clips],
        "colors": colors,
        "other": _GREY,
        "root": root,
    }
    inline = json.dumps(data).replace("</", "<\\/").replace("<!--", "<\\!--")
    return _TEMPLATE.replace("@X@", html.escape(axes[0])).replace("@Y@", html.escape(axes[1])).replace("@DATA@", inline)


_TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Embeddings</title>
<meta name="viewport" content="width=device-width">
<style>
 body { font: 14px system-ui, sans-serif; margin: 1rem; color: #222; }
 #plot { width: min(72vw, 900px); aspect-ratio: 1.25; border: 1px solid #dde; background: #fff; display: block; }
 main { display: flex; gap: 1rem; flex-wrap: wrap; }
 circle { cursor: pointer; } circle.chosen { stroke: #000; stroke-width: 0.004; }
 #legend button { display: block; border: 0; background: none; cursor: pointer; font: inherit; padding: 1px 0; }
 #legend button.off { opacity: 0.3; }
 #legend i { display: inline-block; width: 0.8em; height: 0.8em; margin-right: 0.4em; }
 #chosen { min-height: 3em; }
</style></head><body>
<p id="chosen">Click a point to see its clip; click a label to hide it.</p>
<main><div><svg id="plot" viewBox="-0.03 -0.03 1.31 1.06" preserveAspectRatio="none"></svg><p>@X@ → · @Y@ ↑</p></div>
<div id="legend"></div></main>
<script>
const data = @DATA@;
const svg = document.getElementById("plot"), shown = document.getElementById("chosen");
const legend = document.getElementById("legend"), circles = [];
const SVG = "http://www.w3.org/2000/svg";
data.points.forEach(([x, y], n) => {
  const circle = document.createElementNS(SVG, "ellipse");
  circle.setAttribute("cx", 1.25 * x); circle.setAttribute("cy", y);
  circle.setAttribute("rx", 0.0055); circle.setAttribute("ry", 0.0055);
  circle.setAttribute("fill", data.colors[data.labels[n]] || data.other);
  const title = document.createElementNS(SVG, "title");
  title.textContent = data.clips[n][0] + " (" + data.labels[n] + ")";
  circle.append(title);
  circle.addEventListener("click", () => choose(n));
  svg.append(circle); circles.push(circle);
});
function choose(n) {
  circles.forEach((each) => each.removeAttribute("stroke"));
  circles[n].setAttribute("stroke", "#000"); circles[n].setAttribute("stroke-width", "0.004");
  const [clip, start] = data.clips[n];
  shown.textContent = "";
  const name = document.createElement("strong"); name.textContent = clip;
  shown.append(name, ", from " + start + " s, label " + data.labels[n]);
  if (data.root && location.protocol === "file:") {
    const link = document.createElement("a");
    link.href = "file://" + (data.root + "/" + clip).split("/").map(encodeURIComponent).join("/");
    link.textContent = "open"; shown.append(" · ", link);
  }
}
const counts = new Map();
data.labels.forEach((label) => counts.set(label, (counts.get(label) || 0) + 1));
[...counts].sort((a, b) => b[1] - a[1]).forEach(([label, count]) => {
  const button = document.createElement("button"), swatch = document.createElement("i");
  swatch.style.background = data.colors[label] || data.other;
  button.append(swatch, label + " (" + count + ")");
  button.addEventListener("click", () => {
    const off = button.classList.toggle("off");
    data.labels.forEach((each, n) => { if (each === label) circles[n].style.display = off ? "none" : ""; });
  });
  legend.append(button);
});
</script></body></html>
"""
