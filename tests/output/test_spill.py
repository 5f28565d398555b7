"""Embeddings that wait for their shard: bounded in memory, and the same files however they came in parts."""

from __future__ import annotations

import gc
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from runner.core.files import digest_file
from runner.output.npz import NpzFiles
from runner.output.parquet import ParquetShards
from runner.output.rows import PostprocessedColumn
from runner.output.spill import BLOCK_ROWS, BatchRows, Chunk, Spill, SpilledRows, blocks, concatenate, joined
from tests.output.test_output import row
from tests.writers import vggish_info


def embeddings(rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, 128)).astype(np.float32)


def in_parts(whole: np.ndarray, sizes: list[int], spill: Spill | None = None) -> tuple[Chunk, ...]:
    """The embeddings cut into parts of these sizes, the rest last; kept by ``spill`` if one is given."""
    ends = np.cumsum(sizes)
    parts = [part.copy() for part in np.split(whole, ends[ends < len(whole)])]
    return tuple(spill.hold(part) for part in parts) if spill else tuple(parts)


@pytest.mark.parametrize("sizes", [[], [1], [7, 100, 3], [BLOCK_ROWS], [BLOCK_ROWS - 1, 2], [50] * 400])
def test_blocks_do_not_depend_on_the_parts(tmp_path: Path, sizes: list[int]) -> None:
    whole = embeddings(2 * BLOCK_ROWS + 5)
    for limit_mib in (1000, 0.5, 0):
        found = list(blocks(in_parts(whole, sizes, Spill(tmp_path, limit_mib))))
        assert [len(block) for block in found] == [BLOCK_ROWS, BLOCK_ROWS, 5]
        assert np.array_equal(np.concatenate(found), whole)
    assert list(blocks(())) == []


@pytest.mark.parametrize("limit_mib", [1000, 0])
def test_rows_of_a_batch_that_follow_each_other_are_read_at_once(tmp_path: Path, limit_mib: float) -> None:
    spill = Spill(tmp_path, limit_mib)
    first, second, single = (embeddings(10, seed) for seed in range(3))
    held, other = spill.hold(first), spill.hold(second)
    chunks = [BatchRows(held, 0, 2), BatchRows(held, 2, 5), BatchRows(held, 6, 9), BatchRows(other, 9, 10), single]
    assert [len(chunk) for chunk in joined(chunks)] == [5, 3, 1, 10]
    assert np.array_equal(concatenate(chunks), np.concatenate([first[:5], first[6:9], second[9:], single]))
    assert np.array_equal(np.concatenate(list(blocks(chunks, 4))), concatenate(chunks))


@pytest.mark.slow
def test_what_is_in_memory_stays_below_the_limit_and_is_given_back(tmp_path: Path) -> None:
    spill = Spill(tmp_path, 1)
    batch_mib = 0.25
    kept = [spill.hold(embeddings(512, seed)) for seed in range(8)]
    assert [isinstance(part, SpilledRows) for part in kept] == [False] * 4 + [True] * 4
    assert spill.in_memory == 4 * batch_mib * 2**20
    assert all(np.array_equal(next(blocks((part,))), embeddings(512, seed)) for seed, part in enumerate(kept))
    slices = [kept[0][:1], kept[4][:1]]
    del kept
    gc.collect()
    assert spill.in_memory == batch_mib * 2**20, "a slice keeps its whole batch in memory"
    assert np.array_equal(next(blocks(tuple(slices[1:]))), embeddings(512, 4)[:1])
    slices.clear()
    assert spill.in_memory == 0
    assert not isinstance(spill.hold(embeddings(512)), SpilledRows)
    assert not list(tmp_path.iterdir()), "the files have no names"


def test_a_batch_that_is_a_slice_of_a_larger_array_counts_until_that_is_free(tmp_path: Path) -> None:
    spill = Spill(tmp_path, 1)
    batch = embeddings(20)[:10]
    part = spill.hold(batch)[2:4]
    del batch
    assert spill.in_memory == 10 * 512
    del part
    assert spill.in_memory == 0


def test_files_are_freed_when_their_shards_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runner.output.spill._SEGMENT_BYTES", 1 << 20)
    spill = Spill(tmp_path, 0)

    def open_files() -> int:
        return sum(os.readlink(f"/proc/self/fd/{fd}").startswith(f"{tmp_path}/") for fd in os.listdir("/proc/self/fd"))

    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("open files can't be counted without /proc")
    monkeypatch.setattr(os, "readlink", lambda name, real=os.readlink: real(name) if os.path.islink(name) else "")
    held = [spill.hold(embeddings(1024, seed)) for seed in range(10)]
    assert open_files() == 5
    del held[:9]
    assert open_files() == 1


@pytest.mark.slow
def test_files_are_the_same_bytes_however_their_rows_came(tmp_path: Path) -> None:
    whole = embeddings(70_000)
    extra = PostprocessedColumn("embedding_pca", lambda rows: rows @ np.full((128, 128), 0.5, np.float32))
    digests = []
    for name, parts in (
        ("one", whole),
        ("few", in_parts(whole, [5000, 60_000])),
        ("few spilled", in_parts(whole, [5000, 60_000], Spill(tmp_path, 3))),
        ("spilled", in_parts(whole, [64] * 2000, Spill(tmp_path, 3))),
    ):
        folder = tmp_path / name
        folder.mkdir()
        rows = [row("short", 3), row("long", len(whole), embeddings=parts, padded=True), row("last", 1)]
        (parquet,) = ParquetShards(folder, vggish_info(), "zstd", extra).write(0, rows)
        NpzFiles(folder, vggish_info(), extra).write(0, rows)
        digests.append((digest_file(parquet), digest_file(folder / "npz" / "long.npz")))
    assert digests == digests[:1] * 4
    table = pq.read_table(tmp_path / "spilled" / "embeddings")
    assert table["example"].to_pylist() == [0, 1, 2, *range(70_000), 0]
    assert [place for place, padded in enumerate(table["padded"].to_pylist()) if padded] == [70_002]
    with np.load(tmp_path / "spilled" / "npz" / "long.npz", allow_pickle=False) as found:
        assert np.array_equal(found["embedding"], whole)
        assert found["start_s"][-1] == pytest.approx(0.96 * 69_999)


@pytest.mark.slow
def test_a_long_clip_is_written_in_little_memory(tmp_path: Path) -> None:
    """A quarter of a million examples, 134 MB, of which a writer holds a row group and a block at a time."""
    spill = Spill(tmp_path, 1)
    parts = [spill.hold(embeddings(4096, seed)) for seed in range(64)]
    rows = [row("long", 64 * 4096, embeddings=tuple(parts))]
    parquet, npz = ParquetShards(tmp_path, vggish_info(), "none"), NpzFiles(tmp_path, vggish_info())
    tracemalloc.start()
    try:
        parquet.write(0, rows)
        npz.write(0, rows)
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()
