"""How clips are cut into shards and partitions."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from runner.config.composition import compose_config
from runner.core.errors import DatasetError
from runner.dataset.manifest import select_partition
from runner.dataset.shards import max_durations_s, max_shard_s, plan_shards
from runner.dataset.table import SCHEMA
from tests.dataset.manifests import list_folder, put_files


@pytest.mark.parametrize(
    ("n_clips", "clips_per_shard", "size"),
    [(1, None, 64), (64, None, 64), (10_000, None, 64), (100_000, None, 391), (5_000_000, None, 8192), (10, 3, 3)],
)
def test_shards_cover_every_clip_once_and_in_order(n_clips: int, clips_per_shard: int | None, size: int) -> None:
    shards = plan_shards(n_clips, clips_per_shard)

    assert shards[0][0] == 0
    assert shards[-1][1] == n_clips
    assert all(last == first for (_, last), (first, _) in itertools.pairwise(shards))
    assert all(last - first == size for first, last in shards[:-1])
    assert 0 < shards[-1][1] - shards[-1][0] <= size


@pytest.mark.parametrize(
    ("hours", "hop_s", "size"), [(1.0, 0.96, 69), (1.0, 0.48, 34), (48.0, 0.96, 1), (1000, 0.1, 1)]
)
def test_shards_of_long_clips_are_of_few(hours: float, hop_s: float, size: int) -> None:
    limit_s = max_shard_s(compose_config([f"frontend.hop_s={hop_s}"]))
    shards = plan_shards(1000, None, np.full(1000, 3600 * hours), limit_s)

    assert [clip for first, end in shards for clip in range(first, end)] == list(range(1000))
    assert {end - first for first, end in shards[:-1]} == {min(size, 64)}
    assert plan_shards(1000, 10, np.full(1000, 3600 * hours), limit_s)[0] == (0, 10), "as asked for"


def test_a_long_clip_among_short_ones_makes_its_own_shard_smaller() -> None:
    seconds = np.full(200, 10.0)
    seconds[70] = 300_000.0
    assert plan_shards(200, None, seconds, 250_000.0) == [
        (0, 64),
        (64, 70),
        (70, 71),
        (71, 135),
        (135, 199),
        (199, 200),
    ]


def test_how_long_a_clip_may_be(root: Path) -> None:
    table = pa.table(
        {
            "clip": ["a", "b", "c", "d", "e"],
            "path": [b"/x/\xff.WAV", b"/x/b.mp3", b"s3://x/c", b"s3://x/d", b"/x/e.flac"],
            "start": [1.0, None, 5.0, None, 99.0],
            "end": [3.0, None, 9.0, None, None],
            "label": pa.nulls(5, pa.string()),
            "bytes": [10_000_000, 40_000, -1, -1, 16_000],
            "mtime_ns": [0] * 5,
        },
        schema=SCHEMA,
    )
    assert max_durations_s(table).tolist() == [2.0, 10.0, 4.0, 0.0, 0.0]


def test_fewer_shards_than_parts_are_refused_by_every_part_alike(root: Path) -> None:
    put_files(root, *(f"{number}.wav" for number in range(3)))
    whole = list_folder(root)
    for which in range(1, 6):
        with pytest.raises(DatasetError, match=f"partition={which}/5: .* only 3 shards"):
            select_partition(whole, which, 5, 1)
    assert [select_partition(whole, which, 3, 1).table.num_rows for which in (1, 2, 3)] == [1, 1, 1]
