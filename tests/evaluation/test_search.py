"""Search: exact results, whatever the blocks, limits and similarity."""

from __future__ import annotations

from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from runner.core.errors import RunnerError
from runner.evaluation.query import query_from_clip
from runner.evaluation.search import Similarity, search
from runner.output import reader
from runner.output.parquet import embedding_schema
from runner.output.reader import EmbeddingReader
from runner.vggish.spec import VGGISH

COLUMNS = ("clip", "start_s", "label")


def write_run(folder: Path, embeddings: np.ndarray, clips: list[str], *, shards: int = 1, group: int = 7) -> Path:
    """Write the Parquet files of a run with these examples, 0.96 s apart within each clip."""
    starts = [0.96 * clips[:row].count(clip) for row, clip in enumerate(clips)]
    table = pa.table(
        {
            "clip": clips,
            "example": [round(start / 0.96) for start in starts],
            "start_s": starts,
            "padded": [False] * len(clips),
            "label": [clip[0] for clip in clips],
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(embeddings.astype(np.float32).ravel()), 128),
        },
        schema=embedding_schema(VGGISH.outputs),
    )
    (folder / "embeddings").mkdir(parents=True)
    size = -(-len(clips) // shards)
    for shard in range(shards):
        part = table.slice(shard * size, size)
        pq.write_table(part, folder / "embeddings" / f"part-{shard:05d}.parquet", row_group_size=group)
    return folder


@pytest.fixture
def examples() -> np.ndarray:
    return np.random.default_rng(3).standard_normal((40, 128)).astype(np.float32)


@pytest.fixture
def clips() -> list[str]:
    return [f"{'abcdefgh'[row // 5]}.wav" for row in range(40)]


@pytest.fixture
def run(tmp_path: Path, examples: np.ndarray, clips: list[str]) -> EmbeddingReader:
    return EmbeddingReader(str(write_run(tmp_path / "run", examples, clips, shards=3)))


def scores(examples: np.ndarray, query: np.ndarray, similarity: Similarity) -> np.ndarray:
    """Compute all scores in float64 by the definitions."""
    rows, query = examples.astype(np.float64), query.astype(np.float64)
    if similarity is Similarity.EUCLIDEAN:
        return -np.linalg.norm(rows[:, None] - query, axis=2).min(axis=1)
    products = rows @ query.T
    if similarity is Similarity.COSINE:
        products /= np.linalg.norm(rows, axis=1)[:, None] * np.linalg.norm(query, axis=1)
    return products.max(axis=1)


@pytest.mark.parametrize("similarity", list(Similarity))
@pytest.mark.parametrize("rows", [1, 3])
def test_a_search_returns_the_best_of_all_examples(
    run: EmbeddingReader, examples: np.ndarray, clips: list[str], similarity: Similarity, rows: int
) -> None:
    query = np.random.default_rng(5).standard_normal((rows, 128)).astype(np.float32)
    expected = scores(examples, query, similarity)
    best = np.argsort(-expected)[:6]
    matches = search(query, run, 6, similarity)
    assert [(match.clip, round(match.start_s / 0.96)) for match in matches] == [(clips[row], row % 5) for row in best]
    np.testing.assert_allclose([match.score for match in matches], expected[best], rtol=1e-5)
    assert all(match.label == match.clip[0] for match in matches)


@pytest.mark.parametrize("similarity", list(Similarity))
def test_scores_that_float32_cannot_tell_apart_are_in_their_order(tmp_path: Path, similarity: Similarity) -> None:
    rng = np.random.default_rng(7)
    query = rng.standard_normal((1, 128)).astype(np.float32)
    near = (query + 1e-5 * rng.standard_normal((300, 128))).astype(np.float32)
    expected = scores(near, query, similarity)
    best = np.argsort(-expected, kind="stable")[:40]
    close = EmbeddingReader(str(write_run(tmp_path / "run", near, [f"{row:03d}.wav" for row in range(300)], shards=2)))
    matches = search(query, close, 40, similarity)
    assert [match.clip for match in matches] == [f"{row:03d}.wav" for row in best]
    np.testing.assert_allclose([match.score for match in matches], expected[best], rtol=1e-13)


@pytest.mark.parametrize("similarity", list(Similarity))
def test_equal_examples_come_in_the_order_of_the_data_set(tmp_path: Path, similarity: Similarity) -> None:
    rng = np.random.default_rng(8)
    rows = np.repeat(rng.standard_normal((3, 128)), 30, axis=0)[rng.permutation(90)].astype(np.float32)
    equal = EmbeddingReader(str(write_run(tmp_path / "run", rows, [f"{row:03d}.wav" for row in range(90)], shards=3)))
    query = rows[:1] + rng.standard_normal((1, 128)).astype(np.float32)
    matches = search(query, equal, 25, similarity)
    same = [f"{row:03d}.wav" for row in np.flatnonzero((rows == rows[0]).all(axis=1))]
    assert [match.clip for match in matches] == same[:25]
    assert len({match.score for match in matches}) == 1


def test_a_limit_a_clip_leaves_room_for_other_clips(
    run: EmbeddingReader, examples: np.ndarray, clips: list[str]
) -> None:
    query = examples[10:15].mean(axis=0, keepdims=True)
    expected = scores(examples, query, Similarity.COSINE)
    best_of_each = sorted(set(clips), key=lambda clip: -max(expected[row] for row in range(40) if clips[row] == clip))
    matches = search(query, run, 4, per_clip=1)
    assert [match.clip for match in matches] == best_of_each[:4]


def test_more_matches_than_examples_are_all_examples(run: EmbeddingReader, examples: np.ndarray) -> None:
    assert len(search(examples[:1], run, 1000)) == 40


def test_examples_of_nan_or_zeros_are_never_the_best(tmp_path: Path, examples: np.ndarray, clips: list[str]) -> None:
    examples[3], examples[7] = np.nan, 0.0
    broken = EmbeddingReader(str(write_run(tmp_path / "broken", examples, clips)))
    matches = search(examples[:1], broken, 40)
    assert len(matches) == 39
    assert matches[0].score == pytest.approx(1.0)
    assert [match.score for match in matches if (match.clip, match.start_s) == ("b.wav", pytest.approx(1.92))] == [0.0]


def test_a_run_at_a_url_is_searched_as_its_folder_is(tmp_path: Path, examples: np.ndarray, clips: list[str]) -> None:
    store = fsspec.filesystem("memory")
    folder = write_run(tmp_path / "run", examples, clips, shards=3)
    store.put(str(folder), "/searched/run", recursive=True)
    try:
        url = EmbeddingReader("memory://searched/run")
        own = query_from_clip(url, "c.wav", None, None)
        np.testing.assert_array_equal(own, examples[10:15])
        assert search(own, url, 7) == search(own, EmbeddingReader(str(folder)), 7)
    finally:
        store.rm("/searched", recursive=True)


def test_a_clip_of_the_run_is_a_query(run: EmbeddingReader, examples: np.ndarray) -> None:
    np.testing.assert_array_equal(query_from_clip(run, "c.wav", None, None), examples[10:15])
    np.testing.assert_array_equal(query_from_clip(run, "c.wav", 0.96, 2.0), examples[11:13])


def test_a_query_that_is_not_in_the_run_is_an_error(run: EmbeddingReader) -> None:
    with pytest.raises(RunnerError, match=r"has no clip z\.wav"):
        query_from_clip(run, "z.wav", None, None)
    with pytest.raises(RunnerError, match=r"no example of a\.wav starts from 99"):
        query_from_clip(run, "a.wav", 99, None)


def test_a_reader_counts_the_examples_of_all_shards(run: EmbeddingReader) -> None:
    assert len(run) == 40
    assert [block.first for block in run.blocks(())] == [0, 7, 14, 21, 28, 35]


def test_a_large_row_group_comes_in_several_blocks(
    run: EmbeddingReader, examples: np.ndarray, clips: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "_BLOCK_ROWS", 4)
    blocks = list(run.blocks(COLUMNS))
    assert [block.first for block in blocks] == [0, 4, 7, 11, 14, 18, 21, 25, 28, 32, 35, 39]
    np.testing.assert_array_equal(np.concatenate([block.embeddings for block in blocks]), examples)
    assert [clip for block in blocks for clip in block.columns["clip"].to_pylist()] == clips


def test_a_folder_without_embeddings_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunnerError, match="has no Parquet embeddings"):
        EmbeddingReader(str(tmp_path))


def test_a_broken_shard_is_an_error_that_names_it(tmp_path: Path, examples: np.ndarray, clips: list[str]) -> None:
    folder = write_run(tmp_path / "cut", examples, clips)
    shard = folder / "embeddings" / "part-00000.parquet"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(RunnerError, match=r"part-00000\.parquet cannot be read as Parquet"):
        EmbeddingReader(str(folder))
