"""The interactive page of a map: its points, and for clips in local files their audio and log-mels."""

from __future__ import annotations

import html
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from runner.core.files import write_atomic
from runner.core.layout import RunLayout
from runner.core.paths import is_url
from runner.dataset.clips import find_clips
from runner.dataset.packed.address import is_packed
from runner.reporting.log_mels import (
    SHEET_COLUMNS,
    SHEET_IMAGES,
    Example,
    LogMel,
    compute_log_mels,
    frequency_ticks,
    write_sheets,
)
from runner.reporting.pages import fill
from runner.vggish.constants import EXAMPLE_FRAMES, MEL_BANDS

if TYPE_CHECKING:
    from runner.config.schema import RunConfig
    from runner.dataset.clips import Clip

log = logging.getLogger(__name__)

SHEETS = "log_mel"
"""The folder of log-mels beside the page."""


@dataclass(frozen=True)
class MapPoints:
    """The points of a map.

    Attributes:
        positions: float64 [n, 2].
        axes: the names of the two axes.
        clips: the clip of each.
        starts: where each example begins in its clip's file, in seconds.
        labels: the label of each.
        colors: by label; others are ``other``.
        other: the color of all other labels.
    """

    positions: NDArray[np.float64]
    axes: tuple[str, str]
    clips: Sequence[str]
    starts: Sequence[float]
    labels: Sequence[str]
    colors: Mapping[str, str]
    other: str


def write_page(points: MapPoints, run_dir: Path, folder: Path, config: RunConfig) -> list[Path]:
    """Write ``embeddings.html`` and the sheets of log-mels that it shows; return the files written."""
    clips, notes = _local_clips(run_dir, points)
    shown, log_mels = _choose_log_mels(points, clips, config, notes)
    sheets = write_sheets(log_mels, folder / SHEETS) if log_mels else []
    image_of = {index: number for number, index in enumerate(shown)}
    names = list(dict.fromkeys(points.clips))
    number_of = {name: number for number, name in enumerate(names)}
    low, high = points.positions.min(axis=0), points.positions.max(axis=0)
    scaled = (points.positions - low) / np.where(high > low, high - low, 1.0)
    data: dict[str, Any] = {
        "points": [
            [round(float(x), 4), round(1 - float(y), 4), number_of[clip], round(start, 3), image_of.get(index, -1)]
            for index, ((x, y), clip, start) in enumerate(zip(scaled, points.clips, points.starts, strict=True))
        ],
        "labels": list(points.labels),
        "clips": [_describe_clip(name, clips.get(name)) for name in names],
        "colors": list(points.colors.items()),
        "other": points.other,
        "example_s": config.model.spec.window_s * config.frontend.speed,
        "speed": config.frontend.speed,
        "sheets": [f"{SHEETS}/{sheet.name}" for sheet in sheets],
        "image": {"columns": SHEET_COLUMNS, "sheet": SHEET_IMAGES, "width": EXAMPLE_FRAMES, "height": MEL_BANDS},
        "ticks": frequency_ticks(),
        "notes": notes,
    }
    inline = json.dumps(data).replace("</", "<\\/").replace("<!--", "<\\!--")
    x_axis, y_axis = map(html.escape, points.axes)
    page = folder / "embeddings.html"
    write_atomic(page, fill("embeddings.html", x_axis=x_axis, y_axis=y_axis, data=inline))
    return [page, *sheets]


def _local_clips(run_dir: Path, points: MapPoints) -> tuple[dict[str, Clip], list[str]]:
    """Return the clips that are local files, by name, and a note if that is not all of them."""
    clips = find_clips(RunLayout(run_dir).manifest, set(points.clips))
    packed = {name for name, clip in clips.items() if is_packed(clip.path)}
    remote = {name for name, clip in clips.items() if is_url(os.fsdecode(clip.path))} - packed
    places = ["in packed files"] * bool(packed) + ["in an object store"] * bool(remote)
    notes = [f"Clips {' or '.join(places)} are not played, and have no log-mels here."] if places else []
    return {name: clip for name, clip in clips.items() if name not in packed | remote}, notes


def _choose_log_mels(
    points: MapPoints, clips: Mapping[str, Clip], config: RunConfig, notes: list[str]
) -> tuple[list[int], list[LogMel]]:
    """Return the points with a log-mel, and the log-mels; add a note on those that failed."""
    local = [index for index, clip in enumerate(points.clips) if clip in clips]
    count = min(config.profile.log_mels, len(local))
    chosen = [local[number * len(local) // count] for number in range(count)]
    examples = [_example(clips[points.clips[index]], points.starts[index]) for index in chosen]
    log_mels, failures = compute_log_mels(examples, config.frontend)
    if failures:
        reasons = ", ".join(f"{count} {reason}" for reason, count in failures.most_common())
        notes.append(f"{failures.total()} of {len(chosen)} log-mels are left out ({reasons}).")
        log.info("map of the embeddings: %s", notes[-1])
    pairs = [(index, log_mel) for index, log_mel in zip(chosen, log_mels, strict=True) if log_mel is not None]
    return [index for index, _ in pairs], [log_mel for _, log_mel in pairs]


def _example(clip: Clip, start_s: float) -> Example:
    return Example(clip.path, start_s, clip.start or 0.0, clip.end)


def _describe_clip(name: str, clip: Clip | None) -> tuple[str, str | None, float | None, float | None]:
    """Return the clip's name, its file's URL (None: it is not local), and its start and end in the file."""
    return (name, None, None, None) if clip is None else (name, _url(clip.path), clip.start, clip.end)


def _url(path: bytes) -> str:
    return Path(os.fsdecode(path)).as_uri()
