"""The actor of ``engine=ray``, without Ray or TensorFlow: calls under way together, one that fails, the last canary."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from runner.contract.events import Events
from runner.contract.spec import DatasetSummary
from runner.core.errors import EngineError, ParityError
from runner.core.failures import Failure
from runner.core.startup_timer import StartupTimer
from runner.engines.ray import actor as ray_actor
from runner.engines.ray.actor import EmbedShards, Reports
from runner.engines.ray.driver import ReportCollector
from runner.engines.ray.messages import ActorEnd, ActorFailure, ActorInit, ActorReport, Message, ShardReport
from runner.engines.ray.pool import Actor, Report
from runner.output.formats import make_formats
from runner.output.state.journal import ShardCounts, ShardEntry, read_journal
from runner.output.writer import ShardFiles, ShardWriter
from runner.pipeline.decode_pool import DecodePool
from runner.pipeline.messages import Replica
from tests.configs import make_config
from tests.pipeline.test_engine import fake_embed
from tests.results import make_spec
from tests.vggish_clips import OPTIONS
from tests.writers import vggish_info

pytestmark = pytest.mark.slow

CLIPS, A_SHARD = 96, 8
SHARDS = [(first, first + A_SHARD) for first in range(0, CLIPS, A_SHARD)]


class Writer(ShardWriter):
    """Fails at one shard, if told so."""

    fails_at: int | None = None

    def write_shard(self, shard: int, rows: Any) -> None:
        if shard == self.fails_at:
            raise OSError("no room for shard 1")
        super().write_shard(shard, rows)


class FakeCanary:
    """``misses``: whether the last one comes back wrong; shards from the second on are then not to be trusted."""

    def __init__(self, misses: bool) -> None:
        self.wrong, self.count, self.trusted, self.misses = misses, 0, 1, []

    def finish(self) -> None:
        self.count += 1
        if self.wrong:
            raise ParityError("at the end it is wrong")


class PlainActor(EmbedShards):
    """An actor whose session is plain arithmetic."""

    def __init__(self, folder: Path, *, fails_at: int | None = None, misses: bool = False, pause_s: float = 0) -> None:
        dataset = DatasetSummary(str(folder), "d", CLIPS)
        config = make_config(["weights=random"])
        manifest = folder / "manifest.parquet"
        spec = make_spec(folder, config, dataset=dataset, shards=SHARDS, row_digests=(), manifest=manifest)
        super().__init__(ActorInit(spec, {}, CLIPS))
        self.folder, self.fails_at, self.canary, self.pause_s = folder, fails_at, FakeCanary(misses), pause_s

    async def where(self) -> str:
        return "here"

    def _make(self) -> None:
        self.spec, self.remote, self._folder = self._init.spec, None, None
        self._pool = DecodePool(OPTIONS, 1)
        self._pool.open(1, 2, 5)
        self._model = SimpleNamespace(sessions=[])

    def _make_writer(self) -> ShardWriter:
        formats = make_formats(self.spec.config.output, self.folder, vggish_info(), [])
        writer = Writer(ShardFiles(self.folder, vggish_info(), formats), self._reports)
        writer.fails_at = self.fails_at
        return writer

    def _make_replicas(self) -> list[Replica]:
        def embed(windows: np.ndarray, copied: object) -> np.ndarray:
            time.sleep(self.pause_s)
            return fake_embed(windows)

        return [Replica("replica", embed, 1, self.canary)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Clips of which each has a level of its own, and their manifest."""
    monkeypatch.setattr(sys.modules["__main__"], "__file__", None, raising=False)
    names = [f"{number:03d}.wav" for number in range(CLIPS)]
    for number, name in enumerate(names):
        soundfile.write(tmp_path / name, np.full(40_000, (number + 1) / 128, np.float32), 16_000, subtype="FLOAT")
    columns = {"clip": names, "path": [os.fsencode(tmp_path / name) for name in names], "bytes": [1] * CLIPS}
    empty = {name: pa.nulls(CLIPS, kind) for name, kind in (("start", pa.float64()), ("end", pa.float64()))}
    table = pa.table({**columns, **empty, "label": pa.nulls(CLIPS, pa.string())})
    pq.write_table(table, tmp_path / "manifest.parquet", row_group_size=30)
    return tmp_path


def embed(actor: EmbedShards, *shards: int) -> tuple[list[ShardReport], ActorEnd]:
    """The reports of shards that an actor has at the same time, and its last one."""

    async def life() -> tuple[list[ShardReport], ActorEnd]:
        assert (await actor.make()).failed is None
        reports = await asyncio.gather(*map(actor.embed, shards))
        await actor.progress()
        return reports, await actor.finish()

    return asyncio.run(asyncio.wait_for(life(), 60))


def assert_right(folder: Path, shards: list[int]) -> None:
    for shard in shards:
        for row in pq.read_table(folder / f"embeddings/part-{shard:05d}.parquet").to_pylist():
            assert row["embedding"][0] == pytest.approx((int(row["clip"][:3]) + 1) / 128), row["clip"]


def test_every_shard_has_one_line_and_its_own_rows_and_the_last_canary_comes_at_the_end(folder: Path) -> None:
    actor = PlainActor(folder)
    reports, end = embed(actor, 5, 0, 1, 2, 11, 3, 4, 10, 9, 8, 6, 7)
    assert [report.entry.shard for report in reports] == [5, 0, 1, 2, 11, 3, 4, 10, 9, 8, 6, 7]
    assert sum(report.entry.clips for report in reports) == CLIPS
    assert_right(folder, list(range(len(SHARDS))))
    assert (end.canaries, end.progress.examples, end.progress.under_way) == (1, 2 * CLIPS, 0)
    assert set(end.stages) == {"decode", "write", "copy", "compute", "replica"}
    assert end.progress.ended > end.progress.began
    batches = actor._engine.stats.timings
    assert sum(timing.examples == 5 for timing in batches) >= len(batches) - 2  # filled across shards


def test_after_a_failure_all_calls_end_with_it_and_no_wrong_rows_are_written(folder: Path) -> None:
    reports, end = embed(PlainActor(folder, fails_at=1, pause_s=0.02), *range(12))
    failed = [report.failed.failure.message for report in reports if report.failed]
    assert len(set(failed)) == 1
    assert "no room for shard 1" in failed[0]
    assert end.failed.failure.message == failed[0]
    assert_right(folder, [report.entry.shard for report in reports if report.entry])


def test_a_wrong_canary_at_the_end_takes_back_what_an_actor_wrote_since_the_last_good_one(folder: Path) -> None:
    reports, end = embed(PlainActor(folder, misses=True), 4, 5, 6)
    done = [report.entry.shard for report in reports]
    assert end.failed.failure.kind == "parity"
    assert len(end.failed.revoked) == 2
    assert set(end.failed.revoked) < set(done)


def test_pages_stay_locked_while_the_actor_lives(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    @contextlib.contextmanager
    def pinned(memory: object) -> Iterator[str | None]:
        said.append("locked")
        yield None
        said.append("unlocked")

    monkeypatch.setattr(ray_actor, "pinned", pinned)
    actor = PlainActor(folder)
    actor._report = ActorReport("here", "node", 1)
    actor._pool = SimpleNamespace(memory=SimpleNamespace(bytes=None))
    actor._pin(StartupTimer(0.0))
    assert said == ["locked"]
    assert actor._report.startup.resolved["memory.pinned"] is True
    actor._pins.close()
    assert said == ["locked", "unlocked"]


def test_what_an_actor_can_not_make_is_the_runs_failure_in_the_same_words(folder: Path, tmp_path: Path) -> None:
    def broken(self: EmbedShards) -> None:
        raise ParityError("other embeddings than the reference")

    actor = PlainActor(folder)
    actor._make = broken.__get__(actor)
    report = asyncio.run(actor.make())
    with pytest.raises(ParityError, match="other embeddings than the reference"):
        make_collector(tmp_path).add(Report(Actor(None, report=report), report))


def make_collector(folder: Path) -> ReportCollector:
    config = make_config(["weights=random", "dataset=demo", "engine=ray"])
    (folder / ".runner").mkdir(exist_ok=True)
    return ReportCollector(make_spec(folder, config, shards=((0, 1), (1, 2))), Events(io.StringIO()), {})


def actor_with(pid: int, precision: str) -> ActorReport:
    return ActorReport("here", "n", pid, identity={"weights.checksum": "c", "precision": precision})


def add_actor(collector: ReportCollector, report: ActorReport) -> Callable[[Message], None]:
    """Add an actor; the function returned adds its other answers."""
    actor = Actor(None, report=report)
    collector.add(Report(actor, report))
    return lambda message: collector.add(Report(actor, message))


def test_all_actors_embed_with_what_the_first_one_has(tmp_path: Path) -> None:
    collector = make_collector(tmp_path)
    add_actor(collector, actor_with(1, "bfloat16"))
    add_actor(collector, actor_with(2, "bfloat16"))
    with pytest.raises(EngineError, match=r"precision \(bfloat16 then, float32 now\)"):
        add_actor(collector, actor_with(3, "float32"))


def test_shards_that_an_actor_takes_back_are_left_to_be_done(tmp_path: Path) -> None:
    collector = make_collector(tmp_path)
    add = add_actor(collector, actor_with(1, "float32"))
    counts = ShardCounts(embedded=1, audio_s=1.0)
    for number in range(2):
        add(ShardReport(ShardEntry(number, 1, 1, {}, counts)))
    assert collector.remaining == []
    with pytest.raises(ParityError, match="wrong"):
        add(ShardReport(failed=ActorFailure(Failure("parity", "wrong"), (1,))))
    assert collector.remaining == [1]
    assert list(read_journal(tmp_path / ".runner" / "journal.jsonl")[0]) == [0]


def test_no_shard_is_noted_after_others_were_taken_back(tmp_path: Path) -> None:
    reports = Reports()
    writer = ShardWriter(ShardFiles(tmp_path, vggish_info(), []), reports)
    waiting = [reports.expect(number) for number in range(3)]
    for number in range(2):
        writer.commit(ShardEntry(number))
    writer.revoke_from(1)
    writer.commit(ShardEntry(2))  # which was still being written
    assert [each.done() for each in waiting] == [True, True, False]
    reports.fail(ParityError("wrong"))
    assert waiting[2].result().failed.revoked == (1,)
    assert reports.expect(3).result().failed.failure.kind == "parity"
