"""Intervals: as wide as the noise, the same each time; the ratio of a setting to itself covers one."""

from __future__ import annotations

import numpy as np
import pytest

from runner.contract.result import Repeats, RunStats, WorkerResult
from runner.reporting.comparability import FIRST_PASS, REPEATS
from runner.reporting.intervals import blocks_of, interval, interval_metrics, of_windows, ratio


def noisy(seed: int, mean: float, std: float, count: int) -> list[float]:
    return [float(value) for value in np.random.default_rng(seed).normal(mean, std, count)]


def test_the_same_figures_give_the_same_interval() -> None:
    blocks = [noisy(0, 100, 5, 9)]
    low, high = interval(100.0, blocks)
    assert interval(100.0, blocks) == (low, high)
    assert 90 < low < 100 < high < 110


def test_of_three_blocks_it_is_all_that_they_reach() -> None:
    assert interval(100.0, [[90.0, 100.0, 110.0]]) == pytest.approx((90.0, 110.0))


@pytest.mark.parametrize("blocks", [[], [[]], [[100.0, 101.0]], [[100.0], [110.0]]])
def test_too_few_blocks_have_none(blocks: list[list[float]]) -> None:
    assert interval(100.0, blocks) is None
    assert ratio(100.0, blocks, 100.0, [[90.0, 100.0, 110.0]]) is None


@pytest.mark.parametrize("count", [5, 9])
def test_one_setting_against_itself_is_seldom_told_apart(count: int) -> None:
    apart = 0
    for seed in range(100):
        one, other = noisy(seed, 100, 5, count), noisy(1000 + seed, 100, 5, count)
        low, high = ratio(np.mean(one), [one], np.mean(other), [other])
        apart += not low <= 1 <= high
    assert apart <= 10  # 5 expected


def test_what_is_clearly_faster_is_told_apart() -> None:
    one, other = noisy(1, 130, 4, 5), noisy(2, 100, 4, 5)
    low, high = ratio(np.mean(one), [one], np.mean(other), [other])
    assert 1.15 < low < 1.3 < high < 1.45


def test_rounds_count_what_differs_between_them() -> None:
    steady = [[100.0, 101.0, 99.0]] * 3
    drifting = [[80.0, 81.0, 79.0], [100.0, 101.0, 99.0], [120.0, 121.0, 119.0]]
    narrow, wide = interval(100.0, steady), interval(100.0, drifting)
    assert wide[0] < 82 < narrow[0] < 100 < narrow[1] < 118 < wide[1]


def test_windows_come_to_blocks_without_the_warm_up() -> None:
    assert of_windows([100.0] * 29) == ()
    assert of_windows([1.0] * 10 + [100.0] * 90) == pytest.approx((100.0,) * 9)
    assert of_windows([50.0] * 20 + [100.0, 300.0] * 90)[1] == pytest.approx(150.0)  # as time adds up, not speed


def test_a_run_logs_the_ends_of_what_it_measured() -> None:
    windows, passes = ([{"realtime_factor": speed} for speed in noisy(*of)] for of in ((3, 90, 5, 60), (4, 200, 5, 5)))
    result = WorkerResult(
        status="finished",
        metrics={FIRST_PASS: 100.0, REPEATS: 200.0},
        stats=RunStats(throughput_series=windows),
        repeats=Repeats(passes),
    )
    found = interval_metrics(result)
    assert found["realtime_factor_low"] < 100 < found["realtime_factor_high"]
    assert found["repeat_realtime_factor_mean_low"] < 200 < found["repeat_realtime_factor_mean_high"]
    assert blocks_of(result, "startup_s") == ()
    assert interval_metrics(WorkerResult(status="failed")) == {}
