"""The actor of ``engine=ray``: it embeds shards as the local engine does, one pipeline for all of its life.

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
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.core.events import LOG_FORMAT, Events, StartupTimer
from runner.core.failures import failure_of
from runner.core.printable import PrintableFormatter
from runner.dataset.clips import ClipReader
from runner.dataset.window_types import window_types
from runner.devices.cuda import pinned
from runner.devices.detection import DeviceType
from runner.devices.host import CORES
from runner.engines.common import file_metadata, make_writer, tune_interpreter
from runner.engines.ray.registry import settle
from runner.inference.canary import Canary
from runner.inference.session import identity_of
from runner.inference.startup import prepare_sessions
from runner.output.state.identity import agree
from runner.output.writer import RunWriter, make_spill
from runner.pipeline.decode_pool import DecodePool, decode_options, decoders_for
from runner.pipeline.messages import Replica
from runner.pipeline.pipeline import EmbeddingPipeline, ShardedClips
from runner.pipeline.skip_limit import SkipLimit
from runner.profiling.metrics import stage_seconds

if TYPE_CHECKING:
    from runner.config.schema import RunConfig
    from runner.dataset.clips import Clip
    from runner.engines.ray.registry import ActorInit
    from runner.output.state.journal import ShardEntry

log = logging.getLogger("runner.engines.worker")


class Reports:
    """In the place of a journal: a shard's line goes to the call that waits for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[int, Future[dict[str, Any]]] = {}
        self._undone: list[int] = []
        self._failed: dict[str, Any] | None = None

    def expect(self, shard: int) -> Future[dict[str, Any]]:
        """What will come of a shard: ``entry``, or ``error`` with the shards that are ``undone``."""
        with self._lock:
            found: Future[dict[str, Any]] = Future()
            if self._failed:
                found.set_result(self._failed)
            else:
                self._waiting[shard] = found
            return found

    def append(self, entry: ShardEntry) -> None:
        """Take a line."""
        with self._lock:
            if entry.undone:
                self._undone.append(entry.shard)
            else:
                self._waiting.pop(entry.shard).set_result({"entry": vars(entry)})

    def fail(self, error: BaseException) -> dict[str, Any]:
        """Nothing more will come: all calls, later ones too, end with what went wrong, which is given as well."""
        with self._lock:
            self._failed = self._failed or {"error": failure_of(error)._asdict(), "undone": self._undone}
            for waiting in self._waiting.values():
                waiting.set_result(self._failed)
            self._waiting.clear()
            return self._failed

    def close(self) -> None:
        """Nothing is open."""


class ShardWriter(RunWriter):
    """Writes shards; clips.parquet is the driver's to make."""

    def close(self) -> None:
        """The driver closes the run."""


class EmbedShards:
    """An actor with asynchronous methods: ``where``, ``make``, ``embed`` for each shard, and ``finish``, in this order.

    What goes wrong is in what they give, under ``error``, so that the driver tells it from the actor's death.

    Args:
        brief: what it is made from.
    """

    def __init__(self, brief: ActorInit) -> None:
        # A decode process would import the main module anew, which here is Ray's own worker.
        sys.modules["__main__"].__file__ = None
        self._started_at = time.time()
        _configure_logging()
        self._brief = brief
        # One thread for all of the actor's life: Linux ends decode processes with the thread that started them.
        self._thread = ThreadPoolExecutor(1)
        self._pins = ExitStack()  # held for the life of this process
        self._reports = Reports()
        self._asked: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._engine: EmbeddingPipeline | None = None
        self._running: Future[None] | None = None
        self._failure: BaseException | None = None
        self._began = 0.0

    async def where(self) -> str:
        """The machine that it is on, as Ray calls it."""
        import ray

        return str(ray.get_runtime_context().get_node_id())

    async def make(self) -> dict[str, Any]:
        """Have a decode pool and a session that has passed the parity gate; what the actor says of itself."""
        here = {"host": socket.gethostname(), "pid": os.getpid(), "node": await self.where()}
        self._about: dict[str, Any] = {"metrics": {}, "warnings": [], "error": None, **here}
        try:
            await asyncio.wrap_future(self._thread.submit(self._make, self._about))
        except Exception as error:
            log.exception("the actor can't work")
            self._about |= self._reports.fail(error)
        return self._about

    async def embed(self, shard: int) -> dict[str, Any]:
        """Embed a shard; see ``Reports.expect``."""
        if self._running is None:
            self._began = time.time()
            self._running = self._thread.submit(self._run)
        report = self._reports.expect(shard)
        self._asked.put(shard)
        return await asyncio.wrap_future(report)

    async def progress(self) -> dict[str, Any]:
        """How far it is: when it ``began`` and ``ended`` (or is now), ``examples`` embedded, also ``under_way``."""
        engine = self._engine
        if engine is None:
            return {}
        done, finished = engine.stats.examples_done, engine.stats.progress.examples
        ended = self._began + engine.stats.steady_s
        return {"began": self._began, "ended": ended, "examples": done, "under_way": max(0, done - finished)}

    async def finish(self) -> dict[str, Any]:
        """End it all, with a last canary: how far it came, and of ``stages`` the seconds that they were busy."""
        if self._running is None:
            return {}
        self._asked.put(None)
        await asyncio.wrap_future(self._running)
        if self._failure is not None:
            return self._reports.fail(self._failure)
        engine, canaries = self._engine, [replica.canary for replica in self._replicas if replica.canary]
        assert engine is not None
        halved = [halving for each in self._ready.sessions for halving in each.oom_backoffs]
        missed = [miss for canary in canaries for miss in canary.misses[:1]]
        return {
            **await self.progress(),
            "stages": self._stages,
            "starved_s": sum(engine.stats.input_wait_s.values()) / sum(replica.threads for replica in self._replicas),
            "canaries": sum(canary.count for canary in canaries),
            "warnings": [*engine.stats.replica_failures, *halved, *missed],
        }

    def _make(self, about: dict[str, Any]) -> None:
        settled = settle(self._brief)
        self.spec = settled.spec | {"spawned_at": self._started_at}
        self.config, self.mirror, self._folder = _apply_ray_resources(settled.config), settled.mirror, settled.folder
        config, cold = self.config, StartupTimer(self._started_at)
        self._pool = DecodePool(decode_options(config), 1, config.dataset.decode_timeout_s)
        self.spec["dtypes"] = window_types(Path(self.spec["manifest"]))
        ready = prepare_sessions(config, self.spec, cold, Events(io.StringIO()), about)
        plan = ready.placement.memory
        workers = decoders_for(plan.decode_workers, self._brief.clips)
        self._pool.open(workers, plan.spare_slots, ready.sessions[0].effective_batch_size)
        if ready.placement.device.effective is DeviceType.GPU:
            self._lock_pages(cold, about)
        self._ready = ready
        about["identity"] = identity_of(ready.sessions[0], ready.postprocess)
        about["file_metadata"] = file_metadata(config, ready.sessions[0], ready.placement)
        about["metrics"] |= cold.metrics(time.time())
        tune_interpreter()

    def _lock_pages(self, cold: StartupTimer, about: dict[str, Any]) -> None:
        """Lock the slots' pages for the GPU, for as long as this actor lives."""
        with cold.step("pin"):
            unpinned = self._pins.enter_context(pinned(self._pool.memory.bytes))
        about["resolved"]["memory.pinned"] = unpinned is None
        if unpinned:
            about["warnings"].append(f"batches are copied to the GPU from pageable memory: {unpinned}")

    def _run(self) -> None:
        """Embed what is asked for until no more is; what goes wrong ends all calls."""
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

    def _make_writer(self) -> RunWriter:
        if self.mirror:
            agree(Path(self.spec["run_dir"]), self._about["identity"])
        kind = self.mirror.writer_kind(closes=False) if self.mirror else ShardWriter
        about = self.spec, self.config, self._about["file_metadata"], self._ready.postprocess
        return make_writer(*about, journal=self._reports, kind=kind)

    def _make_replicas(self) -> list[Replica]:
        ready = self._ready
        about = ready.answers, self.config.parity, ready.dtypes, lambda: len(self._writer.done)
        return [Replica.watched(each, Canary(each, *about)) for each in ready.sessions]

    def _make_engine(self) -> EmbeddingPipeline:
        spec, config = self.spec, self.config
        shards = [(int(first), int(end)) for first, end in spec["shards"]]
        return EmbeddingPipeline(
            ShardedClips(shards, self._clips(shards), self._brief.clips),
            self._pool,
            self._writer,
            shutdown_timeout_s=config.engine.shutdown_timeout_s,
            on_skip=SkipLimit(config.dataset, spec["dataset"], 0),
            spill=make_spill(Path(spec["run_dir"]), config),
        )

    def _clips(self, shards: list[tuple[int, int]]) -> Iterator[Clip | None]:
        """The clips of the shards asked for; None while none is."""
        reader = ClipReader(Path(self.spec["manifest"]))
        while True:
            try:
                shard = self._asked.get_nowait()
            except queue.Empty:
                yield None
                continue
            if shard is None:
                return
            yield from reader.clips(*shards[shard])


def _configure_logging() -> None:
    """Have this process's log, as the local worker has it, on standard error, which Ray brings to the driver's."""
    own = logging.getLogger("runner")
    if not own.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(PrintableFormatter(LOG_FORMAT))
        own.addHandler(handler)
        own.setLevel(logging.INFO)
        own.propagate = False


def _apply_ray_resources(config: RunConfig) -> RunConfig:
    """Plan threads, processes and a GPU's memory for what Ray gave this actor: others have the rest."""
    import ray

    given = ray.get_runtime_context().get_assigned_resources()
    cpus, gpus = given.get("CPU", 0.0), given.get("GPU", 0.0)
    if cpus >= 1:
        os.environ[CORES] = str(int(cpus))
    if 0 < gpus < 1:
        memory = replace(config.memory, gpu_memory_fraction=gpus * config.memory.gpu_memory_fraction)
        return replace(config, memory=memory)
    return config
