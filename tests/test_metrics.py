"""The table of metrics: each once, as docs/measuring.md has it, with a direction that decides which run is better."""

from __future__ import annotations

import math

import pytest

from runner.metrics import METRICS, Direction, as_markdown, in_order, known_metric, metric_of
from tests.conftest import PROJECT


def test_the_documentation_has_the_table() -> None:
    assert as_markdown() in (PROJECT / "docs" / "measuring.md").read_text(encoding="utf-8"), (
        "docs/measuring.md: put in what  python -m runner.metrics  prints"
    )


def test_every_metric_is_declared_once() -> None:
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names)
    assert all(metric.meaning for metric in METRICS)


@pytest.mark.parametrize(
    ("name", "direction"),
    [
        ("examples_per_s", Direction.HIGHER),
        ("cold_start_s", Direction.LOWER),
        ("parity_min_cosine", Direction.HIGHER),
        ("joules_per_audio_hour", Direction.LOWER),
        ("audio_s", Direction.NEUTRAL),
        ("lane3_starved_share", Direction.LOWER),
        ("node12_audio_x_realtime", Direction.HIGHER),
    ],
)
def test_the_direction_is_declared_and_not_guessed(name: str, direction: Direction) -> None:
    assert known_metric(name).direction is direction


def test_what_is_not_declared_is_none() -> None:
    assert metric_of("laneN0_starved_share") is None
    assert metric_of("batch_ms_p51") is None


def test_goodness_is_below_one_for_the_worse_value() -> None:
    speed, time = known_metric("audio_x_realtime"), known_metric("cold_start_s")
    assert speed.goodness(50, 100) == 0.5
    assert time.goodness(200, 100) == 0.5
    assert time.goodness(0, 0) == 1.0
    assert time.goodness(1, 0) == 0.0
    assert speed.goodness(1, 0) == math.inf
    assert not speed.goodness(math.nan, 1) >= 0.5


def test_what_people_compare_by_comes_first() -> None:
    names = list(in_order({"lane0_starved_share": 1, "own": 2, "cold_start_s": 3, "audio_x_realtime": 4}))
    assert names == ["audio_x_realtime", "cold_start_s", "lane0_starved_share", "own"]
