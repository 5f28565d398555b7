"""What actors of ``engine=ray`` do, and the one that does all: it embeds shards as the local engine does.

That one owns a session and decode processes; its files are the local engine's, written by the same code into the run's
folder or put into its object store.  What goes back to the driver is a report: a line a shard for the journal, and how
long it took.
"""

from __future__ import annotations

import io
import json
import logging
import os
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from runner.canary import Canary
from runner.cold_start import LOG_FORMAT, ColdStart, Events, Ready, make_ready
from runner.config import RayEngineConfig, RunConfig
from runner.cuda import pinned
from runner.devices import DeviceType
from runner.engine import Engine, Lane
from runner.errors import EngineError
from runner.failures import failure_of
from runner.hardware import CORES
from runner.journal import ShardEntry
from runner.limits import SkipLimit
from runner.measure import stage_seconds
from runner.output import RunWriter
from runner.parts import (
    decode_options,
    decoders_for,
    favour_lanes,
    file_metadata,
    make_spill,
    make_writer,
    read_clips,
)
from runner.pool import DecodePool
from runner.printable import PrintableFormatter
from runner.ray_registry import Brief, agreed_identity, settle
from runner.taking_up import agree, differing, identity_of
from runner.window_types import window_types

if TYPE_CHECKING:
    from runner.store_writer import StoreMirror
    from runner.vggish.session import VGGishSession

log = logging.getLogger("runner.worker")

_REPORT_S = 1.0
"""So often an actor tells of shards that are done."""
_BATCHES_AT_END = 100
"""A call of fewer batches since the last canary ends without one."""
CALLS = 2
"""How many rows an actor has at a time: one is embedded while the last shards of another are written."""


class Entries:
    """In the place of a journal: keeps the lines for the report."""

    def __init__(self) -> None:
        self.kept: deque[ShardEntry] = deque()

    def append(self, entry: ShardEntry) -> None:
        """Keep a line."""
        self.kept.append(entry)

    def take(self) -> list[ShardEntry]:
        """What was kept since the last time; while others append, and take."""
        taken = []
        with suppress(IndexError):
            while True:
                taken.append(self.kept.popleft())
        return taken

    def close(self) -> None:
        """Nothing is open."""


class ShardWriter(RunWriter):
    """Writes shards; clips.parquet is the driver's to make."""

    def close(self) -> None:
        """The driver closes the run."""


def shard_writer_kind(mirror: StoreMirror | None) -> Callable[..., RunWriter]:
    """What makes a writer of shards, to a folder or, with a mirror, to the store."""
    return mirror.writer_kind(closes=False) if mirror else ShardWriter


class Actor:
    """What all actors are: made from the run's spec, known by machine and process, their failures kept for reports.

    Args:
        brief: what it is made from.
    """

    role = "whole"
    """Of ``whole``, ``decode`` and ``embed``."""

    def __init__(self, brief: Brief) -> None:
        # A decode process would import the main module anew, which here is Ray's own worker.
        sys.modules["__main__"].__file__ = None
        started_at = time.time()
        _log_here()
        self.error: dict[str, Any] | None = None
        self.about: dict[str, Any] = {
            "metrics": {},
            "warnings": [],
            "role": self.role,
            "host": socket.gethostname(),
            "node": _node(),
            "pid": os.getpid(),
        }
        self.registry = brief.registry
        self.shards = [(int(first), int(end)) for first, end in brief.spec["shards"]]
        try:
            settled = settle(brief)
            self.spec = settled.spec | {"spawned_at": started_at}
            self.config, self.mirror = _take_share(settled.config, self.role), settled.mirror
            self.manifest, self.run_dir = Path(self.spec["manifest"]), Path(self.spec["run_dir"])
            self.make()
        except Exception as error:
            log.exception("the actor can't work")
            self.error = described(error)

    def make(self) -> None:
        """Make what the work needs; what it raises is every report's error."""
        raise NotImplementedError

    def make_session(self, cold: ColdStart) -> Ready:
        """Sessions that have passed the parity gate, each measured on its own device."""
        self.spec["dtypes"] = window_types(self.manifest)
        ready = make_ready(self.config, self.spec, cold, Events(io.StringIO()), self.about)
        self.about["identity"] = identity_of(ready.sessions[0], ready.postprocess)
        if others := differing(agreed_identity(self.registry, self.about["identity"]), self.about["identity"]):
            raise EngineError(
                f"{self.about['host']} embeds with other numbers than those before it: {others}; give a precision that "
                "all machines have, as precision=float32, and the same weights on all of them"
            )
        self.about["file_metadata"] = file_metadata(self.config, ready.sessions[0], ready.placement)
        return ready

    def canary_of(self, session: VGGishSession, ready: Ready, shards: Callable[[], int] = lambda: 0) -> Canary:
        """What watches a session; see ``Canary``.  Calls are short: not each of them ends with a canary."""
        return Canary(session, ready.answers, self.config.parity, ready.dtypes, shards, at_end=_BATCHES_AT_END)

    def report(self, **values: Any) -> dict[str, Any]:
        """What the driver is told: who, with which failure if any, and the values given."""
        return {"actor": self.about, "error": self.error, "entries": [], **values}


class EmbedShards(Actor):
    """A stateful function for ``map_batches``: rows with ``shards`` (a JSON list of numbers) to rows with ``report``.

    Shards are reported while the next ones are embedded, so that the driver can note them.

    Args:
        brief: what it is made from.
    """

    def make(self) -> None:
        """A decode pool, a session and a writer, as the local engine has them."""
        # One thread for all of the actor's life: Linux ends decode processes with the thread that started them.
        self._thread, self._calls = ThreadPoolExecutor(1), ThreadPoolExecutor(CALLS)
        self._pins = ExitStack()  # held for the life of this process
        self._thread.submit(self._make).result()

    def _make(self) -> None:
        config = self.config
        cold = ColdStart(self.spec["spawned_at"])
        self._pool = DecodePool(decode_options(config), 1, config.dataset.clip_timeout_s)
        ready = self.make_session(cold)
        plan, sessions = ready.placement.memory, ready.sessions
        clips = self.shards[-1][1]
        self._pool.open(decoders_for(plan.decode_workers, clips), plan.spare_slots, sessions[0].rows_at_once)
        if ready.placement.device.effective is DeviceType.GPU:
            self._lock_pages(cold)
        self._entries = Entries()
        if self.mirror:
            agree(self.run_dir, self.about["identity"])
        metadata, kind = self.about["file_metadata"], shard_writer_kind(self.mirror)
        self._writer = make_writer(self.spec, config, metadata, ready.postprocess, journal=self._entries, kind=kind)
        self._lanes = [
            Lane.watched(each, self.canary_of(each, ready, lambda: len(self._writer.done))) for each in sessions
        ]
        self.about["metrics"] |= cold.metrics(time.time())
        favour_lanes()

    def _lock_pages(self, cold: ColdStart) -> None:
        """Lock the slots' pages for the GPU, for as long as this actor lives."""
        with cold.step("pin"):
            unpinned = self._pins.enter_context(pinned(self._pool.memory))
        self.about["resolved"]["memory.pinned"] = unpinned is None
        if unpinned:
            self.about["warnings"].append(f"batches are copied to the GPU from pageable memory: {unpinned}")

    def __call__(self, batch: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Embed the shards of one row, and report now and then; the next call begins while the last are written."""
        for numbers in batch["shards"]:
            for report in self._embed(json.loads(numbers)):
                yield {"report": np.array([json.dumps(report)], object)}

    def _embed(self, numbers: list[int]) -> Iterator[dict[str, Any]]:
        if self.error is not None:
            yield self.report()
            return
        config, spans = self.config, [self.shards[number] for number in numbers]
        engine = Engine(
            self.shards,
            read_clips(self.manifest, spans),
            self._pool,
            self._writer,
            stop_grace_s=config.engine.stop_grace_s,
            clips_left=sum(end - first for first, end in spans),
            on_skip=SkipLimit(config.dataset, self.spec["dataset"], 0),
            spill=make_spill(self.run_dir, config),
        )
        since = _Since(engine, self._entries)
        running = self._calls.submit(self._run, engine, since)
        while not wait([running], _REPORT_S).done:
            if self._entries.kept or since.moved:
                yield self.report(**since.last())
        report = self.report(**since.last(over=True))
        if failure := running.exception():
            log.error("shards %s failed", numbers, exc_info=failure)
            report["error"] = self.error
        elif (decoded := running.result()) is not None:
            report["stages"] = stage_seconds(engine, decoded, len(self._pool))
            report["starved_s"] = sum(engine.starved_s.values()) / sum(lane.threads for lane in self._lanes)
        yield report

    def _run(self, engine: Engine, since: _Since) -> float | None:
        """Embed when it is this call's turn, and write; the seconds that decode processes decoded.

        None where an earlier call has failed: it may have left clips in the decode pool, which would be taken for
        this one's.
        """
        decoded = self._thread.submit(self._take_turn, engine, since).result()
        if decoded is None:
            return None
        try:
            engine.finish()
        except Exception as failure:
            self.error = self.error or described(failure)
            raise
        return decoded

    def _take_turn(self, engine: Engine, since: _Since) -> float | None:
        if self.error is not None:
            return None
        before = sum(self._pool.busy_s.values())
        since.begin()
        engine.embed(self._lanes)
        if engine.failure is not None:
            self.error = described(engine.failure)
        return sum(self._pool.busy_s.values()) - before


class _Since:
    """What an engine has done since the last report."""

    def __init__(self, engine: Engine, entries: Entries) -> None:
        self._engine, self._entries = engine, entries
        self._at: float | None = None
        self._counts = {"clips": 0.0, "examples": 0.0, "audio_s": 0.0, "under_way": 0.0}
        self._examples_done = 0

    def begin(self) -> None:
        """The engine begins."""
        self._at = time.time()

    @property
    def moved(self) -> bool:
        """Whether examples were embedded since."""
        return self._engine.examples_done > self._examples_done

    def last(self, *, over: bool = False) -> dict[str, Any]:
        """The report's values; the next ones count from here.  ``over``: nothing is under way any more."""
        progress, began, before, now = self._engine.progress, self._at, self._counts, time.time()
        self._examples_done = self._engine.examples_done
        under_way = 0 if over else max(0, self._examples_done - progress.examples)
        self._counts = {
            "clips": progress.embedded,
            "examples": progress.examples,
            "audio_s": progress.audio_s,
            "under_way": under_way,
        }
        counts = {key: count - before[key] for key, count in self._counts.items()}
        times = {}
        if began is not None:
            self._at = now
            times = {"began": began, "ended": now}
        return {**times, **counts, "entries": [vars(entry) for entry in self._entries.take()]}


def described(error: BaseException) -> dict[str, Any]:
    """A failure as a report has it."""
    return failure_of(error)._asdict()


def _log_here() -> None:
    """Have this process's log, as the local worker has it, on standard error, which Ray brings to the driver's."""
    own = logging.getLogger("runner")
    if not own.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(PrintableFormatter(LOG_FORMAT))
        own.addHandler(handler)
        own.setLevel(logging.INFO)
        own.propagate = False


def _take_share(config: RunConfig, role: str) -> RunConfig:
    """Plan threads, processes and a GPU's memory for what Ray gave this actor: others have the rest.

    Who embeds what others decode uses all cores, unless the configuration says how many: decoding seldom needs its own.
    """
    import ray

    assert isinstance(config.engine, RayEngineConfig)
    given = ray.get_runtime_context().get_assigned_resources()
    cpus, gpus = given.get("CPU", 0.0), given.get("GPU", 0.0)
    if cpus >= 1 and (role == "whole" or config.engine.num_cpus_per_actor is not None):
        os.environ[CORES] = str(int(cpus))
    if 0 < gpus < 1:
        memory = replace(config.memory, gpu_memory_fraction=gpus * config.memory.gpu_memory_fraction)
        return replace(config, memory=memory)
    return config


def _node() -> str:
    import ray

    return str(ray.get_runtime_context().get_node_id())
