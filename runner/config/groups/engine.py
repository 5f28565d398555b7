"""``engine=``: one machine, or a Ray cluster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from runner.config.checks import at_least, one_of, whole_number
from runner.config.credentials import check_free_of_credentials
from runner.core.errors import ConfigError

AUTO = "auto"


@dataclass
class EngineConfig:
    """The worker of this machine, with a process for each GPU where there are several (``device.index=all``)."""

    name: str = "local"
    """local or ray."""

    shutdown_timeout_s: float = 30.0
    """Seconds for the shards in progress after Ctrl-C or SIGTERM; a scheduler must wait longer before it kills."""

    def __post_init__(self) -> None:
        one_of("engine.name", self.name, ("local", "ray"))
        at_least("engine.shutdown_timeout_s", self.shutdown_timeout_s, 0)


@dataclass
class RayEngineConfig(EngineConfig):
    """Actors on a Ray cluster (extra: ray), one per GPU or machine; each must reach the data and ``output.dir``."""

    name: str = "ray"
    """local or ray."""

    address: str | None = None
    """host:port of the cluster, or local; null: RAY_ADDRESS, else a Ray that is started here and stopped afterwards."""

    min_size: int = 1
    """Actors that are requested whether there is room for them or not, so that an autoscaler adds machines."""

    max_size: Any = AUTO
    """Most actors at a time; auto: one for every GPU, or every machine, that is there or joins."""

    num_cpus_per_actor: float | None = None
    """CPUs of an actor; null: those of its machine, shared by the machine's GPUs."""

    num_gpus_per_actor: float | None = None
    """GPUs of an actor; null: 1 on GPUs, 0 on CPUs. 0.5: two actors share a GPU, each with half of its memory."""

    resources_per_actor: Any = None
    """Ray's custom resources, by name: ``{spot: 1}``."""

    runtime_env: Any = None
    """Ray's environment of the actors, as ``{pip: [...], env_vars: {...}}``; no credentials, since it is stored."""

    wait_s: float = 600.0
    """Seconds that a run without any actor waits for a machine that has room for one; autoscalers take minutes."""

    dashboard: bool = False
    """Start Ray's dashboard with a Ray that is started here; needs ray[default]."""

    def __post_init__(self) -> None:
        super().__post_init__()
        whole_number("engine.min_size", self.min_size, 1, "or leave it out")
        if self.max_size != AUTO:
            whole_number("engine.max_size", self.max_size, self.min_size, "which is engine.min_size, or auto")
        for key in ("num_cpus_per_actor", "num_gpus_per_actor"):
            if getattr(self, key) is not None:
                at_least(f"engine.{key}", getattr(self, key), 0)
        for key in ("resources_per_actor", "runtime_env"):
            if not isinstance(getattr(self, key) or {}, dict):
                raise ConfigError(f"engine.{key} is not a mapping: give it as 'engine.{key}={{name:value}}'")
        for name, amount in (self.resources_per_actor or {}).items():
            if not isinstance(amount, int | float) or amount < 0:
                raise ConfigError(f"engine.resources_per_actor.{name}={amount} is not an amount: use a number from 0")
        at_least("engine.wait_s", self.wait_s, 0)
        check_free_of_credentials("engine.runtime_env", str(self.runtime_env))
