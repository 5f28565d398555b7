"""From a spec to a ready session: import, device, weights, parity gate; each step timed."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.config.schema import AUTO
from runner.core.cache import remembered
from runner.core.errors import ParityError
from runner.core.events import warn
from runner.core.layout import CACHE
from runner.devices.host import usable_cores, versions
from runner.inference.batch_size import is_fresh, is_undisturbed, measure_on, search_undisturbed, sizes_from
from runner.inference.convolution import remembered_calibration
from runner.inference.gate import run_parity_gate
from runner.inference.memory import MAX_BATCH
from runner.vggish.postprocess import Postprocessor
from runner.weights.loading import init_random_weights
from runner.weights.selection import WeightsChoice

if TYPE_CHECKING:
    from runner.config.schema import RunConfig
    from runner.core.events import Events, StartupTimer
    from runner.inference.builder import Placement
    from runner.inference.memory import MemoryPlan
    from runner.inference.session import VGGishSession
    from runner.vggish.answers import Answers
    from runner.weights.loading import LoadedWeights

log = logging.getLogger("runner.engines.worker")


@dataclass(frozen=True)
class LoadedModel:
    """Sessions that may embed, one a device, where they are placed, and what is to be made of their embeddings.

    ``dtypes`` are those of windows that the sessions are compiled for and were measured in, ``answers`` what they were
    held to (None with ``parity=off``).
    """

    placement: Placement
    sessions: list[VGGishSession]
    postprocess: Postprocessor | None
    dtypes: tuple[str, ...]
    answers: Answers | None


def prepare_sessions(
    config: RunConfig, spec: dict[str, Any], cold: StartupTimer, events: Events, result: dict[str, Any]
) -> LoadedModel:
    """Make the sessions of a spec and take them through the parity gate; what was decided goes into ``result``.

    Args:
        config: the run's configuration.
        spec: the run's.
        cold: told how long each step took.
        events: told of steps and warnings.
        result: filled.

    Raises:
        RunnerError: device, weights or parity; ``result`` then tells what was found up to there.
    """
    kept = Path(config.paths.models).expanduser() / CACHE
    weights = WeightsChoice(**spec["weights"])
    drawn = ThreadPoolExecutor(1).submit(init_random_weights, weights)  # while TensorFlow is imported
    events.send("phase", name="import")
    with cold.step("import"):
        import tensorflow as tf

        from runner.inference.builder import DeviceRequest, place
        from runner.weights.loading import load_weights
    tf.get_logger().setLevel("ERROR")
    events.send("phase", name="device")
    with cold.step("device"):
        request = DeviceRequest(config.device.name, config.device.index, config.device.strict, config.precision.name)
        placement = place(request, config.memory)
    result["device"] = placement.device.to_dict()
    for info in placement.device.considered:
        log.info("%s %-5s %s: %s", "✓" if info.available else "✗", info.type.value, info.name, info.reason)
    result["warnings"] = []
    for warning in _warnings(placement):
        warn(warning, events, result)
    events.send(
        "device",
        effective=placement.device.effective.value,
        name=placement.device.device.name,
        precision=placement.precision.effective,
    )
    events.send("phase", name="weights")
    with cold.step("weights"):
        loaded = load_weights(weights, drawn.result(), kept)
    result["metrics"] |= {f"smoke_{name}": value for name, value in (loaded.smoke or {}).items()}
    placement, sessions, answers = _build_until_parity(config, placement, loaded, kept, spec, cold, events, result)
    if config.output.postprocess == "none":
        return LoadedModel(placement, sessions, None, _dtypes(spec), answers)
    assert loaded.pca is not None
    return LoadedModel(
        placement, sessions, Postprocessor(config.output.postprocess, loaded.pca), _dtypes(spec), answers
    )


def _build_until_parity(
    config: RunConfig,
    placement: Placement,
    loaded: LoadedWeights,
    kept: Path,
    spec: dict[str, Any],
    cold: StartupTimer,
    events: Events,
    result: dict[str, Any],
) -> tuple[Placement, list[VGGishSession], Answers | None]:
    """Sessions in the first of the precisions that may be taken in which they pass the parity gate."""
    from runner.inference.builder import build_sessions
    from runner.inference.parity import parity_answers
    from runner.weights.loading import load_weights

    dtypes = _dtypes(spec)
    while True:
        result["precision"] = placement.precision.to_dict()
        answers = None
        if config.parity.name != "off":
            with cold.step("parity"):
                answers = parity_answers(loaded, kept, placement.precision.effective)
        sessions = build_sessions(
            placement,
            loaded,
            conv=config.model.conv,
            calibration=lambda: remembered_calibration(kept),
            timed=cold.add,
            dtypes=dtypes,
        )
        if config.memory.batch_size == AUTO:
            with cold.step("batch_size"):
                placement = _tune_batch_size(config, placement, sessions, dtypes, kept, result)
        result["resolved"] = _resolved(placement, sessions)
        result["weights"] = dict(sessions[0].metadata.weights)
        result["model"] = {**sessions[0].metadata.model, "compiler": sessions[0].compiler, "copies": sessions[0].copies}
        if answers is None:
            warn("parity=off: no device's numbers are checked, and the run is ranked beside no other", events, result)
            break
        events.send("phase", name="parity")
        with cold.step("parity"):
            missed = run_parity_gate(sessions, answers, config.parity, result=result, dtypes=dtypes)
        result["metrics"]["parity_s"] = cold.parts["parity"]
        if not missed:
            break
        following = placement.precision.next(", ".join(result["parity"]["misses"]))
        if following is not None:
            warn(f"precision=auto: {following.reason}", events, result)
            placement = replace(placement, precision=following)
            loaded = load_weights(loaded.choice, kept=kept)  # the sessions took its arrays
            continue
        if config.parity.name == "strict":
            raise ParityError(missed)
        warn(missed, events, result)
        break
    for session in sessions:
        for halving in session.oom_backoffs:
            warn(halving, events, result)
    if sessions[0].compiler["reason"].startswith("XLA failed"):
        warn(sessions[0].compiler["reason"], events, result)
    return placement, sessions, answers


def _dtypes(spec: dict[str, Any]) -> tuple[str, ...]:
    return tuple(spec.get("dtypes") or ("float32",))


def _tune_batch_size(
    config: RunConfig,
    placement: Placement,
    sessions: list[VGGishSession],
    dtypes: Sequence[str],
    kept: Path,
    result: dict[str, Any],
) -> Placement:
    """Find the batch size on the first device, give it to all sessions, and plan memory anew."""
    from runner.inference.builder import memory_plan

    session, device = sessions[0], placement.device

    def plan(size: int) -> MemoryPlan:
        memory = replace(config.memory, batch_size=size)
        return memory_plan(device, placement.precision, memory, placement.gpu_memory)

    sizes = sizes_from(placement.memory.batch_size, lambda size: size <= MAX_BATCH and plan(size).batch_size == size)
    key = ", ".join(
        (
            device.device.name,
            f"{usable_cores()} cores",
            placement.precision.effective,
            dtypes[0],
            str(result.get("model", {}).get("conv", config.model.conv)),
            f"TensorFlow {versions()['tensorflow']}",
            f"{placement.gpu_memory.get('gpu_memory_limit_mib')} MiB",
            f"{sizes[0]} to {sizes[-1]}",
        )
    )
    found = remembered(
        kept / "batch_size.json",
        key,
        lambda: search_undisturbed(measure_on(session, dtypes[0]), sizes, compiled=(session.effective_batch_size,)),
        is_fresh,
        is_undisturbed,
    )
    result["batch_size_curve"] = found
    chosen = int(found["batch_size"])
    for each in sessions:
        each.oom_backoffs.clear()  # the search went to the limit on purpose
        each.set_batch_size(chosen)
        for dtype in dtypes:
            each.warm_up(dtype)
    return replace(placement, memory=plan(chosen))


def _resolved(placement: Placement, sessions: Sequence[VGGishSession]) -> dict[str, Any]:
    plan = placement.memory
    values = {
        "device": placement.device.effective.value,
        "device.index": ",".join(map(str, placement.device.indices)),
        "precision": placement.precision.effective,
        "memory.batch_size": sessions[0].effective_batch_size,
        "memory.queue_depth": plan.queue_depth,
        "memory.decode_workers": plan.decode_workers,
        "memory.host_limit_mib": plan.host_limit_mib,
        "model.conv": sessions[0].metadata.model["conv"]["effective"],
        "model.compiler": sessions[0].compiler["effective"],
        "threads.intra_op": usable_cores(),
    }
    return values | {f"memory.{key}": value for key, value in placement.gpu_memory.items() if key != "note"}


def _warnings(placement: Placement) -> Iterator[str]:
    if placement.device.fallback_reason:
        yield placement.device.reason
    if placement.precision.warning:
        yield placement.precision.warning
    yield from placement.memory.notes
    if note := placement.gpu_memory.get("note"):
        yield str(note)
