"""A run that converters read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from runner.core.layout import RunLayout
from runner.output.reader import EmbeddingReader
from runner.output.state.plan_file import StoredPlan, write_plan
from tests.evaluation.test_search import write_run

CLIPS = [f"{'abcdefgh'[row // 5]}/2023011{row // 5}_053000.wav" for row in range(40)]


@pytest.fixture
def embeddings() -> np.ndarray:
    return np.random.default_rng(7).standard_normal((40, 128)).astype(np.float32)


@pytest.fixture
def run(tmp_path: Path, embeddings: np.ndarray) -> EmbeddingReader:
    """Eight clips of five examples each, labeled by their folders, in three shards."""
    folder = write_run(tmp_path / "run", embeddings, CLIPS, shards=3)
    RunLayout(folder).state.mkdir()
    write_plan(folder, StoredPlan("run", {"dataset.root": "/data/clips"}, [], []))
    return EmbeddingReader(str(folder))
