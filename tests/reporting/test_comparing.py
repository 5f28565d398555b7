"""Which runs are ranked beside which: one rule, on made-up results."""

from __future__ import annotations

from typing import Any

import pytest

from runner.contract.result import RunResult
from runner.reporting.comparability import FIRST_PASS, REPEATS, compare, difference, exclusion_reasons, facts_of_result
from tests.reporting.test_advice import result, values
from tests.results import make_result, with_metrics


def repeated(speed: float, mean: float, **metrics: float) -> RunResult:
    return with_metrics(result(speed=speed), **{REPEATS: mean, **metrics})


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"status": "interrupted"}, "interrupted"),
        ({"parity": {"passed": False, "misses": ["x"]}}, "failed parity"),
        ({"device": {"effective": "cpu", "fallback_reason": "no driver"}}, "was absent"),
        ({"metrics": {"realtime_factor": 1.0, "background_cpu_share": 0.6}}, "other programs took 60%"),
        ({"metrics": {}}, "no realtime_factor"),
        ({"metrics": {"realtime_factor": float("nan")}}, "realtime_factor is nan"),
        (
            {"attempt": 2, "metrics": {"realtime_factor": 1.0, "clips_embedded": 90.0, "attempt_clips": 12.0}},
            "resumed: its metrics are of attempt 2 alone (12 of 90 clips)",
        ),
    ],
)
def test_runs_that_must_not_be_ranked(changes: dict[str, Any], why: str) -> None:
    assert any(why in each for each in exclusion_reasons(facts_of_result(make_result(values() | changes)), FIRST_PASS))
    assert exclusion_reasons(facts_of_result(result()), FIRST_PASS) == []


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"dataset": {"digest": "e" * 32}}, "data set is eeeeeeeeeeee, not d"),
        ({"weights": {"checksum": "x"}}, "weights is x, not w"),
        ({"config": {**values()["config"], "frontend": {"hop_s": 0.48}}}, "frontend.hop_s is 0.48, not 0.96"),
    ],
)
def test_another_workload_is_ranked_by_itself_and_said(changes: dict[str, Any], why: str) -> None:
    same = [result(speed=1.0), result(speed=2.0)]
    other = make_result(values(speed=900.0) | changes)
    first, second = compare([other, *same], facts_of_result).rankings
    assert [list(first.ranked), list(second.ranked)] == [same[::-1], [other]]
    assert difference(second.workload, first.workload) == why


def test_repeats_are_compared_with_repeats_alone() -> None:
    slow, fast = repeated(100, 50), repeated(90, 60)
    assert compare([slow, fast], facts_of_result).rankings[0].ranked == (fast, slow)
    once = result(speed=95)
    found = compare([slow, fast, once], facts_of_result).rankings[0]
    assert (found.metric, found.ranked) == (FIRST_PASS, (slow, once, fast))


def test_the_load_that_counts_is_that_of_the_passes_that_are_ranked() -> None:
    disturbed = repeated(100, 78, background_cpu_share=0.0, repeat_background_cpu_share=0.6)
    calm = repeated(90, 90.6, background_cpu_share=0.6, repeat_background_cpu_share=0.0)
    found = compare([disturbed, calm], facts_of_result)
    assert found.rankings[0].ranked == (calm,)
    assert found.excluded == ((disturbed, ("other programs took 60% of the processors",)),)
    assert compare([disturbed, calm], facts_of_result, FIRST_PASS).rankings[0].ranked == (disturbed,)


def test_runs_of_a_busy_machine_are_ranked_where_there_are_no_others() -> None:
    busy = [with_metrics(result(speed=speed), background_cpu_share=0.5) for speed in (50.0, 60.0)]
    found = compare(busy, facts_of_result)
    assert found.rankings[0].ranked == (busy[1], busy[0])
    assert found.rankings[0].caveats == ("other programs took 50% of the processors",)
    idle = result(speed=10.0)
    found = compare([*busy, idle], facts_of_result)
    assert (found.rankings[0].ranked, found.rankings[0].caveats) == ((idle,), ())
    assert [run for run, _ in found.excluded] == busy


def test_less_is_better_where_the_metric_says_so() -> None:
    slow, quick = (with_metrics(result(), startup_s=seconds) for seconds in (9.0, 4.0))
    assert compare([slow, quick], facts_of_result, "startup_s").rankings[0].ranked == (quick, slow)
