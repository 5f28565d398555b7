"""What a run's figures come to in words, and which of a sweep's runs is chosen: pure decisions on made-up results."""

from __future__ import annotations

from typing import Any

import pytest

from runner.advice import advise, baseline, best, command, objective, trouble, verdict


def result(
    device: str = "cpu",
    memory: str = "balanced",
    precision: str = "float32",
    speed: float = 100.0,
    *,
    std: float | None = None,
    rss: float = 1000.0,
    **changes: Any,
) -> dict[str, Any]:
    metrics = {"audio_x_realtime": speed, "rss_peak_mib": rss, "steady_s": 60.0, "parity_rel_err": 1e-6}
    metrics |= {} if std is None else {"window_audio_x_realtime_std": std}
    found: dict[str, Any] = {
        "run_name": f"{device}-{memory}-{precision}",
        "status": "finished",
        "config": {
            "device": {"name": device},
            "memory": {"name": memory, "host_memory_mib": 4096},
            "precision": {"name": precision},
        },
        "overrides": [f"device={device}", f"memory={memory}", "output.dir=/somewhere"],
        "device": {"effective": device, "name": device, "fallback_reason": None},
        "precision": {"effective": precision},
        "parity": {"passed": True, "misses": []},
        "dataset": {"digest": "d"},
        "weights": {"checksum": "w"},
        "resolved": {"memory.decode_workers": 2},
        "bottleneck": "compute",
        "metrics": metrics,
    }
    return found | changes


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (result(bottleneck="decode"), "decode-bound: 2 decode processes for 1 CPU"),
        (result("gpu", "conservative", bottleneck="decode"), "memory=balanced"),
        (result("gpu", bottleneck="copy", resolved={"memory.pinned": False}), "page-locked"),
        (result(bottleneck="write"), "faster disk"),
        (result(), "precision=auto"),
        (result("gpu", metrics={"steady_s": 60.0, "lane0_starved_share": 0.5}), "waited 50% of the time"),
        (result(metrics={"steady_s": 0.5}), "embed more clips"),
    ],
)
def test_advice_names_what_limits_and_what_to_try(given: dict[str, Any], words: str) -> None:
    advice = advise(given)
    assert advice is not None
    assert words in advice


def test_a_run_without_a_bottleneck_has_no_advice() -> None:
    assert advise(result(bottleneck=None)) is None


def test_the_baseline_is_the_fastest_float32_run_on_the_cpu_else_the_slowest() -> None:
    slow, fast, gpu = result(speed=50), result(memory="greedy", speed=60), result("gpu", precision="float16", speed=9e4)
    assert baseline([slow, fast, gpu]) is fast
    assert baseline([gpu, result("gpu", speed=1e4)])["metrics"]["audio_x_realtime"] == 1e4
    assert baseline([result(status="failed")]) is None


def test_within_the_spread_the_run_that_takes_clearly_less_memory_is_chosen() -> None:
    fast = result(memory="greedy", speed=100, std=5, rss=2000)
    light = result(memory="conservative", speed=97, std=5, rss=1200)
    far = result(memory="balanced", speed=90, std=5, rss=1000)
    assert best([fast, light, far]) is light
    assert best([fast, {**light, "metrics": {**light["metrics"], "rss_peak_mib": 1900.0}}]) is fast
    assert "greedy-float32 is no faster than its spread" in verdict([fast, light, far])


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"status": "killed"}, "killed"),
        ({"parity": {"passed": False, "misses": ["x"]}}, "failed parity"),
        ({"dataset": {"digest": "other"}}, "another data set"),
        ({"weights": {"checksum": "other"}}, "other weights"),
        ({"device": {"effective": "cpu", "fallback_reason": "no driver"}}, "was absent"),
        ({"metrics": {"audio_x_realtime": 1.0, "others_cpu_share": 0.6}}, "other programs took 60%"),
        ({"metrics": {}}, "no throughput"),
    ],
)
def test_runs_that_must_not_be_ranked(changes: dict[str, Any], why: str) -> None:
    assert any(why in each for each in trouble(result() | changes, result()))
    assert trouble(result(), result()) == []


def test_the_verdict_is_a_sentence_with_a_command() -> None:
    text = verdict([result(speed=100, std=2), result("gpu", "greedy", "float16", 50_000, std=500)])
    assert "gpu-greedy-float16 is the fastest: 50,000 × realtime ± 1%" in text
    assert "500.00 × cpu-balanced-float32" in text
    assert "limited by compute" in text
    assert "passed the parity gate" in text
    assert text.endswith("python -m runner device=gpu memory=greedy")
    assert "No run" in verdict([result(status="failed")])


def test_the_command_of_a_job_leaves_out_what_makes_a_sweep() -> None:
    job = result(
        overrides=["device=cpu", "experiment=device_sweep", "experiment=speed_test", "hydra.sweeper.n_trials=3"]
    )
    assert command(job) == "python -m runner device=cpu experiment=speed_test"


def test_tuning_counts_a_run_beyond_its_memory_or_with_wrong_numbers_as_nothing() -> None:
    assert objective(result(speed=70)) == 70
    assert objective(result(speed=70, rss=5000)) == 0
    assert objective(result(speed=70, parity={"passed": False, "misses": []})) == 0


def test_on_a_machine_that_was_always_busy_the_verdict_says_so() -> None:
    busy = [result(speed=speed) for speed in (50.0, 60.0)]
    for each in busy:
        each["metrics"]["others_cpu_share"] = 0.5
    assert best(busy) is busy[1]
    assert "other programs took 50% of the processors: measure again when the machine is idle" in verdict(busy)
    idle = result(speed=10.0)
    assert best([*busy, idle]) is idle
    assert "measure again" not in verdict([*busy, idle])


def test_parts_of_a_data_set_are_put_together_and_not_ranked() -> None:
    parts = [result(run_dir=f"s3://bucket/sweep/{number}") for number in (0, 1)]
    for number, part in enumerate(parts, 1):
        part["config"]["dataset"] = {"partition": f"{number}/2"}
    assert verdict(parts).endswith("python -m runner.merge s3://bucket/sweep/0 s3://bucket/sweep/1 --output FOLDER")
    assert best(parts) is None
    parts[1]["status"] = "killed"
    assert "give the same command again" in verdict(parts)
