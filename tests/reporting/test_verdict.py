"""Which of a sweep's settings is chosen, how sure that is, and what is said of it: made-up results."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from runner.config.schema import VGGishConfig
from runner.contract.result import RunResult
from runner.reporting.comparability import REPEATS, model_label
from runner.reporting.verdict import contests, only_contest, verdict
from tests.reporting.test_advice import result, values
from tests.results import make_result, with_config, with_metrics, with_model
from tests.toy_model import ToyModel


def repeated(passes: list[float], **changes: Any) -> RunResult:
    found = values(**changes)
    found["repeats"] = {"passes": [{"realtime_factor": speed} for speed in passes]}
    found["metrics"][REPEATS] = sum(passes) / len(passes)
    return make_result(found)


def chosen(results: list[RunResult]) -> RunResult:
    return only_contest(results).chosen.best


def test_the_baseline_is_the_fastest_float32_run_on_the_cpu_else_the_slowest() -> None:
    slow, fast, gpu = result(speed=50), result(memory="greedy", speed=60), result("gpu", precision="float16", speed=9e4)
    assert only_contest([slow, fast, gpu]).baseline.best is fast
    assert only_contest([gpu, result("gpu", speed=1e4)]).baseline.speed == 1e4
    assert only_contest([result(status="failed")]) is None


def test_what_is_within_noise_is_not_called_the_fastest() -> None:
    one = repeated([175.0, 168.0, 171.0, 165.0, 173.0], memory="balanced")
    same = repeated([152.0, 178.0, 163.0, 149.0, 176.0], memory="greedy")
    text = verdict([one, same])
    assert "the fastest" not in text
    assert "No measurable difference: cpu-balanced-float32 170 (" in text
    assert ", cpu-greedy-float32 164 (" in text


def test_a_difference_has_an_interval() -> None:
    fast = repeated([200.0, 204.0, 198.0, 202.0, 199.0], memory="greedy")
    slow = repeated([100.0, 103.0, 99.0, 101.0, 98.0], memory="balanced")
    text = verdict([slow, fast])
    assert "cpu-greedy-float32 is the fastest: 201 (19" in text
    assert "2.00 (1.9" in text
    assert "Compared by repeated passes; in brackets 95 % intervals" in text


def test_what_was_measured_once_is_said_to_be() -> None:
    text = verdict([result(memory="greedy", speed=110), result(speed=100)])
    assert "1.10 × cpu-balanced-float32, measured once: that may be chance" in text
    assert "Compared by first passes, some too short for an interval: profile.repeat_s=10 repeats them." in text


def test_without_a_measurable_difference_the_run_that_takes_clearly_less_memory_is_chosen() -> None:
    fast = result(memory="greedy", speed=100, std=9, rss=2000)
    light = result(memory="conservative", speed=99, std=9, rss=1200)
    far = result(memory="balanced", speed=50, std=5, rss=1000)
    assert chosen([fast, light, far]) is light
    assert chosen([fast, with_metrics(light, rss_peak_mib=1900.0)]) is fast
    assert "Use cpu-conservative-float32, which takes less memory" in verdict([fast, light, far])


def test_another_workload_has_a_line_and_no_rank() -> None:
    jobs = [result(speed=hop * 100, run_name=f"cpu-balanced-float32 hop_s={hop}") for hop in (0.48, 1.92)]
    jobs = [with_config(job, frontend={"hop_s": hop}) for job, hop in zip(jobs, (0.48, 1.92), strict=True)]
    text = verdict(jobs)
    assert "the fastest" not in text
    assert "hop_s=1.92 with cpu-balanced-float32 hop_s=0.48, because frontend.hop_s is 1.92, not 0.48" in text
    assert only_contest(jobs) is None


def test_each_model_has_a_verdict_of_its_own() -> None:
    jobs = [
        with_model(result(memory=memory, speed=speed, run_name=f"{model.name} {memory}"), model)
        for model in (VGGishConfig(), ToyModel())
        for memory, speed in (("greedy", 100.0), ("balanced", 50.0))
    ]
    text = verdict(jobs)
    assert "vggish greedy is the fastest: 100 × realtime" in text
    assert "toy greedy is the fastest: 100 × realtime" in text
    assert "with vggish greedy, vggish balanced, because model is toy, not vggish." in text


def test_the_algorithm_of_a_model_is_no_other_workload() -> None:
    assert model_label({"model.name": "vggish", "model.conv": "direct"}) == model_label({}) == "vggish"
    params = {"model.name": "of a plug-in", "model.path": "/models/a", "model.layer": "4", "frontend.hop_s": "1"}
    assert model_label(params) == "of a plug-in layer=4"


@pytest.mark.slow
def test_rounds_are_taken_together() -> None:
    jobs = []
    for number, (a, b) in enumerate(((100.0, 80.0), (140.0, 112.0), (120.0, 96.0)), 1):
        for memory, speed in (("greedy", a), ("balanced", b)):
            swept, name = {"memory": memory, "profile.round": str(number)}, f"cpu-{memory}-float32 round={number}"
            jobs.append(result(memory=memory, speed=speed, swept=swept, run_name=name))
    found = only_contest(jobs)
    assert [(each.name, each.speed, len(each.results)) for each in found.variants] == [
        ("cpu-greedy-float32", 120.0, 3),
        ("cpu-balanced-float32", 96.0, 3),
    ]
    assert "No measurable difference" in verdict(jobs)  # what differs between rounds is more than between settings
    assert "round" not in verdict(jobs).splitlines()[-1]


def test_the_verdict_is_a_few_lines_that_end_in_a_command() -> None:
    disturbed = with_metrics(result(memory="conservative", speed=90.6), background_cpu_share=0.6)
    jobs = [result(speed=100, std=2), result("gpu", "greedy", "float16", 50_000, std=500), disturbed]
    lines = verdict(jobs).splitlines()
    assert len(lines) == 5
    assert "gpu-greedy-float16 is the fastest: 50,000 (" in lines[0]
    assert "500.00 (" in lines[0]
    assert lines[1].startswith("gpu-greedy-float16: limited by compute, 1,000 MiB, its numbers passed the parity gate")
    assert lines[3] == "Not ranked: cpu-conservative-float32 (other programs took 60% of the processors)."
    assert lines[4] == "Use it: python -m runner device=gpu memory=greedy"
    assert "No run" in verdict([result(status="failed")])


def test_on_a_machine_that_was_always_busy_the_verdict_says_so() -> None:
    settings = ((50.0, "balanced"), (60.0, "greedy"))
    busy = [with_metrics(result(memory=memory, speed=speed), background_cpu_share=0.5) for speed, memory in settings]
    assert chosen(busy) is busy[1]
    assert "other programs took 50% of the processors: measure again when the machine is idle" in verdict(busy)
    assert "measure again" not in verdict([*busy, result(speed=10.0)])


def test_parts_of_a_data_set_are_put_together_and_not_ranked() -> None:
    parts = [
        with_config(result(run_dir=f"s3://bucket/sweep/{number}"), dataset={"partition": f"{number + 1}/2"})
        for number in (0, 1)
    ]
    assert verdict(parts).endswith("python -m runner merge s3://bucket/sweep/0 s3://bucket/sweep/1 --output FOLDER")
    assert contests(parts) == ([], [])
    parts[1] = replace(parts[1], status="interrupted")
    assert "give the same command again" in verdict(parts)
