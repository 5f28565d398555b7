"""What an actor takes of a cluster, and which cluster that is; without Ray."""

from __future__ import annotations

from typing import Any

import pytest

from runner.config.ray_address import address_of
from runner.config.schema import RayEngineConfig
from runner.config.validation import validate
from runner.core.errors import ConfigError
from runner.engines.ray.cluster import Seat, most_actors, seat_for
from tests.configs import make_config


def node(cpus: float, gpus: float = 0.0, *, alive: bool = True, **resources: float) -> dict[str, Any]:
    return {"Alive": alive, "Resources": {"CPU": cpus, **({"GPU": gpus} if gpus else {}), **resources}}


def planned(engine: RayEngineConfig, device: str, *nodes: dict[str, Any]) -> tuple[int, float, float]:
    """How many actors, and what each takes."""
    seat = seat_for(engine, device, nodes)
    return most_actors(engine, seat, nodes), seat.cpus, seat.gpus


def test_an_actor_for_every_gpu_or_for_every_machine() -> None:
    auto = RayEngineConfig()
    assert planned(auto, "cpu", node(8), node(8), node(4, alive=False)) == (2, 8, 0)
    assert planned(auto, "auto", node(32, 4)) == (4, 8, 1)
    assert planned(auto, "cpu", node(0), node(16), node(16)) == (2, 16, 0)
    assert planned(auto, "gpu", node(0), node(16, 2)) == (2, 8, 1)
    assert planned(auto, "cpu", node(32, 4)) == (1, 32, 0)
    assert planned(RayEngineConfig(num_cpus_per_actor=2), "cpu", node(8), node(4)) == (6, 2, 0)
    assert planned(RayEngineConfig(num_cpus_per_actor=0), "gpu", node(8, 2)) == (2, 0, 1)
    assert planned(RayEngineConfig(num_gpus_per_actor=0.5), "gpu", node(16, 1)) == (2, 8, 0.5)
    assert planned(RayEngineConfig(resources_per_actor={"spot": 1}), "cpu", node(4), node(8, spot=1)) == (1, 8, 0)


def test_so_many_actors_as_are_asked_for_whether_there_is_room_or_not() -> None:
    assert planned(RayEngineConfig(max_size=3), "cpu", node(8))[0] == 3
    assert planned(RayEngineConfig(min_size=4), "cpu", node(8))[0] == 4
    assert planned(RayEngineConfig(), "gpu", node(0)) == (1, 1, 1)  # of machines that an autoscaler will bring
    assert not Seat(1, 1).fits([node(8)])
    assert str(Seat(1, 0.5, {"spot": 1})) == "1 CPUs and 0.5 GPUs and 1 of spot"


def test_the_clusters_address_is_the_configured_one_or_the_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert address_of(RayEngineConfig()) is None
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")  # as a job has it that `ray job submit` sent
    assert address_of(RayEngineConfig()) == "10.0.0.1:6379"
    assert address_of(RayEngineConfig(address="head:6379")) == "head:6379"
    assert address_of(RayEngineConfig(address="local")) is None
    monkeypatch.setenv("RAY_ADDRESS", "http://head:8265")
    with pytest.raises(ConfigError, match=r"RAY_ADDRESS=http://head:8265 is .*`ray job submit`"):
        address_of(RayEngineConfig())


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("engine.address=ray://head:10001", r"engine\.address=ray://head:10001 is an address for Ray's clients"),
        ("engine.max_size=0", r"engine\.max_size=0 is not an option: use a whole number from 1"),
        ("engine.min_size=0", r"engine\.min_size=0 is not an option"),
        ("engine.wait_s=-1", r"engine\.wait_s=-1.* is too small"),
        ("engine.runtime_env=pip", r"engine\.runtime_env is not a mapping"),
        ("engine.resources_per_actor={spot:-1}", r"resources_per_actor\.spot=-1 is not an amount"),
        ("engine.runtime_env={env_vars:{AWS_SECRET_ACCESS_KEY:x}}", "has a secret, which would be stored with the run"),
    ],
)
def test_what_no_cluster_can_do_is_one_sentence(override: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        validate(make_config(["dataset=demo", "weights=random", "engine=ray", override]))


def test_mappings_of_any_names_can_be_given() -> None:
    own = ["engine.resources_per_actor={spot:1}", "engine.runtime_env={env_vars:{A:b},pip:[x]}"]
    engine = make_config(["dataset=demo", "weights=random", "engine=ray", *own]).engine
    assert isinstance(engine, RayEngineConfig)
    assert (engine.resources_per_actor, engine.runtime_env) == ({"spot": 1}, {"env_vars": {"A": "b"}, "pip": ["x"]})
