"""Distances as a table for a terminal, as CSV and as JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

from runner.core.files import write_atomic
from runner.core.redact import without_credentials
from runner.evaluation.fad import ClipScore, FadOptions, Reference, Score

_PAIRED = "fad_paired_clips"

SHOWN_CLIPS = 3
"""Clips that the table shows of those nearest to the reference, and of those farthest from it."""

_TITLES = {
    "fad": "FAD",
    "fad_low": "95 % from",
    "fad_high": "to",
    "fad_infinity": "FAD∞",
    "fad_infinity_slope": "slope",
    "fad_infinity_r2": "R²",
    "kad": "KAD×100",
}


def as_table(reference: Reference, scores: Sequence[Score], options: FadOptions) -> str:
    """A line a run, then its clips nearest and farthest, and what is to be said of it."""
    metrics = [score.metrics() for score in scores]
    columns = [name for name in _TITLES if any(name in each for each in metrics)]
    rows = [["examples", *(_TITLES[name] for name in columns), "run"]]
    for score, each in zip(scores, metrics, strict=True):
        cells = [f"{each[name]:.6g}" if name in each else "-" for name in columns]
        rows.append([_count(score.examples), *cells, without_credentials(score.name)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(columns) + 1)]
    lines = [f"reference  {without_credentials(reference.embeddings.name)}, {_about(reference)}", ""]
    lines += [
        "  ".join([*(cell.rjust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]) for row in rows
    ]
    for score in scores:
        lines += _clip_lines(score)
        if score.paired:
            name = without_credentials(score.name)
            lines.append(f"{name}: interval paired over {score.paired:,} clips, the same as the reference's")
        lines += [f"note: {note}" for note in score.notes]
    return "\n".join(lines)


def _clip_lines(score: Score) -> list[str]:
    if not score.clips:
        return []
    left_out = f" ({score.left_out:,} with a single example have none)" if score.left_out else ""
    lines = ["", f"{len(score.clips):,} clips of {score.name}{left_out}, nearest and farthest"]
    near, far = score.clips[:SHOWN_CLIPS], score.clips[SHOWN_CLIPS:][-SHOWN_CLIPS:]
    return lines + [f"  {clip.fad:>10.5g}  {clip.examples:>6,} examples  {clip.clip}" for clip in (*near, *far)]


def _about(reference: Reference) -> str:
    summary = reference.embeddings.summary
    weights = summary.about.get("weights.checksum")
    return f"{_count(summary.n)} examples" + (f", weights {weights[:12]}" if weights else "")


def _count(examples: int | None) -> str:
    return "unknown" if examples is None else f"{examples:,}"


def as_csv(reference: Reference, scores: Sequence[Score], options: FadOptions) -> str:
    """A row a run, all columns."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run", "reference", "reference_examples", "examples", *_TITLES, _PAIRED, "notes"])
    base = reference.embeddings
    names = without_credentials(base.name), base.summary.n
    for score in scores:
        metrics = score.metrics()
        values = (metrics.get(name) for name in (*_TITLES, _PAIRED))
        writer.writerow([without_credentials(score.name), *names, score.examples, *values, "; ".join(score.notes)])
    return text.getvalue().rstrip("\n")


def as_json(reference: Reference, scores: Sequence[Score], options: FadOptions) -> str:
    """Everything: what was asked, the reference, and of each run its metrics, points of the line and clips."""
    base = reference.embeddings
    return json.dumps(
        {
            "reference": {
                "name": without_credentials(base.name),
                "examples": base.summary.n,
                "about": dict(base.summary.about),
            },
            "infinity": options.limit,
            "kad_bandwidth": options.kad,
            "seed": options.seed,
            "runs": [_score(score) for score in scores],
        },
        indent=2,
    )


def _score(score: Score) -> dict[str, object]:
    metrics: dict[str, object] = {"name": without_credentials(score.name), "examples": score.examples}
    metrics |= {**score.metrics(), "notes": list(score.notes)}
    if score.limit:
        metrics["fad_infinity_points"] = [list(point) for point in score.limit.points]
    if score.clips:
        metrics["clips"] = [clip._asdict() for clip in score.clips]
    return metrics


def write_clips(path: Path, scores: Sequence[Score]) -> None:
    """Write the clips of all runs, nearest to the reference first, to a CSV file."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run", *ClipScore._fields])
    for score in scores:
        writer.writerows([without_credentials(score.name), *clip] for clip in score.clips)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, text.getvalue())
