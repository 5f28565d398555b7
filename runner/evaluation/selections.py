"""Write stretches of clips for annotation programs: Raven selection tables, Audacity label tracks."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from runner.core.files import write_atomic
from runner.core.printable import printable

_RAVEN = (
    *("Selection", "View", "Channel", "Begin Time (s)", "End Time (s)", "Low Freq (Hz)", "High Freq (Hz)"),
    *("Label", "Score", "Begin Path", "File Offset (s)"),
)


@dataclass(frozen=True)
class Selection:
    """A stretch of a clip.

    Attributes:
        clip: Its path, relative to the root of the data set.
        start_s: Where it begins in the file, seconds.
        end_s: Where it ends, seconds.
        label: Its text; may be empty.
        score: A number beside it; None for none.
    """

    clip: str
    start_s: float
    end_s: float
    label: str = ""
    score: float | None = None


def raven_table(selections: Iterable[Selection], root: str = "", high_hz: int = 8000) -> str:
    """Return a Raven selection table (tab-separated, Raven Pro 1.6's column names).

    Times are those within each file, which "Begin Path" and "File Offset (s)" name: open a table over several files in
    Raven as a *sound selection table*, which goes by these two columns.

    Args:
        selections: in the order of the table.
        root: put before the clips' paths.
        high_hz: the highest frequency of the model's signal.
    """
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    writer.writerow(_RAVEN)
    for number, selection in enumerate(selections, start=1):
        start, end = f"{selection.start_s:.3f}", f"{selection.end_s:.3f}"
        score = "" if selection.score is None else f"{selection.score:.4f}"
        path = str(PurePosixPath(root) / selection.clip) if root else selection.clip
        row = (number, "Spectrogram 1", 1, start, end, 0, high_hz, selection.label, score, path, start)
        writer.writerow(row)
    return text.getvalue()


def csv_table(selections: Iterable[Selection]) -> str:
    """Return comma-separated rows: score, clip, start_s, end_s, label."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("score", "clip", "start_s", "end_s", "label"))
    for item in selections:
        score = "" if item.score is None else f"{item.score:.6f}"
        writer.writerow((score, item.clip, f"{item.start_s:.3f}", f"{item.end_s:.3f}", item.label))
    return text.getvalue()


def text_table(selections: Iterable[Selection]) -> str:
    """Return a table for the terminal."""
    lines = [f"{'score':>9}  {'start':>10}  {'end':>10}  clip"]
    for item in selections:
        score = "" if item.score is None else f"{item.score:.4f}"
        clip = f"{item.clip}  ({item.label})" if item.label else item.clip
        lines.append(f"{score:>9}  {_clock(item.start_s):>10}  {_clock(item.end_s):>10}  {printable(clip)}")
    return "\n".join(lines)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(seconds, 60)
    return (
        f"{int(minutes):02d}:{rest:05.2f}"
        if minutes < 60
        else f"{int(minutes) // 60}:{int(minutes) % 60:02d}:{rest:05.2f}"
    )


def audacity_tracks(selections: Iterable[Selection]) -> Mapping[str, str]:
    """Return an Audacity label track (start, end, label; tab-separated) for each clip, in order of time."""
    tracks: dict[str, list[Selection]] = {}
    for selection in selections:
        tracks.setdefault(selection.clip, []).append(selection)
    return {clip: _track(sorted(own, key=lambda item: item.start_s)) for clip, own in tracks.items()}


def write_audacity(selections: Iterable[Selection], folder: Path) -> list[Path]:
    """Write each clip's label track to ``folder/CLIP.txt``; the paths written."""
    paths = []
    for clip, track in audacity_tracks(selections).items():
        path = folder / f"{clip.lstrip('/')}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, track)
        paths.append(path)
    return paths


def _track(selections: Sequence[Selection]) -> str:
    return "".join(f"{item.start_s:.6f}\t{item.end_s:.6f}\t{_text(item)}\n" for item in selections)


def _text(selection: Selection) -> str:
    score = "" if selection.score is None else f"{selection.score:.3f}"
    return " ".join(filter(None, (selection.label, score))).replace("\t", " ").replace("\n", " ")
