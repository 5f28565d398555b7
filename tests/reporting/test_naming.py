"""Names: what a sweep sweeps tells its jobs apart, and nothing else does."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import open_dict

from runner.config.composition import expand_sweep, register
from runner.config.params import config_params
from runner.config.schema import AutoWeights, FolderDataset, RunConfig, VGGishConfig
from runner.contract.result import Startup
from runner.core.paths import conf_dir
from runner.reporting.naming import run_name, swept_of, swept_settings, variant_name
from tests.results import make_result


def config(**groups: dict) -> RunConfig:
    run = RunConfig(model=VGGishConfig(), weights=AutoWeights(), dataset=FolderDataset(root="/data/a"))
    return replace(run, **{key: replace(getattr(run, key), **value) for key, value in groups.items()})


def settings_of(configs: list[RunConfig]) -> dict[str, list[str]]:
    return swept_settings([config_params(each) for each in configs])


def named(tmp_path: Path, configs: list[RunConfig], startup: Startup | None = None) -> list[str]:
    path = tmp_path / "sweep.json"
    path.write_text(json.dumps({"swept": settings_of(configs)}))
    return [run_name(each, swept_of(config_params(each), path), startup) for each in configs]


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        ([{"frontend": {"hop_s": 0.48}}, {"frontend": {"hop_s": 1.92}}], ["hop_s=0.48", "hop_s=1.92"]),
        ([{"dataset": {"root": "/x/a"}}, {"dataset": {"root": "/x/b"}}], ["root=a", "root=b"]),
        ([{"dataset": {"root": "/x/clips"}}, {"dataset": {"root": "/y/clips"}}], ["root=x/clips", "root=y/clips"]),
        ([{"memory": {"batch_size": 64}}, {"memory": {"batch_size": 128}}], ["batch_size=64", "batch_size=128"]),
        ([{"dataset": {"partition": "1/2"}}, {"dataset": {"partition": "2/2"}}], ["partition=1/2", "partition=2/2"]),
        ([{"profile": {"round": 1}}, {"profile": {"round": 2}}], ["round=1", "round=2"]),
    ],
)
def test_jobs_are_told_apart_by_what_was_swept(tmp_path: Path, groups: list[dict], words: list[str]) -> None:
    found = named(tmp_path, [config(**each) for each in groups])
    assert [name.partition(" ")[2] for name in found] == words


def test_what_the_name_says_anyway_is_not_said_twice(tmp_path: Path) -> None:
    jobs = [config(memory={"name": name}, output={"dir": f"/{name}"}) for name in ("balanced", "greedy")]
    assert [name.split("-")[1] for name in named(tmp_path, jobs)] == ["balanced", "greedy"]
    assert not any(" " in name for name in named(tmp_path, jobs))


def test_what_was_asked_for_is_said_where_the_same_took_effect(tmp_path: Path) -> None:
    jobs = [config(precision={"name": name}) for name in ("auto", "bfloat16")]
    found = named(tmp_path, jobs, make_result({"precision": {"effective": "bfloat16"}, "device": {}}).startup)
    assert found == ["cpu-balanced-bfloat16 precision=auto", "cpu-balanced-bfloat16"]


def test_of_settings_that_change_together_one_is_said() -> None:
    jobs = [config(memory={"name": n, "queue_depth": q}) for n, q in (("balanced", 4), ("greedy", 8))]
    assert settings_of(jobs) == {"memory.name": ["balanced", "greedy"]}
    crossed = [config(memory={"name": n, "queue_depth": q}) for n in ("balanced", "greedy") for q in (4, 8)]
    assert list(settings_of(crossed)) == ["memory.name", "memory.queue_depth"]


def test_a_name_of_ones_own_is_told_apart_too(tmp_path: Path) -> None:
    jobs = [config(memory={"name": name}, tracking={"run_name": "mine"}) for name in ("balanced", "greedy")]
    assert named(tmp_path, jobs) == ["mine memory=balanced", "mine memory=greedy"]


def test_a_run_by_itself_has_its_setting_alone() -> None:
    assert swept_of(config_params(config()), None) == {}
    assert " " not in run_name(config(), {})


def test_rounds_are_one_variant(tmp_path: Path) -> None:
    path = tmp_path / "sweep.json"
    jobs = [config(profile={"round": n}, memory={"queue_depth": q}) for n in (1, 2) for q in (4, 8)]
    path.write_text(json.dumps({"swept": settings_of(jobs)}))
    results = []
    for job in jobs:
        swept = swept_of(config_params(job), path)
        results.append(make_result({"config": asdict(job), "swept": swept, "run_name": run_name(job, swept)}))
    assert len({each.info.run_name for each in results}) == 4
    assert [variant_name(each).partition(" ")[2] for each in results] == ["queue_depth=4", "queue_depth=8"] * 2


@pytest.mark.slow
@pytest.mark.parametrize("experiment", ["memory_sweep", "batch_sweep", "device_sweep"])
def test_rounds_of_an_experiment_come_in_turns(experiment: str) -> None:
    register()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose("config", [f"experiment={experiment}"], return_hydra_config=True)
        with open_dict(config):
            config.hydra.overrides.task = [f"experiment={experiment}", "profile.round=1,2"]
            swept = config.hydra.sweeper.params
            swept.update({key: ",".join(str(values).split(",")[:2]) for key, values in swept.items()})
        jobs = expand_sweep(config)
    half = len(jobs) // 2
    assert [job.profile.round for job in jobs] == [1] * half + [2] * half
    assert half > 1
