"""A Ray cluster: connecting to it or starting one, and what of a run goes where on it."""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from runner.config import AUTO, RayEngineConfig
from runner.errors import EngineError
from runner.hardware import MIB, usable_cores, usable_memory_mib
from runner.held_folder import HeldFolder

_OBJECT_STORE_BYTES = 128 << 20
"""Nothing but lists of shards and reports goes through Ray's object store where actors decode for themselves."""
_OBJECT_STORE_APART_BYTES = (1 << 30, 8 << 30)
"""Where they don't, windows do: an eighth of the memory, within these bounds."""
_CPUS_A_DECODE_ACTOR = 4
_UNEVEN = 2.0
"""Machines whose cores a GPU differ by more than this decode for one another."""
_SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0", "RAY_COLOR_PREFIX": "0"}
_OWN_SETTINGS = {"RAY_AUTH_MODE": "disabled"}
"""Of a Ray that is started here; what the environment says of these goes before."""
_FOLDER = "vggish-ray-"
_folders: list[HeldFolder] = []
"""Of the Ray that was started here."""


@dataclass(frozen=True)
class Layout:
    """What of a run goes where: how many actors with a session, and what each takes of the cluster.

    With ``decoders`` above 0 decoding is apart: so many actors of ``decode_cpus`` each decode for the others.
    """

    actors: int
    cpus: float
    gpus: float
    decoders: int = 0
    decode_cpus: int = 0


def connect(engine: RayEngineConfig) -> Any:
    """Ray, connected to the address given, or started here; ``disconnect`` ends both.

    Raises:
        EngineError: it is not installed, or can't be reached or started.
    """
    for name, value in {**_SETTINGS, **({} if engine.address else _OWN_SETTINGS)}.items():
        os.environ.setdefault(name, value)
    try:
        import ray
        import ray.data

        ray.init(
            address=engine.address or "local",
            log_to_driver=True,  # into runner.log: what actors say would else be gone with Ray's own folder
            logging_level=logging.ERROR,
            **({} if engine.address else _own(engine)),
        )
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        context.target_max_block_size = 1  # what an actor gives goes on at once
        return ray
    except ImportError as error:
        raise EngineError(f"engine=ray needs Ray ({error}): pip install 'vggish-runner[ray]'") from error
    except Exception as error:  # Ray has many, and its own are RuntimeErrors
        where = f"engine.address={engine.address} can't be reached" if engine.address else "Ray did not start"
        raise EngineError(f"{where} ({error}): see runner.log") from error


def _own(engine: RayEngineConfig) -> dict[str, Any]:
    """How Ray is started here."""
    _folders.append(HeldFolder(_FOLDER))
    return {
        "num_cpus": usable_cores(),
        "include_dashboard": engine.dashboard,
        "object_store_memory": _object_store_bytes() if engine.decode == "apart" else _OBJECT_STORE_BYTES,
        "_temp_dir": str(_folders[-1].path),
    }


def _object_store_bytes() -> int:
    least, most = _OBJECT_STORE_APART_BYTES
    return max(least, min(most, usable_memory_mib() * MIB // 8))


def actor_pool(ray: Any, size: int, calls: int) -> Any:
    """The strategy of so many actors, each of which has up to ``calls`` calls at a time.

    An older Ray, which can't have several, has one after the other: the same results, more slowly.
    """
    strategy = ray.data.ActorPoolStrategy
    several = {"max_concurrent_calls_per_actor": calls, "enable_true_multi_threading": True}
    if calls == 1 or not several.keys() <= inspect.signature(strategy.__init__).parameters.keys():
        return strategy(size=size)
    return strategy(size=size, max_tasks_in_flight_per_actor=calls, **several)


def disconnect() -> None:
    """Leave the cluster, and stop it if it was started here; the last thing a worker does.

    A driver that loses its cluster is ended by Ray on the spot, so all is on disk before.
    """
    with contextlib.suppress(Exception):
        import ray

        ray.shutdown()
    while _folders:
        _folders.pop().remove()


def layout_for(
    engine: RayEngineConfig, device: str, nodes: Sequence[dict[str, Any]], *, decoding_is_light: bool = False
) -> Layout:
    """What of a run goes where on a cluster.

    Args:
        engine: the configuration; what it leaves open is decided here.
        device: the device asked for.
        nodes: as ``ray.nodes()`` gives them.
        decoding_is_light: whether clips are 16 kHz WAV, which a GPU's own cores read faster than a network carries.

    Raises:
        EngineError: no machine of the cluster has what an actor takes, or none has a CPU left for decoding apart.
    """
    machines = [node["Resources"] for node in nodes if node.get("Alive")]
    cores, cards = ([each.get(kind, 0.0) for each in machines] for kind in ("CPU", "GPU"))
    gpus = engine.num_gpus_per_actor
    if gpus is None:
        gpus = 1.0 if device in ("gpu", AUTO) and any(cards) else 0.0
    apart = engine.decode == "apart" or (engine.decode == AUTO and not decoding_is_light and _pays(cores, cards, gpus))
    cpus = engine.num_cpus_per_actor
    if cpus is None:
        cpus = _cpus_an_actor(cores, cards, gpus, apart)
    seats = [_seats((has, cpus), (gpu, gpus)) for has, gpu in zip(cores, cards, strict=True)]
    if sum(seats) < 1:
        raise EngineError(
            f"no machine of the cluster has {cpus:g} CPUs and {gpus:g} GPUs for an actor: "
            "lower engine.num_cpus_per_actor or engine.num_gpus_per_actor"
        )
    if apart and not gpus and engine.num_cpus_per_actor is None:
        seats = [min(seat, 1) for seat in seats]  # the other half of a machine decodes
    actors = sum(seats) if engine.concurrency == AUTO else int(engine.concurrency)
    if not apart:
        return Layout(actors, cpus, gpus)
    to_place, left = actors, []
    for has, seat in zip(cores, seats, strict=True):
        here = min(seat, to_place)
        to_place -= here
        left.append(int(has - here * cpus))
    return Layout(actors, cpus, gpus, *_decoders(engine.decode_concurrency, left))


def _seats(*each: tuple[float, float]) -> int:
    """How many actors a machine holds that has so much of each resource, of which one takes so much."""
    return int(min((has // takes for has, takes in each if takes), default=1.0))


def _pays(cores: Sequence[float], cards: Sequence[float], gpus: float) -> bool:
    """Whether decoding apart uses cores that would else wait: those without a GPU, or where there are more for one."""
    if not gpus:
        return False
    each = [has / (gpu // gpus) for has, gpu in zip(cores, cards, strict=True) if gpu >= gpus]
    idle = any(has >= 1 and gpu < gpus for has, gpu in zip(cores, cards, strict=True))
    return bool(each) and (idle or max(each) > _UNEVEN * min(each))


def _cpus_an_actor(cores: Sequence[float], cards: Sequence[float], gpus: float, apart: bool) -> float:
    """A machine's cores shared by its GPUs; where decoding is apart, one beside a GPU and half of a machine without."""
    if apart and gpus:
        return 1.0
    pairs = [(has, gpu) for has, gpu in zip(cores, cards, strict=True) if has >= 1]  # a head may be left out with none
    shares = [has / max(gpu / gpus, 1.0) if gpus else has for has, gpu in pairs if not gpus or gpu >= gpus]
    least = min(shares, default=1.0)
    return max(1.0, float(int(least / 2 if apart else least)))


def _decoders(asked: Any, left: Sequence[int]) -> tuple[int, int]:
    """How many actors decode, and with how many CPUs each, where machines have so many left."""
    most = max([*left, 0]) if asked != AUTO else min(_CPUS_A_DECODE_ACTOR, max([*left, 0]))
    for cpus in range(most, 0, -1):
        fits = sum(each // cpus for each in left)
        if asked == AUTO or fits >= int(asked):
            return (fits if asked == AUTO else int(asked)), cpus
    raise EngineError(
        f"the cluster has {sum(left)} CPUs left beside the actors that embed, too few to decode apart: "
        "lower engine.num_cpus_per_actor or engine.decode_concurrency, or use engine.decode=inside"
    )
