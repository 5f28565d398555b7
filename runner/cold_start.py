"""From a spec to a ready session: import, device, weights, parity gate; each step timed."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from runner.config import ParityConfig, RunConfig
from runner.convolution import remembered_calibration
from runner.errors import ParityError
from runner.hardware import usable_cores
from runner.parity import measure, report
from runner.vggish.postprocess import Postprocessor
from runner.weights import WeightsChoice, draw_weights

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from runner.build import Placement
    from runner.vggish.session import VGGishSession

log = logging.getLogger("runner.worker")

CACHE = ".cache"
"""Folder below ``paths.models`` for what was measured once: the parity reference's answers, the calibration."""


class Events:
    """The line to the parent; a parent that is gone is no error here (standard input's end tells of it)."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def send(self, event: str, **values: Any) -> None:
        """Send one event."""
        with self._lock:
            try:
                self._stream.write(json.dumps({"event": event, **values}) + "\n")
                self._stream.flush()
            except (OSError, ValueError):
                return


class ColdStart:
    """Seconds of each step before the first clip: import, device, weights, compile, parity."""

    def __init__(self, spawned_at: float) -> None:
        self._spawned_at = spawned_at
        self.parts: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time a step."""
        start = time.perf_counter()
        yield
        self.add(name, time.perf_counter() - start)

    def add(self, name: str, seconds: float) -> None:
        """Record a step's seconds, on top of what it took before."""
        self.parts[name] = self.parts.get(name, 0.0) + seconds

    def metrics(self, ready_at: float) -> dict[str, float]:
        """cold_start_s (from the worker's start to a ready session, wall clock) and its parts."""
        whole = max(ready_at - self._spawned_at, 0.0)
        return {"cold_start_s": whole, **{f"cold_start_{name}_s": value for name, value in self.parts.items()}}


@dataclass(frozen=True)
class Ready:
    """A session that may embed, where it is placed, and what is to be made of its embeddings."""

    placement: Placement
    session: VGGishSession
    postprocess: Postprocessor | None


def make_ready(
    config: RunConfig, spec: dict[str, Any], cold: ColdStart, events: Events, result: dict[str, Any]
) -> Ready:
    """Make the session of a spec and take it through the parity gate; what was decided goes into ``result``.

    Raises:
        RunnerError: device, weights or parity; ``result`` then tells what was found up to there.
    """
    kept = Path(config.paths.models).expanduser() / CACHE
    weights = WeightsChoice(**spec["weights"])
    drawn = ThreadPoolExecutor(1).submit(draw_weights, weights)  # while TensorFlow is imported
    events.send("phase", name="import")
    with cold.step("import"):
        import tensorflow as tf

        from runner.build import DeviceRequest, build_session, load_weights, parity_answers, place
    tf.get_logger().setLevel("ERROR")
    events.send("phase", name="device")
    with cold.step("device"):
        request = DeviceRequest(config.device.name, config.device.index, config.device.strict, config.precision.name)
        placement = place(request, config.memory)
    result["device"] = placement.device.to_dict()
    result["precision"] = placement.precision.to_dict()
    result["resolved"] = _resolved(placement)
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
        loaded = load_weights(weights, drawn.result())
    result["metrics"] |= {f"smoke_{name}": value for name, value in (loaded.smoke or {}).items()}
    with cold.step("parity"):
        expected, cached = parity_answers(loaded, kept)
    session = build_session(
        placement,
        loaded,
        conv=config.model.conv,
        calibration=lambda: remembered_calibration(kept),
        timed=cold.add,
    )
    result["weights"] = dict(session.metadata.weights)
    result["model"] = dict(session.metadata.model)
    result["resolved"]["model.conv"] = session.metadata.model["conv"]["effective"]
    events.send("phase", name="parity")
    with cold.step("parity"):
        missed = take_through_gate(session, expected, config.parity, cached=cached, result=result)
    result["metrics"]["parity_s"] = cold.parts["parity"]
    if missed:
        if config.parity.action == "fail":
            raise ParityError(missed)
        warn(missed, events, result)
    if config.output.postprocess == "none":
        return Ready(placement, session, None)
    assert loaded.pca is not None
    return Ready(placement, session, Postprocessor(config.output.postprocess, loaded.pca))


def take_through_gate(
    session: VGGishSession,
    expected: NDArray[np.float32],
    config: ParityConfig,
    *,
    cached: bool,
    result: dict[str, Any],
) -> str | None:
    """Measure the session against the reference's answers; what is wrong with it, or None.

    ``result`` gets ``parity`` (the verdict) and the measures among its ``metrics``.
    """
    precision = str(session.metadata.precision["effective"])
    tolerance = config.tolerances[precision]
    parity = measure(session.embed_windows, expected, session.fewest)
    result["parity"] = report(parity, tolerance, action=config.action, cached=cached)
    result["metrics"] |= parity.metrics()
    log.info("parity: %s", parity)
    if not (misses := parity.misses(tolerance)):
        return None
    device = session.metadata.device
    return (
        f"{device['name']} ({device['effective']}, {precision}) gives other embeddings than the CPU in float32: "
        f"{', '.join(misses)}. Use device=cpu or precision=float32, or parity.action=warn to go on all the same"
    )


def warn(message: str, events: Events, result: dict[str, Any]) -> None:
    """Tell a warning to the log, the person and result.json."""
    log.warning("%s", message)
    events.send("warning", message=message)
    result["warnings"].append(message)


def _resolved(placement: Placement) -> dict[str, Any]:
    plan = placement.memory
    values = {
        "device": placement.device.effective.value,
        "device.index": placement.device.index,
        "precision": placement.precision.effective,
        "memory.batch_size": plan.batch_size,
        "memory.queue_depth": plan.queue_depth,
        "memory.decode_workers": plan.decode_workers,
        "memory.host_memory_mib": plan.host_memory_mib,
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
