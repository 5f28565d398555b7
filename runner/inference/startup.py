"""Startup of a run's sessions: import, device, weights, parity gate; each step timed."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from runner.config.schema import AUTO
from runner.contract.events import DeviceEvent
from runner.contract.result import (
    DeviceReport,
    ModelReport,
    Startup,
)
from runner.core.errors import ParityError
from runner.core.layout import CACHE
from runner.devices.host import usable_cores, versions
from runner.devices.instruction_sets import instruction_sets
from runner.devices.nvml import describe_gpus
from runner.inference.batch_size import measure_on, remembered_search, search_undisturbed, sizes_from
from runner.inference.compile_cache import CompileCache
from runner.inference.gate import run_parity_gate
from runner.inference.memory import MAX_BATCH
from runner.inference.tensorflow_import import import_tensorflow
from runner.models.registry import find_model
from runner.vggish.postprocess import Postprocessor

if TYPE_CHECKING:
    from runner.config.schema import MemoryConfig
    from runner.contract.events import Events
    from runner.contract.result import Scalar
    from runner.contract.spec import RunSpec
    from runner.core.startup_timer import StartupTimer
    from runner.inference.builder import Placement
    from runner.inference.gate import GateResult
    from runner.inference.memory import MemoryPlan
    from runner.inference.session import EmbeddingSession
    from runner.models.answers import Answers
    from runner.models.base import LoadedWeights

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedModel:
    """Sessions that passed the gate, one a device, with their placement and the post-processing of embeddings.

    ``dtypes`` are those of windows that the sessions are compiled for and were measured in, ``answers`` the
    reference's, which they were compared with (None with ``parity=off``); ``programs`` is the cache of compiled ones.
    """

    placement: Placement
    sessions: list[EmbeddingSession]
    postprocess: Postprocessor | None
    dtypes: tuple[str, ...]
    answers: Answers | None
    programs: CompileCache


class SessionStartup:
    """Makes the sessions of a run and takes them through the parity gate, each step timed.

    Args:
        spec: the run's.
        dtypes: of the windows to compile for, the most frequent one first.
        timer: adds up each step's seconds.
        events: gets steps and warnings.

    Attributes:
        report: what was decided, also where a later step failed.
        metrics: the smoke test's and the parity gate's, likewise.
    """

    def __init__(self, spec: RunSpec, dtypes: Sequence[str], timer: StartupTimer, events: Events) -> None:
        self.report = Startup()
        self.metrics: dict[str, float] = {}
        self._weights, self._config = spec.weights, spec.config
        self._model = find_model(spec.config.model)
        self._dtypes, self._timer, self._events = tuple(dtypes), timer, events
        self._cache = Path(spec.config.paths.models).expanduser() / CACHE
        self._programs = CompileCache(self._cache, [])

    def prepare(self) -> LoadedModel:
        """Carry out all steps.

        Raises:
            RunnerError: device, weights or parity.
        """
        background = ThreadPoolExecutor(2)  # while TensorFlow is imported
        drawn = background.submit(self._model.draw, self._weights)
        gpus = background.submit(describe_gpus if self._config.device.name != "cpu" else list)
        self._events.phase("import")
        with self._timer.step("import"):
            import_tensorflow(freeze=True)
            import tensorflow as tf

            from runner.inference.builder import place_on_device  # noqa: F401  # it imports what takes long
        tf.get_logger().setLevel("ERROR")
        self._programs = CompileCache(self._cache, gpus.result())
        self._programs.use()
        placement = self._place()
        self._events.phase("weights")
        with self._timer.step("weights"):
            loaded = self._model.load(self._weights, drawn.result(), self._cache)
        if self._model.spec != self._config.model.spec:  # a file's outputs are known only now
            placement = replace(placement, memory=self._plan(placement, self._config.memory))
        for note in self._model.notes:
            self._events.warn(note)
        self.metrics |= {f"smoke_{name}": value for name, value in (loaded.smoke or {}).items()}
        placement, sessions, answers = self._build_until_parity(placement, loaded)
        self._programs.commit()
        kind, postprocess = self._config.output.postprocess, None
        if kind != "none":
            assert loaded.pca is not None
            postprocess = Postprocessor(kind, loaded.pca)
        return LoadedModel(placement, sessions, postprocess, self._dtypes, answers, self._programs)

    def _place(self) -> Placement:
        """Choose device and precision, and apply the memory policy."""
        from runner.inference.builder import DeviceRequest, place_on_device

        config = self._config
        self._events.phase("device")
        with self._timer.step("device"):
            device = config.device
            request = DeviceRequest(device.name, device.index, device.strict, config.precision.name)
            placement = place_on_device(request, config.memory, self._model.spec)
        self.report = replace(self.report, device=DeviceReport.of(placement.device))
        for info in placement.device.considered:
            log.info("%s %-5s %s: %s", "✓" if info.available else "✗", info.type.value, info.name, info.reason)
        for warning in _warnings(placement):
            self._events.warn(warning)
        chosen = placement.device
        self._events.send(DeviceEvent(chosen.effective.value, chosen.device.name, placement.precision.effective))
        return placement

    def _build_until_parity(
        self, placement: Placement, loaded: LoadedWeights
    ) -> tuple[Placement, list[EmbeddingSession], Answers | None]:
        """Build sessions in the first of the possible precisions in which they pass the parity gate."""
        while True:
            placement, sessions, answers = self._build(placement, loaded)
            if answers is None:
                self._events.warn("parity=off: no device's numbers are checked, and the run is ranked beside no other")
                break
            gate = self._check_parity(sessions, answers)
            if gate.failure is None:
                break
            self._programs.clear()  # lest a cached one is to blame
            following = placement.precision.next(", ".join(gate.report.misses))
            if following is None:
                if self._config.parity.name == "strict":
                    raise ParityError(gate.failure)
                self._events.warn(gate.failure)
                break
            self._events.warn(f"precision=auto: {following.reason}")
            placement = replace(placement, precision=following)
            loaded = self._model.load(loaded.choice, cache=self._cache)  # the sessions took its arrays
        for backoff in (backoff for session in sessions for backoff in session.oom_backoffs):
            self._events.warn(backoff)
        if sessions[0].compiler.reason.startswith("XLA failed"):
            self._programs.clear()  # likewise
            self._events.warn(sessions[0].compiler.reason)
        return placement, sessions, answers

    def _build(
        self, placement: Placement, loaded: LoadedWeights
    ) -> tuple[Placement, list[EmbeddingSession], Answers | None]:
        """Build sessions in the placement's precision; the placement returned has the batch size in use."""
        from runner.inference.builder import build_sessions

        self.report = replace(self.report, precision=placement.precision.decision)
        answers = None
        if self._config.parity.name != "off":
            with self._timer.step("parity"):
                answers = self._model.answers(loaded, self._cache, placement.precision.effective)
        sessions = build_sessions(
            placement,
            self._model,
            loaded,
            cache=self._cache,
            timed=self._timer.add,
            dtypes=self._dtypes,
        )
        if self._config.memory.batch_size == AUTO:
            with self._timer.step("batch_size"):
                placement = self._tune_batch_size(placement, sessions)
        session = sessions[0]
        self.report = replace(
            self.report,
            resolved=_resolved(placement, sessions),
            weights=session.metadata.weights,
            model=ModelReport(
                session.metadata.conv,
                session.compiler,
                session.copies,
                session.spec.title or session.spec.name,
                {output.name: output.width for output in session.spec.outputs},
            ),
        )
        return placement, sessions, answers

    def _check_parity(self, sessions: Sequence[EmbeddingSession], answers: Answers) -> GateResult:
        self._events.phase("parity")
        with self._timer.step("parity"):
            gate = run_parity_gate(sessions, answers, self._config.parity, self._dtypes)
        self.report = replace(self.report, parity=gate.report)
        self.metrics |= {**gate.metrics, "parity_s": self._timer.steps["parity"]}
        return gate

    def _plan(self, placement: Placement, memory: MemoryConfig) -> MemoryPlan:
        from runner.inference.builder import memory_plan

        return memory_plan(placement.device, placement.precision, memory, placement.gpu_memory, self._model.spec)

    def _tune_batch_size(self, placement: Placement, sessions: Sequence[EmbeddingSession]) -> Placement:
        """Find the batch size on the first device, set it for all sessions, and plan memory again."""
        config, session, device = self._config, sessions[0], placement.device

        def plan(size: int) -> MemoryPlan:
            return self._plan(placement, replace(config.memory, batch_size=size))

        sizes = sizes_from(
            placement.memory.batch_size, lambda size: size <= MAX_BATCH and plan(size).batch_size == size
        )
        key = ", ".join(
            (
                device.device.name,
                str(instruction_sets()),
                f"{usable_cores()} cores",
                placement.precision.effective,
                self._dtypes[0],
                session.spec.name,
                session.metadata.conv.effective if session.metadata.conv else "one algorithm",
                f"TensorFlow {versions()['tensorflow']}",
                f"{placement.gpu_memory.limit_mib} MiB",
                f"{sizes[0]} to {sizes[-1]}",
            )
        )
        measure, compiled = measure_on(session, self._dtypes[0]), (session.effective_batch_size,)
        curve = remembered_search(self._cache, key, lambda: search_undisturbed(measure, sizes, compiled=compiled))
        self.report = replace(self.report, batch_size_curve=curve)
        for own in sessions:
            own.oom_backoffs.clear()  # the search went to the limit on purpose
            own.set_batch_size(curve.batch_size)
            for dtype in self._dtypes:
                own.warm_up(dtype)
        return replace(placement, memory=plan(curve.batch_size))


def _resolved(placement: Placement, sessions: Sequence[EmbeddingSession]) -> dict[str, Scalar]:
    plan, gpu_memory = placement.memory, placement.gpu_memory
    values: dict[str, Scalar] = {
        "device": placement.device.effective.value,
        "device.index": ",".join(map(str, placement.device.indices)),
        "precision": placement.precision.effective,
        "memory.batch_size": sessions[0].effective_batch_size,
        "memory.queue_depth": plan.queue_depth,
        "memory.decode_workers": plan.decode_workers,
        "memory.writer_processes": plan.writer_processes,
        "memory.host_limit_mib": plan.host_limit_mib,
        "model.compiler": sessions[0].compiler.effective,
        "threads.intra_op": usable_cores(),
        "memory.gpu_memory_limit_mib": gpu_memory.limit_mib,
        "memory.gpu_allow_growth": gpu_memory.allow_growth,
    }
    if algorithm := sessions[0].metadata.conv:
        values["model.conv"] = algorithm.effective
    if gpu_memory.available_mib is not None:
        values["memory.gpu_memory_available_mib"] = gpu_memory.available_mib
    return values


def _warnings(placement: Placement) -> Iterator[str]:
    if placement.device.fallback_reason:
        yield placement.device.reason
    if placement.precision.warning:
        yield placement.precision.warning
    yield from placement.memory.notes
    if placement.gpu_memory.note:
        yield placement.gpu_memory.note
