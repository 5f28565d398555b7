"""Near-duplicates: every pair above the threshold is in a group, and no other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from runner.evaluation import duplicates
from runner.evaluation.duplicates import ClipMeans, clip_means, find_duplicates
from runner.output.reader import EmbeddingReader
from tests.evaluation.test_search import write_run


def means_of(vectors: np.ndarray) -> ClipMeans:
    names = [f"{row:04d}.wav" for row in range(len(vectors))]
    return ClipMeans(names, np.ones(len(vectors), np.int64), vectors.astype(np.float32))


def components_of(vectors: np.ndarray, above: float) -> list[tuple[str, ...]]:
    """Find the connected components by their definition, from all pairs in float64."""
    rows = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    reached = rows @ rows.T >= above
    for _ in range(len(rows)):
        reached = (reached.astype(int) @ reached.astype(int)) > 0
    groups = {tuple(np.flatnonzero(row)) for row in reached}
    return sorted(tuple(f"{row:04d}.wav" for row in group) for group in groups if len(group) > 1)


@pytest.mark.parametrize("above", [0.9, 0.99, 0.999, -1.0])
@pytest.mark.parametrize("tile", [4, 2048])
def test_groups_are_those_of_all_pairs(above: float, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "_TILE", tile)
    random = np.random.default_rng(0)
    centers = random.standard_normal((25, 128))
    vectors = centers[random.integers(0, 25, 60)] + 0.25 * random.random((60, 1)) * random.standard_normal((60, 128))
    groups = find_duplicates(means_of(vectors), above)
    assert sorted(group.clips for group in groups) == components_of(vectors, above)
    assert [len(group.clips) for group in groups] == sorted((len(group.clips) for group in groups), reverse=True)
    assert all(above - 1e-6 <= group.least <= group.most <= 1.0 for group in groups)


@pytest.mark.parametrize("components", [1, 127])
def test_groups_do_not_depend_on_how_tight_the_bound_is(components: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "_COMPONENTS", components)
    monkeypatch.setattr(duplicates, "_TILE", 16)
    monkeypatch.setattr(duplicates, "_PAIRS", 5)  # groups are joined many times
    random = np.random.default_rng(4)
    vectors = 0.5 + np.repeat(random.standard_normal((20, 128)), 5, axis=0) / np.arange(1, 129)
    vectors += 0.01 * random.standard_normal(vectors.shape)
    groups = find_duplicates(means_of(vectors), 0.999)
    assert sorted(group.clips for group in groups) == components_of(vectors, 0.999)


def test_least_and_most_are_of_the_pairs_above_the_threshold() -> None:
    vectors = np.random.default_rng(6).standard_normal((1, 128)) + 0.1 * np.random.default_rng(7).random((30, 128))
    rows = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    scores = (rows @ rows.T)[np.triu_indices(30, 1)]
    above = float(np.median(scores))
    (group,) = find_duplicates(means_of(vectors), above)
    assert group.least == pytest.approx(scores[scores >= above].min(), abs=1e-6)
    assert group.most == pytest.approx(scores.max(), abs=1e-6)


def test_a_clip_of_nan_is_in_no_group() -> None:
    vectors = np.ones((4, 128))
    vectors[1] = np.nan
    (group,) = find_duplicates(means_of(vectors), 0.99)
    assert group.clips == ("0000.wav", "0002.wav", "0003.wav")
    assert find_duplicates(means_of(vectors[1:2]), 0.99) == []


def test_equal_clips_are_a_group_of_similarity_one() -> None:
    vectors = np.random.default_rng(1).standard_normal((5, 128))
    vectors[3] = 2 * vectors[0]
    (group,) = find_duplicates(means_of(vectors), 0.99)
    assert group.clips == ("0000.wav", "0003.wav")
    assert group.most == pytest.approx(1.0, abs=1e-6)


def test_clips_without_a_duplicate_are_in_no_group() -> None:
    assert find_duplicates(means_of(np.eye(6, 128)), 0.5) == []


def test_means_are_of_whole_clips_across_blocks_and_shards(tmp_path: Path) -> None:
    embeddings = np.random.default_rng(2).standard_normal((40, 128)).astype(np.float32)
    clips = [f"{'abcdefgh'[row // 5]}.wav" for row in range(40)]
    reader = EmbeddingReader(str(write_run(tmp_path / "run", embeddings, clips, shards=2, group=3)))
    means = clip_means(reader.blocks())
    assert means.clips == sorted(set(clips))
    assert means.examples.tolist() == [5] * 8
    np.testing.assert_allclose(means.means, embeddings.reshape(8, 5, 128).mean(axis=1), rtol=1e-5, atol=1e-6)
