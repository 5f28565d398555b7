"""The table of metrics: each once, with a direction that decides which run is better."""

from __future__ import annotations

import math

import pytest

from runner.core.metrics import METRICS, Direction, in_order, metric_of, require_metric


def test_every_metric_is_declared_once() -> None:
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names)
    assert all(metric.meaning for metric in METRICS)


@pytest.mark.parametrize(
    ("name", "direction"),
    [
        ("examples_per_s", Direction.HIGHER),
        ("startup_s", Direction.LOWER),
        ("parity_min_cosine", Direction.HIGHER),
        ("joules_per_audio_hour", Direction.LOWER),
        ("audio_s", Direction.NEUTRAL),
        ("replica3_input_wait_share", Direction.LOWER),
        ("node12_realtime_factor", Direction.HIGHER),
    ],
)
def test_the_direction_is_declared_and_not_guessed(name: str, direction: Direction) -> None:
    assert require_metric(name).direction is direction


def test_what_is_not_declared_is_none() -> None:
    assert metric_of("replicaN0_input_wait_share") is None
    assert metric_of("batch_ms_p51") is None


def test_goodness_is_below_one_for_the_worse_value() -> None:
    speed, time = require_metric("realtime_factor"), require_metric("startup_s")
    assert speed.goodness(50, 100) == 0.5
    assert time.goodness(200, 100) == 0.5
    assert time.goodness(0, 0) == 1.0
    assert time.goodness(1, 0) == 0.0
    assert speed.goodness(1, 0) == math.inf
    assert not speed.goodness(math.nan, 1) >= 0.5


def test_what_people_compare_by_comes_first() -> None:
    names = list(in_order({"replica0_input_wait_share": 1, "own": 2, "startup_s": 3, "realtime_factor": 4}))
    assert names == ["realtime_factor", "startup_s", "replica0_input_wait_share", "own"]
