"""What a run's figures come to in words: pure decisions on made-up results."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from runner.cli.run import objective
from runner.config.schema import SavedModelConfig
from runner.contract.result import RunResult
from runner.reporting.advice import advise, rerun_command
from tests.results import make_result


def values(
    device: str = "cpu",
    memory: str = "balanced",
    precision: str = "float32",
    speed: float = 100.0,
    *,
    std: float | None = None,
    rss: float = 1000.0,
    **changes: Any,
) -> dict[str, Any]:
    metrics = {"realtime_factor": speed, "rss_peak_mib": rss, "steady_s": 60.0, "parity_rel_err": 1e-6}
    windows = [{"t_s": n, "realtime_factor": speed + 2 * (std or 0) * ((7 * n) % 11 / 10 - 0.5)} for n in range(60)]
    found: dict[str, Any] = {
        "run_name": f"{device}-{memory}-{precision}",
        "status": "finished",
        "config": {
            "device": {"name": device},
            "memory": {"name": memory, "host_limit_mib": 4096},
            "precision": {"name": precision},
            "frontend": {"hop_s": 0.96},
            "tracking": {"run_name": None},
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
        "throughput_series": [] if std is None else windows,
    }
    return found | changes


def result(*setting: Any, **changes: Any) -> RunResult:
    """See ``values``."""
    return make_result(values(*setting, **changes))


def savedmodel() -> RunResult:
    """A run of a model without bfloat16."""
    plain = result()
    model = SavedModelConfig(path="/model", sample_rate=16_000, window_s=0.975, hop_s=0.96)
    return replace(plain, info=replace(plain.info, config=replace(plain.info.config, model=model)))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (savedmodel(), "compute-bound: the CPU is used in full"),
        (result(bottleneck="decode"), "decode-bound: 2 decode processes for 1 CPU"),
        (result("gpu", "conservative", bottleneck="decode"), "memory=balanced"),
        (result("gpu", bottleneck="copy", resolved={"memory.pinned": False}), "page-locked"),
        (result(bottleneck="write"), "faster disk"),
        (result(), "precision=auto"),
        (result("gpu", metrics={"steady_s": 60.0, "replica0_input_wait_share": 0.5}), "waited 50% of the time"),
        (result(metrics={"steady_s": 0.5}), "embed more clips"),
    ],
)
def test_advice_names_what_limits_and_what_to_try(given: RunResult, words: str) -> None:
    advice = advise(given)
    assert advice is not None
    assert words in advice


def test_a_run_without_a_bottleneck_has_no_advice() -> None:
    assert advise(result(bottleneck=None)) is None


def test_the_command_of_a_job_leaves_out_what_makes_a_sweep() -> None:
    job = result(
        overrides=["device=cpu", "experiment=device_sweep", "experiment=speed_test", "hydra.sweeper.n_trials=3"]
    )
    assert rerun_command(job) == "python -m runner device=cpu experiment=speed_test"


def test_tuning_counts_a_run_beyond_its_memory_or_with_wrong_numbers_as_nothing() -> None:
    assert objective(result(speed=70)) == 70
    assert objective(result(speed=70, rss=5000)) == 0
    assert objective(result(speed=70, parity={"passed": False, "misses": []})) == 0
