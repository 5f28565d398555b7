"""Figures of many actors as one run's, from made-up reports."""

from __future__ import annotations

import io
from typing import Any

import pytest

from runner.core.events import Events
from runner.engines.ray.stats import ActorFigures


def about(pid: int, node: str = "one", name: str = "a GPU") -> dict[str, Any]:
    device = {"device": {"effective": "gpu", "name": name}}
    metrics = {"startup_s": float(pid), "parity_rel_err": pid / 1e6}
    return {"host": "host", "node": node, "pid": pid, "metrics": metrics, "warnings": [], **device}


def shard(examples: int) -> dict[str, Any]:
    return {"examples": examples, "counts": {"embedded": examples // 10, "audio_s": float(examples)}}


def progress(began: float, ended: float, examples: int, under_way: int = 0, **more: Any) -> dict[str, Any]:
    return {"began": began, "ended": ended, "examples": examples, "under_way": under_way, **more}


@pytest.fixture
def figures() -> ActorFigures:
    return ActorFigures(Events(io.StringIO()), {"warnings": [], "metrics": {}})


def test_speeds_are_added_up_by_actor_and_by_machine(figures: ActorFigures) -> None:
    one, two, three = about(1), about(2, "two"), about(3, "two", "another GPU")
    assert [figures.meet(each) for each in (one, two, three)] == [True, False, False]
    for who, examples in ((one, 1000), (two, 900), (one, 1000), (three, 100)):
        figures.take_shard(who, shard(examples))
    figures.take_progress(one, progress(100, 110, 1000))
    figures.take_progress(two, progress(102, 108, 900, warnings=["hot"]))
    figures.take_progress(three, progress(100, 120, 100))
    figures.take_progress(one, progress(100, 120, 2000, stages={"compute": 9.0}, starved_s=1.0, canaries=3))
    figures.fill()
    result, metrics = figures._result, figures._result["metrics"]
    assert metrics["realtime_factor"] == pytest.approx(3000 / 20)
    assert [metrics[f"node{n}_realtime_factor"] for n in (0, 1)] == pytest.approx([2000 / 20, 1000 / 20])
    assert [metrics[f"actor{n}_realtime_factor"] for n in (0, 1, 2)] == pytest.approx([100, 150, 5])
    assert (metrics["actors"], metrics["nodes"], metrics["startup_s"], metrics["parity_canaries"]) == (3, 2, 3, 3)
    assert metrics["parity_rel_err"] == 3e-6
    assert metrics["compute_busy_share"] == pytest.approx(9 / 20)
    assert result["cluster"] == "2 on gpu (a GPU), 1 on gpu (another GPU); 2 machines"
    assert result["warnings"] == ["hot", "actors ran on different devices: gpu (a GPU), gpu (another GPU)"]
    assert sum(window["realtime_factor"] > 0 for window in result["series"]) == 3
    assert result["steady_started_at"] == 100


def test_examples_under_way_are_the_last_that_was_told_and_no_share_is_above_one(figures: ActorFigures) -> None:
    one, two = about(1), about(2)
    figures.meet(one)
    figures.meet(two)
    figures.take_progress(one, progress(100, 101, 300, 300))
    figures.take_progress(one, progress(100, 102, 850, 150))
    figures.take_progress(two, progress(100, 103, 7, 7))
    assert figures.examples_under_way == 157
    figures.take_shard(one, shard(1100))
    figures.take_progress(one, progress(100, 104, 1100, stages={"write": 5.5}, starved_s=9.0))
    assert figures.examples_under_way == 7
    figures.fill()
    assert figures.audio_s == 1100
    assert (
        figures._result["metrics"]["write_busy_share"] == figures._result["metrics"]["replica0_input_wait_share"] == 1
    )


def test_an_actor_that_died_before_it_told_anything_is_there_all_the_same(figures: ActorFigures) -> None:
    figures.meet(about(1))
    figures.take_progress(about(1), {})
    figures.fill()
    assert figures._result["cluster"] == "1 on gpu (a GPU); 1 machine"
    assert "realtime_factor" not in figures._result["metrics"]
