"""The same clip gives the same embedding whatever it is embedded with: batch, batch size, decode processes, shards."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runner.dataset.clips import Clip
from runner.inference.session import EmbeddingSession
from tests.pipeline.test_engine import fake_embed, run_engine
from tests.reference import count_examples

pytestmark = pytest.mark.slow
RELATIVE = 1e-6


@pytest.fixture(scope="module")
def windows() -> np.ndarray:
    """Twelve windows of sound of all levels, float32 [12, 15600]."""
    rng = np.random.default_rng(3)
    levels = np.logspace(-4, 0, 12)[:, None]
    tones = np.sin(2 * np.pi * rng.uniform(100, 7000, (12, 1)) * np.arange(15_600) / 16_000)
    return (levels * (0.5 * tones + 0.5 * rng.uniform(-1, 1, (12, 15_600)))).astype(np.float32)


@pytest.fixture(scope="module")
def embeddings(vggish: EmbeddingSession, windows: np.ndarray) -> np.ndarray:
    return vggish.embed_windows(windows)


@settings(deadline=None, max_examples=6)
@given(rows=st.lists(st.integers(0, 11), min_size=1, max_size=20), batch_size=st.integers(1, 20))
def test_neighbors_and_batch_size_do_not_matter(
    vggish: EmbeddingSession, windows: np.ndarray, embeddings: np.ndarray, rows: list[int], batch_size: int
) -> None:
    before = vggish.effective_batch_size
    vggish.set_batch_size(batch_size)
    try:
        actual = vggish.embed_windows(windows[rows])
    finally:
        vggish.set_batch_size(before)
    assert np.abs(actual - embeddings[rows]).max() <= RELATIVE * np.abs(embeddings).max()


@settings(deadline=None, max_examples=5)
@given(row=st.integers(0, 11), place=st.integers(0, 6), others=st.lists(st.integers(0, 11), min_size=6, max_size=6))
def test_the_bits_are_the_same_for_the_same_batch_shape(
    vggish: EmbeddingSession, windows: np.ndarray, row: int, place: int, others: list[int]
) -> None:
    first = vggish.embed_windows(windows[[row, *others]])
    moved = vggish.embed_windows(windows[[*others[:place], row, *others[place:]]])
    assert np.array_equal(moved[place], first[0])


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Clip]:
    """Clips of many lengths and rates."""
    folder = tmp_path_factory.mktemp("clips")
    rng = np.random.default_rng(5)
    clips = []
    for index, (rate, seconds) in enumerate(
        [(16_000, 0.2), (16_000, 12.0), (44_100, 2.5), (8_000, 0.97), (16_000, 31.0)]
    ):
        path = folder / f"{index}.wav"
        soundfile.write(path, rng.uniform(-1, 1, int(rate * seconds)), rate, subtype="PCM_16")
        clips.append(Clip(index, path.name, os.fsencode(path), None, None, None, path.stat().st_size))
    return clips


def rows_of(folder: Path) -> dict[tuple[str, int], np.ndarray]:
    table = pq.read_table(folder / "embeddings").to_pylist()
    assert len({(row["clip"], row["example"]) for row in table}) == len(table)
    return {(row["clip"], row["example"]): np.array(row["embedding"], np.float32) for row in table}


@settings(deadline=None, max_examples=4, suppress_health_check=[HealthCheck.too_slow])
@given(workers=st.integers(1, 3), batch=st.integers(1, 70), shard=st.integers(1, 6), order=st.permutations(range(5)))
def test_workers_batches_shards_and_order_do_not_matter(
    clips: list[Clip], plain: dict[tuple[str, int], np.ndarray], workers: int, batch: int, shard: int, order: list[int]
) -> None:
    renumbered = [
        Clip(place, clips[which].name, clips[which].path, None, None, None, clips[which].bytes)
        for place, which in enumerate(order)
    ]
    with tempfile.TemporaryDirectory() as folder:
        run_engine(renumbered, Path(folder), workers=workers, batch=batch, shard=shard)
        rows = rows_of(Path(folder))
    assert rows.keys() == plain.keys()
    for key, values in plain.items():
        assert np.array_equal(rows[key], values)


@pytest.fixture(scope="module")
def plain(clips: list[Clip], tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], np.ndarray]:
    """What one decode process, one clip at a time, gives."""
    folder = tmp_path_factory.mktemp("plain")
    run_engine(clips, folder, workers=1, batch=1, shard=1)
    rows = rows_of(folder)
    assert len(rows) == sum(max(1, count_examples(int(16_000 * s))) for s in (0.2, 12.0, 2.5, 0.97, 31.0))
    return rows


def test_a_clips_embeddings_are_those_of_the_session_alone(
    vggish: EmbeddingSession, clips: list[Clip], tmp_path: Path
) -> None:
    run_engine(clips, tmp_path, workers=2, batch=13, shard=2, embed=vggish.embed_windows)
    rows = rows_of(tmp_path)
    for clip in clips:
        alone = vggish.embed_file(os.fsdecode(clip.path))
        largest = np.abs(alone).max()
        for example, embedding in enumerate(alone):
            assert np.abs(rows[clip.name, example] - embedding).max() <= RELATIVE * largest


def test_the_plain_session_tells_windows_apart(windows: np.ndarray) -> None:
    assert len({row.tobytes() for row in fake_embed(windows)}) == len(windows)
