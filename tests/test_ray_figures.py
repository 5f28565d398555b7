"""Figures of many actors as one run's, from made-up reports."""

from __future__ import annotations

import io
from typing import Any

import pytest

from runner.cold_start import Events
from runner.ray_figures import ActorFigures


def actor(pid: int, role: str = "whole", node: str = "one", name: str = "a GPU") -> dict[str, Any]:
    device = {} if role == "decode" else {"device": {"effective": "gpu", "name": name}}
    metrics = {"cold_start_s": float(pid), "parity_rel_err": pid / 1e6}
    return {"role": role, "host": "host", "node": node, "pid": pid, "metrics": metrics, "warnings": [], **device}


def filled(reports: list[dict[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {"warnings": [], "metrics": {}}
    figures = ActorFigures(Events(io.StringIO()), result)
    for report in reports:
        figures.take(report)
    figures.fill()
    return result


def work(who: dict[str, Any], began: float, ended: float, examples: int, **more: Any) -> dict[str, Any]:
    counts = {"clips": examples / 10, "examples": examples, "audio_s": float(examples)}
    return {"actor": who, "began": began, "ended": ended, **counts, **more}


def test_speeds_are_added_up_by_actor_and_by_machine() -> None:
    one, two, three = actor(1), actor(2, node="two"), actor(3, node="two", name="another GPU")
    reports = [
        *(work(one, 100, 110, 1000, stages={"compute": 9.0}, starved_s=1.0), work(two, 102, 108, 900)),
        *(work(one, 110, 120, 1000), work(three, 100, 120, 100)),
    ]
    result = filled(reports)
    metrics = result["metrics"]
    assert metrics["audio_x_realtime"] == pytest.approx(3000 / 20)
    assert [metrics[f"node{n}_audio_x_realtime"] for n in (0, 1)] == pytest.approx([2000 / 20, 1000 / 20])
    assert [metrics[f"actor{n}_audio_x_realtime"] for n in (0, 1, 2)] == pytest.approx([100, 150, 5])
    assert (metrics["actors"], metrics["nodes"], metrics["cold_start_s"]) == (3, 2, 3)
    assert metrics["parity_rel_err"] == 3e-6
    assert result["cluster"] == "2 on gpu (a GPU), 1 on gpu (another GPU); 2 machines"
    assert result["warnings"] == ["actors ran on different devices: gpu (a GPU), gpu (another GPU)"]
    assert sum(window["audio_x_realtime"] > 0 for window in result["series"]) == 3
    assert result["steady_started_at"] == 100


def test_examples_under_way_are_those_of_unfinished_clips_and_no_share_is_above_one() -> None:
    result: dict[str, Any] = {"warnings": [], "metrics": {}}
    figures = ActorFigures(Events(io.StringIO()), result)
    for began, examples, under_way in ((100, 0, 300), (101, 0, 250), (102, 700, -150)):
        figures.take(work(actor(1), began, began + 1, examples, under_way=under_way, stages={"write": 1.5}))
    figures.take(work(actor(2), 100, 103, 0, under_way=7, starved_s=9.0))
    assert figures.examples_under_way == 407
    figures.take(work(actor(1), 103, 104, 400, under_way=-407))
    assert figures.examples_under_way == 0
    figures.fill()
    assert figures.audio_s == 1100
    assert result["metrics"]["write_busy_share"] == result["metrics"]["lane1_starved_share"] == 1


def test_calls_that_overlap_are_not_counted_twice() -> None:
    one = actor(1)
    result = filled([work(one, 100, 110, 500), work(one, 105, 120, 500), work(one, 112, 119, 0)])
    assert result["metrics"]["actor0_audio_x_realtime"] == pytest.approx(1000 / 20)


def test_no_run_is_faster_than_its_decoding_though_that_began_before_sessions_were_ready() -> None:
    decoding, embedding = actor(1, "decode"), actor(2, "embed")

    def seconds(*each: float) -> dict[str, Any]:
        decoded = [
            {"actor": decoding, "began": at - 1, "ended": at, "stages": {"decode": spent}}
            for at, spent in zip((90, 95, 104), each, strict=True)
        ]
        return filled([*decoded, work(embedding, 100, 110, 1000)])

    result = seconds(1, 2, 3)
    assert result["metrics"]["audio_x_realtime"] == pytest.approx(1000 / 10)
    assert result["metrics"]["decode_busy_share"] == pytest.approx(3 / 10)  # of the steady state alone
    assert result["cluster"] == "1 on gpu (a GPU), 1 decoding; 1 machine"
    assert seconds(8, 9, 3)["metrics"]["audio_x_realtime"] == pytest.approx(1000 / 20)
