"""Statistics of many actors as one run's, from made-up reports."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest

from runner.contract.events import Events
from runner.contract.result import DeviceReport, Startup
from runner.engines.ray.messages import ActorEnd, ActorProgress, ActorReport
from runner.engines.ray.stats import ActorStats
from runner.output.state.journal import ShardCounts, ShardEntry


def actor(pid: int, node: str = "one", name: str = "a GPU") -> ActorReport:
    startup = Startup(device=DeviceReport("gpu", "gpu", name, 0, 1, "asked"))
    return ActorReport("host", node, pid, startup, {"startup_s": float(pid), "parity_rel_err": pid / 1e6})


def shard(examples: int) -> ShardEntry:
    return ShardEntry(0, 1, examples, counts=ShardCounts(embedded=examples // 10, audio_s=float(examples)))


def progress(began: float, ended: float, examples: int, under_way: int = 0) -> ActorProgress:
    return ActorProgress(began, ended, examples, under_way)


@pytest.fixture
def events() -> Events:
    return Events(io.StringIO())


@pytest.fixture
def stats(events: Events) -> ActorStats:
    return ActorStats(events)


def test_speeds_are_added_up_by_actor_and_by_machine(stats: ActorStats, events: Events) -> None:
    one, two, three = actor(1), replace(actor(2, "two"), warnings=("hot",)), actor(3, "two", "another GPU")
    assert [stats.add_actor(report) for report in (one, two, three)] == [True, False, False]
    for report, examples in ((one, 1000), (two, 900), (one, 1000), (three, 100)):
        stats.add_shard(report, shard(examples))
    stats.add_progress(one, progress(100, 110, 1000))
    stats.add_progress(two, progress(102, 108, 900))
    stats.add_progress(three, progress(100, 120, 100))
    stats.add_end(one, ActorEnd(progress(100, 120, 2000), {"compute": 9.0}, input_wait_s=1.0, canaries=3))
    found, metrics = stats.stats(), stats.metrics()
    assert metrics["realtime_factor"] == pytest.approx(3000 / 20)
    assert [metrics[f"node{n}_realtime_factor"] for n in (0, 1)] == pytest.approx([2000 / 20, 1000 / 20])
    assert [metrics[f"actor{n}_realtime_factor"] for n in (0, 1, 2)] == pytest.approx([100, 150, 5])
    assert (metrics["actors"], metrics["nodes"], metrics["startup_s"], metrics["parity_canaries"]) == (3, 2, 3, 3)
    assert metrics["parity_rel_err"] == 3e-6
    assert metrics["compute_busy_share"] == pytest.approx(9 / 20)
    assert found.actors_summary == "2 on gpu (a GPU), 1 on gpu (another GPU); 2 machines"
    assert events.warnings == ["hot", "actors ran on different devices: gpu (a GPU), gpu (another GPU)"]
    assert sum(window["realtime_factor"] > 0 for window in found.throughput_series) == 3
    assert found.steady_started_at == 100
    assert [(each.pid, each.examples, each.realtime_factor) for each in found.actors] == [
        (1, 2000, 100.0),
        (2, 900, 150.0),
        (3, 100, 5.0),
    ]


def test_examples_under_way_are_the_last_that_was_told_and_no_share_is_above_one(stats: ActorStats) -> None:
    one, two = actor(1), actor(2)
    stats.add_actor(one)
    stats.add_actor(two)
    stats.add_progress(one, progress(100, 101, 300, 300))
    stats.add_progress(one, progress(100, 102, 850, 150))
    stats.add_progress(two, progress(100, 103, 7, 7))
    assert stats.examples_under_way == 157
    stats.add_shard(one, shard(1100))
    stats.add_end(one, ActorEnd(progress(100, 104, 1100), {"write": 5.5}, input_wait_s=9.0))
    assert stats.examples_under_way == 7
    metrics = stats.metrics()
    assert stats.audio_s == 1100
    assert metrics["write_busy_share"] == metrics["replica0_input_wait_share"] == 1


def test_an_actor_that_died_before_it_told_anything_is_there_all_the_same(stats: ActorStats) -> None:
    stats.add_actor(actor(1))
    stats.add_progress(actor(1), None)
    assert stats.stats().actors_summary == "1 on gpu (a GPU); 1 machine"
    assert "realtime_factor" not in stats.metrics()
