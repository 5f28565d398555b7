"""Decoding apart, without a cluster: packets in any order, twice, or of a dead attempt come to the right shards."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from runner.compose import compose_config
from runner.decode import ClipResult, Segment
from runner.errors import EngineError, SkippedError
from runner.gathering import Clip
from runner.ray_cluster import Layout

pytest.importorskip("ray", reason="Ray has no build for this machine")

from runner import ray_engine
from runner.journal import STATE
from runner.ray_apart import Assembly
from runner.ray_registry import Brief
from runner.ray_stages import Note, Packing, from_table, to_table

SHARDS = [(0, 3), (3, 6)]
EXAMPLES = [2, 3, 0, 1, 4, 2]
"""Of each clip; the third is skipped."""


def clip(number: int) -> Clip:
    return Clip(number, f"{number}.wav", b"/data", None, None, "label", 10)


def packets(order: list[int], rows: int = 4) -> list[tuple[bytes, Note]]:
    """What one attempt gives, its clips decoded in this order, a window at a time; job 10 is clip 0."""
    packing = Packing(rows)
    found = []
    for number in order:
        packing.register(number + 10, clip(number))
        for example in range(EXAMPLES[number]):
            windows = np.full((1, 15_600), 10 * number + example, np.int16)
            found += packing.add(windows, [Segment(number + 10, example, 1)])
        embedded = EXAMPLES[number] > 0
        reason = None if embedded else "empty"
        packing.take_results(
            [ClipResult(number + 10, embedded, reason, None, EXAMPLES[number], 1.0, 16_000, 1, not embedded)]
        )
    return [embedded_packet(windows, note) for windows, note in [*found, *packing.rest()]]


def embedded_packet(windows: np.ndarray, note: Note) -> tuple[bytes, Note]:
    """A packet as the embedding actor gives it, after its way through two tables."""
    ((payload, note),) = from_table(to_table(windows, note))
    sent = np.frombuffer(payload, note.dtype).reshape(-1, 15_600)
    embeddings = np.repeat(sent[:, :1].astype(np.float32), 128, axis=1)
    actor = {"host": "here", "pid": 1, "file_metadata": {}, "identity": {"precision": "float32"}}
    ((payload, note),) = from_table(to_table(embeddings, note._replace(reports=[{"actor": actor, "error": None}])))
    return bytes(payload), note


def assembly(folder: Path, *overrides: str) -> Assembly:
    config = compose_config(["weights=random", *overrides])
    dataset = {"root": str(folder), "clips": 6, "part": {"labels": ["label"]}}
    (folder / STATE).mkdir()
    spec = {
        "config": asdict(config),
        "run_dir": str(folder),
        "manifest": "",
        "shards": SHARDS,
        "rows": ["rows of 0", "rows of 1"],
        "dataset": dataset,
        "weights": {},
    }
    return Assembly(spec, config, [0, 1])


def written(folder: Path) -> dict[str, list[float]]:
    rows: dict[str, list[float]] = {}
    for row in pq.read_table(folder / "embeddings").to_pylist():
        assert row["example"] == len(rows.setdefault(row["clip"], []))
        rows[row["clip"]].append(row["embedding"][7])
    return rows


EXPECTED = {f"{n}.wav": [10.0 * n + k for k in range(count)] for n, count in enumerate(EXAMPLES) if count}


@pytest.mark.parametrize("backwards", [False, True])
def test_packets_in_any_order_and_twice_come_to_the_right_shards(tmp_path: Path, backwards: bool) -> None:
    found = packets([1, 0, 2, 5, 3, 4])
    assert len(found) == 4  # the last one has the last clip's end alone
    assert not any(clip.path for _, note in found for clip in note.clips.values())
    each = assembly(tmp_path)
    twice = [packet for packet in found[:: -1 if backwards else 1] for _ in range(2)]
    reports = [report for packet in twice for report in each.take(*packet)] + list(each.finish())
    assert written(tmp_path) == EXPECTED
    entries = [entry for report in reports for entry in report["entries"]]
    assert sorted((entry["shard"], entry["clips"], entry["examples"]) for entry in entries) == [(0, 3, 5), (1, 3, 7)]
    assert {entry["rows"] for entry in entries} == {"rows of 0", "rows of 1"}
    assert sum(report.get("clips", 0) for report in reports) == 5


def test_what_an_attempt_that_died_has_given_is_not_put_together_with_the_next_ones(tmp_path: Path) -> None:
    each = assembly(tmp_path)
    first, second = packets([0, 1, 2, 3, 4, 5]), packets([4, 3, 5, 2, 1, 0], rows=5)
    reports = [report for packet in [first[0], *second[1:]] for report in each.take(*packet)] + list(each.finish())
    done = [entry["shard"] for report in reports for entry in report["entries"]]
    assert done == [0]  # of the other one both attempts together have all windows, and neither has
    assert written(tmp_path) == {name: rows for name, rows in EXPECTED.items() if name in ("0.wav", "1.wav")}


def test_more_skipped_clips_than_allowed_end_the_run(tmp_path: Path) -> None:
    each = assembly(tmp_path, "dataset.max_skipped=0")
    with pytest.raises(SkippedError, match=r"dataset\.max_skipped=0"):
        list(itertools.chain.from_iterable(each.take(*packet) for packet in packets([0, 1, 2, 3, 4, 5])))


class FakeCollected:
    """Three shards; a report is the shard it is of."""

    def __init__(self) -> None:
        self.left = [0, 1, 2]

    def take(self, shard: int) -> None:
        self.left.remove(shard)


class Going:
    def is_set(self) -> bool:
        return False


def test_shards_lost_with_an_actor_are_done_again_and_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds: list[list[int]] = []

    def lose_the_last(ray: object, spec: object, work: list[list[int]], layout: Layout) -> Iterator[int]:
        shards = [shard for group in work for shard in group]
        rounds.append(shards)
        yield from shards[: max(1, len(shards) - 1)]

    monkeypatch.setattr(ray_engine, "_reports", lose_the_last)
    ray_engine._embed_all(None, Brief({}, None), Layout(1, 1, 0), FakeCollected(), Going(), None)
    assert rounds == [[0, 1, 2], [2]]
    monkeypatch.setattr(ray_engine, "_reports", lambda *arguments: iter(()))
    with pytest.raises(EngineError, match="3 shards were lost 3 times"):
        ray_engine._embed_all(None, Brief({}, None), Layout(1, 1, 0), FakeCollected(), Going(), None)
