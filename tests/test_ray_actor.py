"""An actor that does all, without Ray: calls that overlap, one that fails, pages that stay locked, one identity."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from runner import ray_actor
from runner.cold_start import ColdStart, Events
from runner.compose import compose_config
from runner.decode import DecodeOptions
from runner.engine import Lane
from runner.errors import ParityError
from runner.journal import ShardEntry, read_journal
from runner.output import make_formats
from runner.pool import DecodePool
from runner.ray_actor import CALLS, EmbedShards, Entries, ShardWriter
from runner.ray_engine import Collected
from runner.ray_registry import Registry
from runner.taking_up import differing
from tests.test_engine import fake_embed

CLIPS, A_SHARD = 96, 8
SHARDS = [(first, first + A_SHARD) for first in range(0, CLIPS, A_SHARD)]


class Writer(ShardWriter):
    """Fails at one shard, if told so; takes its time for each."""

    fails_at: int | None = None

    def write_shard(self, shard: int, rows: Any) -> None:
        time.sleep(0.05)
        if shard == self.fails_at:
            raise OSError("no room for shard 1")
        super().write_shard(shard, rows)


@pytest.fixture
def actor(tmp_path: Path) -> Iterator[EmbedShards]:
    names = [f"{number:03d}.wav" for number in range(CLIPS)]
    for number, name in enumerate(names):
        soundfile.write(tmp_path / name, np.full(40_000, (number + 1) / 128, np.float32), 16_000, subtype="FLOAT")
    columns = {"clip": names, "path": [os.fsencode(tmp_path / name) for name in names], "bytes": [1] * CLIPS}
    empty = {name: pa.nulls(CLIPS, kind) for name, kind in (("start", pa.float64()), ("end", pa.float64()))}
    table = pa.table({**columns, **empty, "label": pa.nulls(CLIPS, pa.string())})
    pq.write_table(table, tmp_path / "manifest.parquet")
    made = object.__new__(EmbedShards)
    made.config = compose_config(["weights=random"])
    made.spec = {"dataset": {"root": str(tmp_path), "clips": CLIPS}}
    made.error, made.about, made.shards = None, {"resolved": {}, "warnings": []}, SHARDS
    made.manifest, made.run_dir = tmp_path / "manifest.parquet", tmp_path
    made._thread, made._calls, made._entries = ThreadPoolExecutor(1), ThreadPoolExecutor(CALLS), Entries()
    made._pool = made._thread.submit(DecodePool, DecodeOptions(0.96, "pad", "drop", "reference"), 1).result()
    made._pool.open(1, 2, 5)
    formats = make_formats(made.config.output, tmp_path, {}, 0.96, [])
    made._writer = Writer(tmp_path, {}, formats, journal=made._entries)
    made._lanes = [Lane("lane", lambda windows, copied: fake_embed(windows), 1)]
    yield made
    made._pool.close()


def both(actor: EmbedShards, *calls: list[int]) -> list[list[dict[str, Any]]]:
    """The reports of calls that are made at the same time."""
    with ThreadPoolExecutor(len(calls)) as threads:
        begun = []
        for numbers in calls:
            begun.append(threads.submit(lambda numbers=numbers: list(actor._embed(numbers))))
            time.sleep(0.05)
        return [each.result(60) for each in begun]


def assert_right(folder: Path, shards: list[int]) -> None:
    for shard in shards:
        for row in pq.read_table(folder / f"embeddings/part-{shard:05d}.parquet").to_pylist():
            assert row["embedding"][0] == pytest.approx((int(row["clip"][:3]) + 1) / 128), row["clip"]


def test_calls_that_overlap_give_every_clip_its_own_rows_and_every_shard_one_entry(
    actor: EmbedShards, tmp_path: Path
) -> None:
    found = both(actor, [0, 1, 2, 3, 4, 5], [6, 7, 8], [9, 10, 11])
    entries = [entry for reports in found for report in reports for entry in report["entries"]]
    assert sorted(entry["shard"] for entry in entries) == list(range(len(SHARDS)))
    assert {report["error"] for reports in found for report in reports} == {None}
    assert sum(report["clips"] for reports in found for report in reports) == CLIPS
    assert_right(tmp_path, list(range(len(SHARDS))))
    json.dumps(found)


def test_after_a_call_that_failed_no_other_writes_the_wrong_clips_rows(actor: EmbedShards, tmp_path: Path) -> None:
    def slow(windows: np.ndarray, copied: object) -> np.ndarray:
        time.sleep(0.05)  # so that clips are under way when the first call fails
        return fake_embed(windows)

    actor._writer.fails_at, actor._lanes = 1, [Lane("lane", slow, 1)]
    first, second = both(actor, [0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11])
    assert "no room for shard 1" in first[-1]["error"]["message"]
    assert second[-1]["error"] == first[-1]["error"]
    written = [int(path.stem[-5:]) for path in (tmp_path / "embeddings").glob("*.parquet")]
    assert max(written) < 6
    assert_right(tmp_path, written)
    (report,) = actor._embed([11])
    assert report["error"] == first[-1]["error"]


def test_pages_stay_locked_while_the_actor_lives(actor: EmbedShards, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    @contextlib.contextmanager
    def pinned(memory: object) -> Iterator[str | None]:
        said.append("locked")
        try:
            yield None
        finally:
            said.append("unlocked")

    monkeypatch.setattr(ray_actor, "pinned", pinned)
    actor._pins = ExitStack()
    actor._lock_pages(ColdStart(0.0))
    assert said == ["locked"]
    assert actor.about["resolved"]["memory.pinned"] is True
    actor._pins.close()


def test_entries_may_be_taken_from_two_threads() -> None:
    entries, found = Entries(), []

    def take() -> None:
        while len(found) < 2000:
            found.extend(entries.take())

    threads = [threading.Thread(target=take) for _ in range(2)]
    for thread in threads:
        thread.start()
    for number in range(2000):
        entries.append(SimpleNamespace(shard=number))
    for thread in threads:
        thread.join(30)
    assert sorted(entry.shard for entry in found) == list(range(2000))


def test_all_actors_embed_with_what_the_first_one_has() -> None:
    fast, exact = ({"weights.checksum": "c", "precision": precision} for precision in ("bfloat16", "float32"))

    async def asked(registry: Registry) -> list[Any]:
        return [await registry.agree(identity) for identity in (fast, exact)]

    assert asyncio.run(asked(Registry({}))) == [fast, fast]
    assert asyncio.run(asked(Registry({}, exact))) == [exact, exact]
    assert differing(fast, exact) == "precision (bfloat16 then, float32 now)"
    assert not differing(fast, dict(fast))


def test_shards_that_an_actor_takes_back_are_left_to_be_done(tmp_path: Path) -> None:
    config = compose_config(["weights=random", "dataset=demo", "engine=ray"])
    spec = {"config": config.to_dict(), "shards": [[0, 1], [1, 2]], "dataset": {"clips": 2}}
    (tmp_path / ".runner").mkdir()
    collected = Collected(spec, tmp_path, Events(io.StringIO()), {}, {})
    actor = {"host": "here", "pid": 1, "role": "whole", "node": "n", "metrics": {}, "warnings": []}
    counts = {"embedded": 1, "audio_s": 1.0, "padded": 0, "skipped": {}, "noted": {}}
    done = [vars(ShardEntry(number, 1, 1, {}, counts)) for number in range(2)]
    collected.take({"actor": actor, "error": None, "entries": done})
    assert collected.left == []
    entries = [vars(ShardEntry(1, undone=True))]
    report = {"actor": actor, "error": {"kind": "parity", "message": "wrong"}, "entries": entries}
    with pytest.raises(ParityError, match="wrong"):
        collected.take(report)
    assert collected.left == [1]
    assert list(read_journal(tmp_path / ".runner" / "journal.jsonl")[0]) == [0]


def test_no_shard_is_noted_after_others_were_taken_back(actor: EmbedShards) -> None:
    for number in range(2):
        actor._writer.record(ShardEntry(number))
    actor._writer.take_back(1)
    actor._writer.record(ShardEntry(2))  # an earlier call's, which was still being written
    assert [(entry.shard, entry.undone) for entry in actor._entries.take()] == [(0, False), (1, False), (1, True)]
