"""The actor of ``engine=ray``: it embeds shards as the local engine does, with one pipeline for its whole life.

It owns a session and decode processes; its files are the local engine's, written by the same code into the run's
folder or put into its object store.  Each shard is a call of its own, which ends with the shard's line for the journal;
several are under way at a time, so that batches are filled across shards, and one canary comes at the end.
"""

from __future__ import annotations

import asyncio
import io
import logging
import os
import queue
import socket
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

from runner.contract.events import Events
from runner.core.failures import failure_of
from runner.core.printable import LOG_FORMAT, PrintableFormatter
from runner.core.startup_timer import StartupTimer
from runner.dataset.window_types import window_types
from runner.devices.cuda import pinned
from runner.devices.detection import DeviceType
from runner.devices.host import CORES
from runner.engines.common import (
    file_metadata,
    identity_of,
    make_writer,
    queued_clips,
    shard_files,
    tune_interpreter,
)
from runner.engines.ray.messages import ActorEnd, ActorFailure, ActorProgress, ActorReport, ShardReport
from runner.engines.ray.registry import localize
from runner.inference.canary import Canary
from runner.inference.resampling import resamples_on_device
from runner.inference.startup import SessionStartup
from runner.output.state.identity import check_identity
from runner.output.writer import ShardWriter, make_spill
from runner.pipeline.decode_pool import DecodePool, decode_options, decoders_for
from runner.pipeline.messages import Replica
from runner.pipeline.pipeline import EmbeddingPipeline, ShardedClips
from runner.pipeline.skip_limit import SkipLimit
from runner.profiling.metrics import stage_seconds

if TYPE_CHECKING:
    from runner.config.schema import RunConfig
    from runner.contract.result import Scalar
    from runner.engines.ray.messages import ActorInit
    from runner.output.state.journal import ShardEntry

log = logging.getLogger(__name__)


class Reports:
    """In place of a journal: a shard's line goes to the call that waits for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[int, Future[ShardReport]] = {}
        self._revoked: list[int] = []
        self._failed: ActorFailure | None = None

    def expect(self, shard: int) -> Future[ShardReport]:
        """Return a future of a shard's report."""
        with self._lock:
            report: Future[ShardReport] = Future()
            if self._failed:
                report.set_result(ShardReport(failed=self._failed))
            else:
                self._waiting[shard] = report
            return report

    def append(self, entry: ShardEntry) -> None:
        """Report a line."""
        with self._lock:
            if entry.revoked:
                self._revoked.append(entry.shard)
            else:
                self._waiting.pop(entry.shard).set_result(ShardReport(entry))

    def fail(self, error: BaseException) -> ActorFailure:
        """End all calls, later ones too, with the first failure, which is returned."""
        with self._lock:
            self._failed = self._failed or ActorFailure(failure_of(error), tuple(self._revoked))
            for waiting in self._waiting.values():
                waiting.set_result(ShardReport(failed=self._failed))
            self._waiting.clear()
            return self._failed


class EmbedShards:
    """An actor with asynchronous methods: ``where``, ``make``, ``embed`` for each shard, and ``finish``, in this order.

    A failure is part of the answer, so that the driver can distinguish it from the actor's death.

    Args:
        init: its order.
    """

    def __init__(self, init: ActorInit) -> None:
        # A decode process would import the main module again, which here is Ray's own worker.
        sys.modules["__main__"].__file__ = None
        self._started_at = time.time()
        _configure_logging()
        self._init = init
        # One thread for all of the actor's life: Linux ends decode processes with the thread that started them.
        self._thread = ThreadPoolExecutor(1)
        self._pins = ExitStack()  # held for the life of this process
        self._reports = Reports()
        self._events = Events(io.StringIO())
        self._queue: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._engine: EmbeddingPipeline | None = None
        self._running: Future[None] | None = None
        self._failure: BaseException | None = None
        self._began = 0.0

    async def where(self) -> str:
        """Return Ray's id of its machine."""
        import ray

        return str(ray.get_runtime_context().get_node_id())

    async def make(self) -> ActorReport:
        """Open a decode pool, and load a model that has passed the parity gate."""
        self._report = ActorReport(socket.gethostname(), await self.where(), os.getpid())
        try:
            await asyncio.wrap_future(self._thread.submit(self._make))
        except Exception as error:
            log.exception("the actor can't work")
            self._report = replace(self._report, failed=self._reports.fail(error))
        return replace(self._report, warnings=tuple(self._events.warnings))

    async def embed(self, shard: int) -> ShardReport:
        """Embed a shard; see ``Reports.expect``."""
        if self._running is None:
            self._began = time.time()
            self._running = self._thread.submit(self._run)
        report = self._reports.expect(shard)
        self._queue.put(shard)
        return await asyncio.wrap_future(report)

    async def progress(self) -> ActorProgress | None:
        """Return how far it is; None before it has begun."""
        engine = self._engine
        if engine is None:
            return None
        done, finished = engine.stats.examples_done, engine.stats.progress.examples
        ended = self._began + engine.stats.steady_s
        return ActorProgress(self._began, ended, examples=done, under_way=max(0, done - finished))

    async def finish(self) -> ActorEnd:
        """End it all, with a last canary."""
        if self._running is None:
            return ActorEnd()
        self._queue.put(None)
        await asyncio.wrap_future(self._running)
        if self._failure is not None:
            return ActorEnd(failed=self._reports.fail(self._failure))
        engine, canaries = self._engine, [replica.canary for replica in self._replicas if replica.canary]
        assert engine is not None
        backoffs = [backoff for session in self._model.sessions for backoff in session.oom_backoffs]
        faults = [fault for session in self._model.sessions for fault in session.resampling_faults]
        misses = [miss for canary in canaries for miss in canary.misses[:1]]
        return ActorEnd(
            progress=await self.progress(),
            stages=self._stages,
            input_wait_s=sum(engine.stats.input_wait_s.values()) / sum(replica.threads for replica in self._replicas),
            canaries=sum(canary.count for canary in canaries),
            warnings=(*engine.stats.replica_failures, *backoffs, *faults, *misses),
        )

    def _make(self) -> None:
        local = localize(self._init)
        self.spec = replace(local.spec, config=_apply_ray_resources(local.spec.config))
        self.remote, self._folder = local.remote, local.folder
        config, timer = self.spec.config, StartupTimer(self._started_at)
        self._pool = DecodePool(decode_options(config), 1, config.dataset.decode_timeout_s)
        startup = SessionStartup(
            self.spec,
            window_types(self.spec.manifest, self.spec.config.preparation),
            timer,
            self._events,
        )
        try:
            self._model = startup.prepare()
        finally:
            self._report = replace(self._report, startup=startup.report, metrics=startup.metrics)
        session, placement = self._model.sessions[0], self._model.placement
        processes = decoders_for(placement.memory.decode_workers, self._init.clips)
        on_device = resamples_on_device(config.device.resampling, placement.device.effective)
        self._resolve("device.resampling", "device" if on_device else "host")
        rows = session.effective_batch_size
        self._pool.open(processes, placement.memory.spare_slots, rows, resample=not on_device)
        if placement.device.effective is DeviceType.GPU:
            self._pin(timer)
        self._report = replace(
            self._report,
            identity=identity_of(session, self._model.postprocess),
            file_metadata=file_metadata(config, session, placement),
            metrics={**self._report.metrics, **timer.metrics(time.time())},
        )
        tune_interpreter()

    def _pin(self, timer: StartupTimer) -> None:
        """Lock the slots' pages for copies to the GPU, for as long as this actor lives."""
        with timer.step("pin"):
            refused = self._pins.enter_context(pinned(self._pool.memory.bytes))
        self._resolve("memory.pinned", refused is None)
        if refused:
            self._events.warn(f"batches are copied to the GPU from pageable memory: {refused}")

    def _resolve(self, name: str, value: Scalar) -> None:
        startup = self._report.startup
        startup = replace(startup, resolved={**startup.resolved, name: value})
        self._report = replace(self._report, startup=startup)

    def _run(self) -> None:
        """Embed shards from the queue until its end; a failure ends all calls."""
        try:
            self._writer = self._make_writer()
            self._replicas = self._make_replicas()
            self._engine = self._make_engine()
            self._engine.run(self._replicas)
            self._stages = stage_seconds(self._engine.stats, sum(self._pool.busy_s.values()), len(self._pool))
        except BaseException as error:
            log.exception("the actor can't go on")
            self._failure = error
            self._reports.fail(error)
        self._pins.close()
        self._pool.close()
        if self._folder:
            self._folder.remove()

    def _make_writer(self) -> ShardWriter:
        if self.remote:
            check_identity(self.spec.run_dir, self._report.identity)
        metadata = self._report.file_metadata
        files = shard_files(self.spec, self._model.sessions[0].spec, metadata, self._model.postprocess)()
        return make_writer(self.spec, files, self._reports, remote=self.remote)

    def _make_replicas(self) -> list[Replica]:
        model, parity = self._model, self.spec.config.parity
        return [
            Replica.watched(
                session, Canary(session, model.answers, parity, model.dtypes, lambda: len(self._writer.committed))
            )
            for session in model.sessions
        ]

    def _make_engine(self) -> EmbeddingPipeline:
        spec, config = self.spec, self.spec.config
        return EmbeddingPipeline(
            ShardedClips(spec.shards, queued_clips(self._queue, spec), self._init.clips),
            self._pool,
            self._writer,
            shutdown_timeout_s=config.engine.shutdown_timeout_s,
            on_skip=SkipLimit(config.dataset, spec.dataset, 0),
            spill=make_spill(spec.run_dir, config),
        )


def _configure_logging() -> None:
    """Log to standard error, as the local worker does; Ray brings it to the driver's log."""
    own = logging.getLogger("runner")
    if not own.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(PrintableFormatter(LOG_FORMAT))
        own.addHandler(handler)
        own.setLevel(logging.INFO)
        own.propagate = False


def _apply_ray_resources(config: RunConfig) -> RunConfig:
    """Limit threads, processes and a GPU's memory to the resources that Ray assigned to this actor.

    Its shards are written by threads: there are other actors, with interpreters of their own.
    """
    import ray

    resources = ray.get_runtime_context().get_assigned_resources()
    cpus, gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
    if cpus >= 1:
        os.environ[CORES] = str(int(cpus))
    memory = replace(config.memory, writer_processes=0)
    if 0 < gpus < 1:
        memory = replace(memory, gpu_memory_fraction=gpus * memory.gpu_memory_fraction)
    return replace(config, memory=memory)
