"""Runs' folders with made-up embeddings, as the runner's own writers make them; and labeled data without files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from runner.evaluation.sample import Sample
from runner.output.npz import NpzFiles
from runner.output.parquet import ParquetShards
from runner.output.rows import ClipRow
from tests.writers import vggish_info


def clip_row(clip: str, label: str | None, embeddings: np.ndarray, start_s: float = 0.0) -> ClipRow:
    """An embedded clip: its windows start at ``start_s`` and every 0.96 s after it."""
    count = len(embeddings)
    rows = embeddings.astype(np.float32)
    return ClipRow(clip, "embedded", None, None, count, 0.96 * count, 16_000, 1, False, label, start_s, rows)


def write_run(folder: Path, rows: Sequence[ClipRow], shard_clips: int = 3, npz: bool = False) -> Path:
    """Write the embeddings of a run in shards of ``shard_clips`` clips."""
    shards = NpzFiles(folder, vggish_info()) if npz else ParquetShards(folder, vggish_info(), "zstd")
    for shard in range(-(-len(rows) // shard_clips)):
        shards.write(shard, rows[shard * shard_clips : (shard + 1) * shard_clips])
    return folder


def labeled_clips(
    labels: int = 3, recordings: int = 10, windows: int = 2, distance: float = 2.0, seed: int = 0
) -> list[ClipRow]:
    """Clips of ``labels`` labels, around a mean each; recordings differ, and windows of one are alike."""
    rng = np.random.default_rng(seed)
    means = distance * rng.standard_normal((labels, 128))
    return [
        clip_row(
            f"{label}/{recording:02d}.wav",
            f"label {label}",
            means[label] + 3 * rng.standard_normal(128) + 0.1 * rng.standard_normal((windows, 128)),
        )
        for recording in range(recordings)
        for label in range(labels)
    ]


def sample_of(
    embeddings: np.ndarray,
    labels: Sequence[tuple[str, ...]],
    groups: Sequence[str],
    folds: Sequence[str | None] | None = None,
) -> Sample:
    """A sample of clips with these labels."""
    count = len(labels)
    clips = [f"{number:05d}.wav" for number in range(count)]
    embeddings = np.asarray(embeddings, np.float32)
    return Sample(clips, [0.0] * count, list(groups), list(folds or [None] * count), list(labels), embeddings,
                  "clip", count, 0)  # fmt: skip
