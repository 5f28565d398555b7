"""A shard's statistics: the same bits however embeddings came, kept with its rows, added up over a run."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from runner.output.rows import CLIP_SCHEMA, ClipRow, clip_table
from runner.output.shard_statistics import RunStatistics, read_clip_rows, statistics_of, write_clip_rows
from runner.statistics.files import from_npz
from runner.statistics.moments import EmbeddingStatistics
from tests.writers import vggish_info

ROWS = np.random.default_rng(7).standard_normal((6000, 128)).astype(np.float32)


def clip(embeddings: object, examples: int) -> ClipRow:
    return ClipRow("a", "embedded", None, None, examples, 1.0, 16_000, 1, False, None, 0.0, embeddings)  # type: ignore[arg-type]


def test_they_are_the_same_bits_however_embeddings_come() -> None:
    whole = statistics_of([clip(ROWS, 6000)], vggish_info()).to_vector()
    parts = tuple(np.split(ROWS[10:], [1, 800, 4090, 5000]))
    np.testing.assert_array_equal(
        statistics_of([clip(ROWS[:10], 10), clip(parts, 5990)], vggish_info()).to_vector(), whole
    )
    np.testing.assert_allclose(whole, EmbeddingStatistics.of(ROWS).to_vector(), rtol=1e-9, atol=1e-9)
    assert statistics_of([clip((), 0)], vggish_info()).n == 0


def test_they_come_back_from_a_shards_rows_of_the_clips_table(tmp_path: Path) -> None:
    statistics, clips = EmbeddingStatistics.of(ROWS), clip_table([clip(ROWS, 6000)])
    write_clip_rows(tmp_path / "part.parquet", clips, statistics)
    table, found = read_clip_rows(tmp_path / "part.parquet")
    assert table.equals(clips)
    assert found is not None
    np.testing.assert_array_equal(found.to_vector(), statistics.to_vector())
    assert (tmp_path / "part.parquet").stat().st_size < 100_000


def test_rows_of_an_earlier_version_have_none(tmp_path: Path) -> None:
    pq.write_table(clip_table([clip(ROWS, 6000)]), tmp_path / "part.parquet")
    assert read_clip_rows(tmp_path / "part.parquet")[1] is None


def test_a_run_is_the_sum_of_its_shards(tmp_path: Path) -> None:
    run = RunStatistics(CLIP_SCHEMA.with_metadata({"vggish_runner.hop_s": "0.96", "other": ""}))
    for first, end in ((0, 100), (100, 100), (100, 101), (101, 6000)):
        run.add(EmbeddingStatistics.of(ROWS[first:end]))
    run.write(tmp_path)
    summary = from_npz("stats.npz", (tmp_path / "stats.npz").read_bytes())
    assert (summary.n, summary.about) == (6000, {"hop_s": "0.96"})
    np.testing.assert_allclose(summary.covariance, np.cov(ROWS.astype(float), rowvar=False), atol=1e-12)


def test_a_shard_of_an_earlier_version_is_read_from_its_parquet_file(tmp_path: Path) -> None:
    (tmp_path / "embeddings").mkdir()
    path = tmp_path / "embeddings" / "part-00000.parquet"
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(ROWS.reshape(-1)), 128)
    pq.write_table(pa.table({"embedding": vectors}), path)
    run = RunStatistics(CLIP_SCHEMA)
    run.add(None, [tmp_path / "npz" / "x.json", path])
    run.write(tmp_path)
    assert from_npz("stats.npz", (tmp_path / "stats.npz").read_bytes()).n == 6000


def test_without_a_shards_statistics_the_run_has_none_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "stats.npz").write_bytes(b"of an attempt before")
    run = RunStatistics(CLIP_SCHEMA)
    run.add(None)
    with caplog.at_level(logging.WARNING):
        run.write(tmp_path)
    assert not (tmp_path / "stats.npz").exists()
    assert "1 shards are of an earlier version" in caplog.text
