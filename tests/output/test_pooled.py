"""Pooled embeddings against loops written from their definition."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.config.schema import OutputConfig
from runner.output.formats import make_formats
from runner.output.pooled import PooledShards, pooled_schema
from runner.output.rows import ClipRow
from runner.output.spill import Embeddings
from tests.writers import vggish_info


def clip(name: str, embeddings: Embeddings, examples: int, start_s: float = 0.0, label: str | None = "owl") -> ClipRow:
    status = "embedded" if examples else "skipped"
    return ClipRow(name, status, None, None, examples, 1.0, 16_000, 1, False, label, start_s, embeddings)


def noise(examples: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0.3, 0.1, (examples, 128)).astype(np.float32)


def write(folder: Path, rows: Sequence[ClipRow], hop_s: float = 0.96, pools_s: Sequence[float] = (4.8,)) -> Path:
    (path,) = PooledShards(folder, vggish_info({"model": "VGGish"}, hop_s), pools_s, "zstd").write(0, rows)
    return path


def defined(embeddings: np.ndarray, hop_s: float, pool_s: float | None) -> list[tuple[float, np.ndarray]]:
    """The start and the examples of each window, in decimal arithmetic."""
    if pool_s is None:
        return [(0.0, embeddings)]
    pool, windows = Decimal(str(pool_s)), dict[int, list[np.ndarray]]()
    for number, embedding in enumerate(embeddings):
        windows.setdefault(int(number * Decimal(str(hop_s)) // pool), []).append(embedding)
    return [(float(window * pool), np.array(rows)) for window, rows in windows.items()]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("hop_s", "examples", "pools_s"),
    [
        (0.96, 700, (4.8, 59.52, 299.52)),  # multiples of the hop, whose products are not exact in binary
        (0.96, 700, (0.96, 5.0, 1000.0)),
        (
            0.1,
            9000,
            (0.25, 409.6, 409.7, 600.0),
        ),  # windows that end with a block of 4,096 examples, and that span blocks
        (0.01, 4096, (40.96,)),
        (0.096, 1, (0.48,)),
    ],
)
def test_a_window_has_the_examples_that_start_in_it(
    tmp_path: Path, hop_s: float, examples: int, pools_s: tuple[float, ...]
) -> None:
    embeddings = noise(examples)
    rows = pq.read_table(write(tmp_path, [clip("a.wav", embeddings, examples, 1.5)], hop_s, pools_s)).to_pylist()
    expected = [
        (pool_s, start_s, own) for pool_s in (*pools_s, None) for start_s, own in defined(embeddings, hop_s, pool_s)
    ]
    assert [(row["pool_s"], row["n"]) for row in rows] == [(pool_s, len(own)) for pool_s, _, own in expected]
    assert {(row["clip"], row["label"]) for row in rows} == {("a.wav", "owl")}
    for name, values, tolerance in (
        ("start_s", [1.5 + start_s for _, start_s, _ in expected], {"rtol": 0, "atol": 1e-9}),
        ("mean", [own.mean(axis=0, dtype=np.float64) for _, _, own in expected], {"rtol": 1e-7}),
        ("std", [own.std(axis=0, dtype=np.float64) for _, _, own in expected], {"rtol": 1e-6, "atol": 1e-9}),
    ):
        np.testing.assert_allclose([row[name] for row in rows], values, **tolerance)


@pytest.mark.slow
@settings(deadline=None, max_examples=30)
@given(cuts=st.lists(st.integers(1, 8999), max_size=6), pool_s=st.sampled_from((0.96, 7.0, 5000.0)))
def test_the_bits_do_not_depend_on_how_a_clip_came(
    tmp_path_factory: pytest.TempPathFactory, whole_file: Callable[[float], bytes], cuts: list[int], pool_s: float
) -> None:
    chunks = tuple(np.split(noise(9000), sorted(cuts)))
    path = write(tmp_path_factory.mktemp("run"), [clip("a.wav", chunks, 9000)], pools_s=[pool_s])
    assert path.read_bytes() == whole_file(pool_s)


@pytest.fixture(scope="module")
def whole_file(tmp_path_factory: pytest.TempPathFactory) -> Callable[[float], bytes]:
    """Returns the file of a clip that came at once, by the length of its windows."""

    @functools.cache
    def written(pool_s: float) -> bytes:
        folder = tmp_path_factory.mktemp("whole")
        return write(folder, [clip("a.wav", noise(9000), 9000)], pools_s=[pool_s]).read_bytes()

    return written


def test_equal_embeddings_have_no_deviation(tmp_path: Path) -> None:
    embeddings = np.tile(noise(1), (5000, 1))
    table = pq.read_table(write(tmp_path, [clip("a.wav", embeddings, 5000)]))
    assert not np.any(table["std"].to_pylist())
    assert np.array_equal(np.array(table["mean"].to_pylist(), np.float32), np.tile(noise(1), (table.num_rows, 1)))


def test_the_bits_do_not_depend_on_the_other_clips(tmp_path: Path) -> None:
    lengths = (3, 5000, 0, 4095, 1, 4096, 700)
    rows = [clip(f"{place}.wav", noise(length, place), length) for place, length in enumerate(lengths)]
    together = pq.read_table(write(tmp_path / "together", rows, pools_s=[7.0])).to_pylist()
    for row in rows:
        alone = pq.read_table(write(tmp_path / row.clip, [row], pools_s=[7.0])).to_pylist()
        assert alone == [own for own in together if own["clip"] == row.clip]
        assert sum(own["n"] for own in alone) == 2 * row.examples


def test_durations_follow_one_another_and_skipped_clips_have_no_rows(tmp_path: Path) -> None:
    rows = [clip("a.wav", noise(6), 6), clip("b.wav", (), 0), clip("c.wav", noise(2), 2, label=None)]
    table = pq.read_table(write(tmp_path, rows, pools_s=[4.8]))
    assert table.schema.equals(pooled_schema(128))
    assert table.schema.metadata[b"vggish_runner.model"] == b"VGGish"
    assert table.select(["clip", "pool_s", "n", "label"]).to_pylist() == [
        {"clip": "a.wav", "pool_s": 4.8, "n": 5, "label": "owl"},
        {"clip": "a.wav", "pool_s": 4.8, "n": 1, "label": "owl"},
        {"clip": "c.wav", "pool_s": 4.8, "n": 2, "label": None},
        {"clip": "a.wav", "pool_s": None, "n": 6, "label": "owl"},
        {"clip": "c.wav", "pool_s": None, "n": 2, "label": None},
    ]


def test_row_groups_are_bounded(tmp_path: Path) -> None:
    path = write(tmp_path, [clip("a.wav", noise(30_000), 30_000)], pools_s=[0.96])
    with pq.ParquetFile(path) as file:
        rows = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    assert sum(rows) == 30_001
    assert max(rows) <= 8192 + 4096


def test_pooling_is_off_unless_it_is_asked_for(tmp_path: Path) -> None:
    make_formats(OutputConfig(), tmp_path, vggish_info(), [])
    assert not (tmp_path / "pooled").exists()
