"""``engine=ray``: the run's shards by actors on a cluster that embed as the local engine does.

The driver (the run's worker process, without TensorFlow) keeps the journal: a shard is done once its line is there, so
a run that was begun by one engine is finished by any other.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.config.ray_address import address_of
from runner.config.schema import RayEngineConfig, from_dict
from runner.core.errors import EngineError
from runner.core.failures import Failure, error_of
from runner.dataset.clips import ClipReader
from runner.engines.ray.cluster import connect, most_actors, seat_for
from runner.engines.ray.pool import DEATHS, Cluster, ShardPool
from runner.engines.ray.registry import ActorInit, weights_in
from runner.engines.ray.stats import ActorFigures
from runner.output.state.identity import agree, diff_identity, load_identity
from runner.output.state.journal import ShardEntry
from runner.output.state.locks import worker_lock
from runner.output.verify import shards_done
from runner.output.writer import ShardWriter, check_complete, totals
from runner.pipeline.skip_limit import check_skipped

if TYPE_CHECKING:
    from runner.core.events import Events
    from runner.core.stop_signals import StopSignal
    from runner.engines.ray.cluster import Seat
    from runner.engines.ray.pool import Report
    from runner.output.remote.committer import RemoteCommitter

log = logging.getLogger("runner.engines.worker")

_PROGRESS_S = 0.25

_LOOK_S = 1.0


def carry_out(
    spec: dict[str, Any],
    run_dir: Path,
    events: Events,
    result: dict[str, Any],
    stop: StopSignal,
    mirror: RemoteCommitter | None = None,
) -> None:
    """Embed what is left of a run on a cluster; what it came to goes into ``result``.

    Args:
        spec: the run's.
        run_dir: its folder, on storage that all machines see, or the working folder of a run in an object store.
        events: told of progress.
        result: filled.
        stop: whether to end early.
        mirror: the run's object store, if it has one.

    Raises:
        EngineError: Ray is not installed, can't be reached, or has nothing to run on; shards kill their actors.
        RunnerError: what an actor failed with.
    """
    config = from_dict(spec["config"])
    result["warnings"] = []
    with contextlib.ExitStack() as stack:
        events.send("phase", name="lock")
        stack.enter_context(worker_lock(run_dir, config.engine.shutdown_timeout_s, mirror.lock if mirror else None))
        done = mirror.shards_done() if mirror else shards_done(run_dir, config, spec["rows"])
        stop.begin(lambda: None)  # from here on it is looked at
        events.send("phase", name="cluster")
        assert isinstance(config.engine, RayEngineConfig)
        collected = ReportCollector(spec, run_dir, events, result, done)
        if collected.left:
            ray = connect(config.engine)
            stop.take_signals()  # Ray takes SIGTERM for itself
            seat = _first_seat(ray, config.engine, config.device.name, events, stop)
            collected.embed(ray, seat, stop)
        if mirror:
            mirror.get_parts(collected.writer.done)
        collected.finish(stop.is_set() and bool(collected.left))


def _first_seat(ray: Any, engine: RayEngineConfig, device: str, events: Events, stop: StopSignal) -> Seat:
    """What an actor takes, once there is a machine that holds one; an autoscaler brings one that is reserved.

    Raises:
        EngineError: there is none, and none comes.
    """
    seat = seat_for(engine, device, ray.nodes())
    if seat.fits(ray.nodes()):
        return seat
    wait_s = engine.wait_s if address_of(engine) else 0.0
    waiting_until, wanted = time.monotonic() + wait_s, f"a machine with {seat}"
    _say(events, f"waiting for {wanted}" if wait_s else None)
    reserved = ray.util.placement_group([seat.bundle]) if wait_s else None
    while not seat.fits(ray.nodes()) and not stop.is_set():
        if time.monotonic() >= waiting_until:
            raise EngineError(
                f"the cluster has no machine with {seat} for an actor, and none came in {wait_s:g} s: add one, raise "
                "engine.wait_s, or lower engine.num_cpus_per_actor or engine.num_gpus_per_actor"
            )
        time.sleep(_LOOK_S)
    if reserved:
        ray.util.remove_placement_group(reserved)
    return seat_for(engine, device, ray.nodes())


def _say(events: Events, what: str | None) -> None:
    """Tell the person what the run waits for; None: that it is at work."""
    if what:
        log.info("%s", what)
    events.send("phase", name="embed", seconds={}, text=what)


class ReportCollector:
    """Takes what actors give: into the journal, the counts and the figures.

    Args:
        spec: the run's.
        run_dir: its folder.
        events: told of progress.
        result: filled at the end.
        done: the shards that the journal has already.
    """

    def __init__(
        self, spec: dict[str, Any], run_dir: Path, events: Events, result: dict[str, Any], done: dict[int, ShardEntry]
    ) -> None:
        self._spec, self._run_dir, self._events, self._result = spec, run_dir, events, result
        self._config = from_dict(spec["config"])
        self._clips, self._examples, self._skipped = 0, 0, Counter[str]()
        for entry in done.values():
            self._count(entry)
        self._before, self._told_at = self._clips, 0.0
        self._resolved: dict[str, Any] = {}
        self.writer = ShardWriter(run_dir, {}, [], done)
        self.figures = ActorFigures(events, result)

    @property
    def left(self) -> list[int]:
        """The shards that are not done."""
        return [number for number in range(len(self._spec["shards"])) if number not in self.writer.done]

    def embed(self, ray: Any, seat: Seat, stop: StopSignal) -> None:
        """Have all that is left embedded by actors.

        Raises:
            EngineError: shards have killed their actors; all else is done.
        """
        from runner.engines.ray.actor import EmbedShards

        engine, left, spans = self._config.engine, self.left, self._spec["shards"]
        assert isinstance(engine, RayEngineConfig)
        clips = sum(spans[number][1] - spans[number][0] for number in left)
        each = -(-clips // max(1, most_actors(engine, seat, ray.nodes())))
        brief = ray.put(ActorInit(self._spec, weights_in(ray, self._spec) if address_of(engine) else {}, each))
        kind = ray.remote(EmbedShards).options(
            num_cpus=seat.cpus, num_gpus=seat.gpus, resources=dict(seat.resources), max_restarts=0, max_task_retries=0
        )
        cluster = Cluster(
            start=lambda: kind.remote(brief),
            kill=ray.kill,
            nodes=lambda: {node["NodeID"] for node in ray.nodes() if node["Alive"]},
            most=lambda: most_actors(engine, seat, ray.nodes()),
            death=ray.exceptions.RayActorError,
        )
        pool = ShardPool(
            *(cluster, left),
            clips=clips / len(left),
            elastic=address_of(engine) is not None,
            wait_s=engine.wait_s,
            needs=str(seat),
            say=lambda what: _say(self._events, what),
        )
        _say(self._events, None)
        with contextlib.closing(pool):
            for report in pool.reports(stop.is_set, engine.shutdown_timeout_s):
                self.take(report)
        took = {"max_size": pool.largest, "num_cpus_per_actor": seat.cpus, "num_gpus_per_actor": seat.gpus}
        self._resolved = {f"engine.{key}": value for key, value in took.items()}
        if pool.killers and not stop.is_set():
            self._blame(pool.killers)

    def _blame(self, killers: dict[int, str]) -> None:
        """Shards that can't be done end the run, rather than have their clips skipped.

        What kills an actor is memory, a driver or the machine: decoders crash in processes of their own.  To skip
        clips for it would write a machine's fault into the data set's result, where nobody sees it.
        """
        shard, death = next(iter(killers.items()))
        first, end = self._spec["shards"][shard]
        reader = ClipReader(Path(self._spec["manifest"]))
        names = [clip.name for at in (first, end - 1) for clip in reader.clips(at, at + 1)]
        raise EngineError(
            f"{len(killers)} shards killed their actors {DEATHS} times each, the last time alone, and all others are "
            f"done (the first is shard {shard}, {names[0]} to {names[1]}: {' '.join(death.split())}): see runner.log, "
            "give actors more memory, or take such clips out, and rerun the same command to resume"
        )

    def take(self, report: Report) -> None:
        """Take what an actor gave; raise what it failed with."""
        about, value = report.actor.about or {}, report.value
        if report.kind == "make" and not value["error"]:
            self._check_actor(about)
        elif entry := value.get("entry"):
            entry["files"] = {name: tuple(described) for name, described in entry["files"].items()}
            self.writer.record(ShardEntry(**entry))
            self._count(self.writer.done[entry["shard"]])
            self.figures.take_shard(about, entry)
        elif report.kind in ("progress", "finish"):
            self.figures.take_progress(about, value)
        if time.monotonic() > self._told_at + _PROGRESS_S:
            self._told_at = time.monotonic()
            self._progress()
        if value.get("error"):
            for shard in set(value["undone"]) & self.writer.done.keys():
                self._count(self.writer.done[shard], -1)
                self.writer.record(ShardEntry(shard, undone=True))
            raise error_of(Failure(**value["error"]))
        check_skipped(self._config.dataset, self._spec["dataset"], self._skipped.total())

    def _check_actor(self, about: dict[str, Any]) -> None:
        """An actor must embed with what the run was begun with; the first one's words are in clips.parquet.

        Raises:
            EngineError: it has other numbers than the actors before it.
            ResumeError: it has other numbers than the run was begun with.
        """
        if self.figures.meet(about):
            agree(self._run_dir, about["identity"])
            self.writer.describe(about["file_metadata"])
        elif others := diff_identity(load_identity(self._run_dir) or {}, about["identity"]):
            raise EngineError(
                f"{about['host']} embeds with other numbers than those before it: {others}; give a precision that "
                "all machines have, as precision=float32, and the same weights on all of them"
            )

    def _count(self, entry: ShardEntry, sign: int = 1) -> None:
        self._clips += sign * entry.clips
        self._examples += sign * entry.examples
        for reason, clips in entry.counts["skipped"].items():
            self._skipped[reason] += sign * clips

    def finish(self, killed: bool) -> None:
        """Make clips.parquet, and fill the result."""
        self._progress(over=True)
        self.writer.close()
        if not killed:
            check_complete(self._spec["shards"], self.writer.done)
        result = self._result
        result["status"] = "killed" if killed else "finished"
        overall, result["skipped"], result["noted"] = totals(self.writer.done)
        result["metrics"] |= overall
        self.figures.fill()
        result["shards"] = len(self.writer.done)
        result["resolved"] = result.get("resolved", {}) | self._resolved

    def _progress(self, *, over: bool = False) -> None:
        under_way = 0.0 if over else self.figures.examples_under_way * self._config.frontend.hop_s
        self._events.send(
            "progress",
            clips=self._clips,
            session_clips=self._clips - self._before,
            skipped=self._skipped.total(),
            examples=self._examples,
            audio_s=self.figures.audio_s + under_way,
            elapsed_s=self.figures.elapsed_s,
        )
