"""Runs to compare, made without a run: what one leaves of embeddings."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from runner.config.groups.frontend import FrontendConfig
from runner.statistics.files import to_npz
from runner.statistics.moments import EmbeddingStatistics
from tests.results import to_json

ABOUT = {"model": "VGGish", "weights.checksum": "ab" * 32, "weights.random": "false", "frontend.hop_s": "0.96"}

CLIP_EXAMPLES = (10, 1, 7, 200, 10, 10, 10, 52)
"""Examples of a run's clips: the second one has no covariance of its own."""


def embeddings(seed: int, scale: float = 1.0, shift: float = 0.0) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((sum(CLIP_EXAMPLES), 128)) * scale + shift
    return rows.astype(np.float32)


def make_run(
    folder: Path,
    rows: np.ndarray,
    about: Mapping[str, str] = ABOUT,
    *,
    clip: str = "clip",
    digest: str | None = None,
    statistics: bool = True,
    shards: int = 3,
    counts: Sequence[int] = CLIP_EXAMPLES,
) -> Path:
    """A run's folder with these embeddings; a clip may go on in the next row group, never in the next shard.

    ``clip`` begins the names of its clips; ``digest`` is its data set's; ``counts`` are their examples.
    """
    (folder / "embeddings").mkdir(parents=True)
    numbers = [number for number, examples in enumerate(counts) for _ in range(examples)]
    clips = np.array([f"{clip}{number}.wav" for number in numbers])
    bounds = np.searchsorted(numbers, np.linspace(0, len(counts), shards + 1).astype(int))
    for shard, (first, end) in enumerate(itertools.pairwise(bounds)):
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(rows[first:end].reshape(-1)), 128)
        table = pa.table({"clip": clips[first:end], "embedding": vectors})
        pq.write_table(table, folder / "embeddings" / f"part-{shard:05d}.parquet", row_group_size=64)
    if statistics:
        (folder / "stats.npz").write_bytes(to_npz(EmbeddingStatistics.of(rows), about))
    frontend = vars(FrontendConfig.from_metadata(about))
    weights = {"checksum": about["weights.checksum"], "source": "file", "is_random": False}
    result: dict[str, Any] = {"status": "finished", "config": {"frontend": frontend}, "weights": weights}
    if digest:
        result["dataset"] = {"digest": digest}
    (folder / "result.json").write_text(json.dumps(to_json(result)))
    return folder
