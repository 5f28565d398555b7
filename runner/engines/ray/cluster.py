"""A Ray cluster: connecting to it or starting one, and the resources of an actor."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from runner.config.ray_address import address_of
from runner.config.schema import AUTO
from runner.core.errors import EngineError
from runner.core.scratch import HeldFolder
from runner.devices.host import usable_cores

if TYPE_CHECKING:
    from runner.config.schema import RayEngineConfig

_OBJECT_STORE_BYTES = 128 << 20
"""Only shards' numbers and reports go through a Ray that is started here."""

_ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0", "RAY_COLOR_PREFIX": "0"}

_LOCAL_ENVIRONMENT = {"RAY_AUTH_MODE": "disabled"}
"""For a Ray that is started here; the environment takes precedence."""

_FOLDER = "vggish-ray-"


@dataclass(frozen=True)
class Seat:
    """The resources of an actor."""

    cpus: float
    gpus: float
    resources: Mapping[str, float] = field(default_factory=dict)

    @property
    def bundle(self) -> dict[str, float]:
        """The amounts by Ray's names, without zeros."""
        amounts = {"CPU": self.cpus, "GPU": self.gpus, **self.resources}
        return {name: amount for name, amount in amounts.items() if amount}

    def fits(self, nodes: Iterable[Mapping[str, Any]]) -> int:
        """Return how many actors fit on the machines, which are as ``ray.nodes()`` lists them."""
        return sum(
            int(min((node["Resources"].get(name, 0.0) // amount for name, amount in self.bundle.items()), default=1.0))
            for node in nodes
            if node["Alive"]
        )

    def __str__(self) -> str:
        own = [f"{amount:g} of {name}" for name, amount in self.resources.items()]
        return " and ".join([f"{self.cpus:g} CPUs", f"{self.gpus:g} GPUs", *own])


def connect(engine: RayEngineConfig, stack: contextlib.ExitStack) -> Any:
    """Return Ray, connected to the cluster or started here.

    Args:
        engine: the configuration.
        stack: disconnects, and stops a Ray that was started here.  It must be closed last of all: a driver that loses
            its cluster is ended by Ray on the spot.

    Raises:
        EngineError: it is not installed, or can't be reached or started.
        ConfigError: as ``address_of`` does.
    """
    address = address_of(engine)
    for name, value in {**_ENVIRONMENT, **({} if address else _LOCAL_ENVIRONMENT)}.items():
        os.environ.setdefault(name, value)
    try:
        import ray

        local = {} if address else _local_settings(engine, stack)
        stack.callback(_shut_down)
        ray.init(
            address=address or "local",
            log_to_driver=True,  # into runner.log: what actors say would else be gone with Ray's own folder
            logging_level=logging.ERROR,
            runtime_env=engine.runtime_env,
            **local,
        )
        return ray
    except ImportError as error:
        raise EngineError(f"engine=ray needs Ray ({error}): pip install 'vggish-runner[ray]'") from error
    except Exception as error:  # Ray has many, and its own are RuntimeErrors
        where = f"the Ray cluster at {address} can't be reached" if address else "Ray did not start"
        raise EngineError(f"{where} ({error}): see runner.log") from error


def _local_settings(engine: RayEngineConfig, stack: contextlib.ExitStack) -> dict[str, Any]:
    """Return the settings of a Ray that is started here, with a temporary folder that the stack removes."""
    folder = HeldFolder(_FOLDER)
    stack.callback(folder.remove)
    return {
        "num_cpus": usable_cores(),
        "include_dashboard": engine.dashboard,
        "object_store_memory": _OBJECT_STORE_BYTES,
        "_temp_dir": str(folder.path),
    }


def _shut_down() -> None:
    with contextlib.suppress(Exception):
        import ray

        ray.shutdown()


def seat_for(engine: RayEngineConfig, device: str, nodes: Sequence[Mapping[str, Any]]) -> Seat:
    """Return an actor's resources; by default a machine's cores are shared by its GPUs.

    Args:
        engine: the configuration.
        device: the device asked for.
        nodes: as ``ray.nodes()`` lists them; without a fitting one, an actor gets one CPU.
    """
    machines = [node["Resources"] for node in nodes if node["Alive"]]
    gpus = engine.num_gpus_per_actor
    if gpus is None:
        gpus = 1.0 if device == "gpu" or (device == AUTO and any(machine.get("GPU") for machine in machines)) else 0.0
    cpus, own = engine.num_cpus_per_actor, engine.resources_per_actor or {}
    if cpus is None:
        least = {"CPU": 1.0, "GPU": gpus, **own}  # a head may have no CPU at all
        fitting = [own for own in machines if all(own.get(name, 0.0) >= least[name] for name in least)]
        shares = [own["CPU"] / max(own["GPU"] // gpus, 1.0) if gpus else own["CPU"] for own in fitting]
        cpus = max(1.0, float(int(min(shares, default=1.0))))
    return Seat(cpus, gpus, own)


def most_actors(engine: RayEngineConfig, seat: Seat, nodes: Sequence[Mapping[str, Any]]) -> int:
    """Return how many actors a run has at a time: ``engine.max_size``, or as many as fit on the machines."""
    if engine.max_size != AUTO:
        return int(engine.max_size)
    return max(engine.min_size, seat.fits(nodes))
