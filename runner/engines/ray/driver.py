"""``engine=ray``: the run's shards by actors on a cluster that embed as the local engine does.

The driver (the run's worker process, without TensorFlow) keeps the journal: a shard is done once its line is there, so
any engine can resume a run that another began.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn

from runner.config.ray_address import address_of
from runner.config.schema import RayEngineConfig
from runner.contract.events import ProgressEvent
from runner.core.errors import EngineError
from runner.core.failures import error_of
from runner.core.layout import RunLayout
from runner.dataset.clips import ClipReader
from runner.engines.common import Engine, remote_committer
from runner.engines.ray.cluster import connect, most_actors, seat_for
from runner.engines.ray.messages import ActorEnd, ActorInit, ActorProgress, ActorReport, ShardReport
from runner.engines.ray.pool import DEATHS, Cluster, PoolSettings, ShardPool
from runner.engines.ray.registry import upload_weights
from runner.engines.ray.stats import ActorStats
from runner.output.state.identity import check_identity, diff_identity, load_identity
from runner.output.state.journal import Journal, ShardEntry
from runner.output.state.locks import worker_lock
from runner.output.verify import load_committed_shards
from runner.output.writer import check_complete, totals, write_clips_table
from runner.pipeline.skip_limit import check_skipped

if TYPE_CHECKING:
    from runner.contract.events import Events
    from runner.contract.result import RunStats, Scalar, Status
    from runner.contract.spec import RunSpec
    from runner.core.stop_signals import StopSignal
    from runner.engines.ray.cluster import Seat
    from runner.engines.ray.messages import Message
    from runner.engines.ray.pool import Report

log = logging.getLogger(__name__)

_PROGRESS_S = 0.25

_LOOK_S = 1.0


class RayEngine(Engine):
    """Embeds a run by actors on a cluster; see ``Engine``."""

    def __init__(self, spec: RunSpec, events: Events, stop: StopSignal) -> None:
        super().__init__(spec, events, stop)
        self._connection = contextlib.ExitStack()

    def run(self) -> Status:
        """Embed what is left.

        Raises:
            EngineError: Ray is not installed, can't be reached, or has nothing to run on; shards kill their actors.
            RunnerError: an actor failed with it.
        """
        spec, config = self._spec, self._spec.config
        assert isinstance(config.engine, RayEngineConfig)
        remote = remote_committer(spec)
        with contextlib.ExitStack() as stack:
            self._events.phase("lock")
            lock = remote.worker_lock if remote else None
            stack.enter_context(worker_lock(spec.run_dir, config.engine.shutdown_timeout_s, lock))
            if remote:
                committed = remote.load_committed_shards()
            else:
                committed = load_committed_shards(spec.run_dir, config.output.formats, spec.row_digests)
            self._stop.begin(lambda: None)  # from here on it is polled
            self._events.phase("cluster")
            collector = ReportCollector(spec, self._events, committed)
            stack.callback(collector.journal.close)
            resolved: dict[str, Scalar] = {}
            if collector.remaining:
                ray = connect(config.engine, self._connection)
                self._stop.install_handlers()  # Ray takes SIGTERM for itself
                seat = _first_seat(ray, config.engine, config.device.name, self._events, self._stop)
                resolved = self._embed(ray, seat, collector)
            if remote:
                remote.download_clip_rows(collector.committed)
            status: Status = "interrupted" if self._stop.is_set() and collector.remaining else "finished"
            collector.close(is_complete=status == "finished")
            self.stats, self.startup = collector.stats(), collector.actors.startup()
            self.startup = replace(self.startup, resolved={**self.startup.resolved, **resolved})
            self.metrics |= collector.metrics()
        return status

    def close(self) -> None:
        """Leave the cluster, and stop it if it was started here."""
        self._connection.close()

    def _embed(self, ray: Any, seat: Seat, collector: ReportCollector) -> dict[str, Scalar]:
        """Have all shards that are left embedded by actors; return what took effect of the engine's settings.

        Raises:
            EngineError: shards have killed their actors; all others are done.
            RunnerError: an actor failed with it.
        """
        from runner.engines.ray.actor import EmbedShards

        engine, spec, remaining = self._spec.config.engine, self._spec, collector.remaining
        assert isinstance(engine, RayEngineConfig)
        clips = sum(spec.shards[number].rows for number in remaining)
        clips_per_actor = -(-clips // max(1, most_actors(engine, seat, ray.nodes())))
        weights = upload_weights(ray, spec) if address_of(engine) else {}
        init = ray.put(ActorInit(spec, weights, clips_per_actor))
        actor_class = ray.remote(EmbedShards).options(
            num_cpus=seat.cpus, num_gpus=seat.gpus, resources=dict(seat.resources), max_restarts=0, max_task_retries=0
        )
        cluster = Cluster(
            start=lambda: actor_class.remote(init),
            kill=ray.kill,
            nodes=lambda: {node["NodeID"] for node in ray.nodes() if node["Alive"]},
            most=lambda: most_actors(engine, seat, ray.nodes()),
            death=ray.exceptions.RayActorError,
        )
        settings = PoolSettings(clips / len(remaining), address_of(engine) is not None, engine.wait_s, str(seat))
        pool = ShardPool(cluster, remaining, settings, lambda text: _say(self._events, text))
        _say(self._events, None)
        with contextlib.closing(pool):
            for report in pool.reports(self._stop.is_set, engine.shutdown_timeout_s):
                collector.add(report)
        if pool.killers and not self._stop.is_set():
            _blame(spec, pool.killers)
        return {
            "engine.max_size": pool.largest,
            "engine.num_cpus_per_actor": seat.cpus,
            "engine.num_gpus_per_actor": seat.gpus,
        }


def _first_seat(ray: Any, engine: RayEngineConfig, device: str, events: Events, stop: StopSignal) -> Seat:
    """Return an actor's resources, once there is a machine that has them; an autoscaler adds one for a reservation.

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


def _say(events: Events, text: str | None) -> None:
    """Show what the run waits for; None: that it is at work."""
    if text:
        log.info("%s", text)
    events.phase("embed", text)


def _blame(spec: RunSpec, killers: Mapping[int, str]) -> NoReturn:
    """End the run for shards that kill their actors, rather than have their clips skipped.

    Memory, a driver or the machine kills an actor: decoders crash in processes of their own.  To skip clips for it
    would write a machine's fault into the data set's result, where nobody sees it.
    """
    shard, death = next(iter(killers.items()))
    first, end = spec.shards[shard]
    reader = ClipReader(spec.manifest)
    names = [clip.name for row in (first, end - 1) for clip in reader.clips(row, row + 1)]
    raise EngineError(
        f"{len(killers)} shards killed their actors {DEATHS} times each, the last time alone, and all others are "
        f"done (the first is shard {shard}, {names[0]} to {names[1]}: {' '.join(death.split())}): see runner.log, "
        "give actors more memory, or take such clips out, and rerun the same command to resume"
    )


class ReportCollector:
    """Takes the reports of actors into the journal, the counts and the statistics.

    Args:
        spec: the run's.
        events: gets progress and warnings.
        committed: the shards that the journal has already.

    Attributes:
        committed: the committed shards by number.
        journal: of the run.
        actors: the statistics.
    """

    def __init__(self, spec: RunSpec, events: Events, committed: dict[int, ShardEntry]) -> None:
        self._spec, self._events = spec, events
        self._clips, self._examples, self._skipped = 0, 0, Counter[str]()
        for entry in committed.values():
            self._count(entry)
        self._before, self._sent_at = self._clips, 0.0
        self.committed = dict(committed)
        self.journal = Journal(RunLayout(spec.run_dir).journal)
        self._file_metadata: Mapping[str, str] = {}
        self.actors = ActorStats(events)

    @property
    def remaining(self) -> list[int]:
        """The shards that are not done."""
        return [number for number in range(len(self._spec.shards)) if number not in self.committed]

    def add(self, report: Report) -> None:
        """Add an actor's answer.

        Raises:
            RunnerError: the actor failed with it, or too many clips were skipped.
        """
        message = report.message
        failed = None if message is None or isinstance(message, ActorProgress) else message.failed
        if isinstance(message, ActorReport):
            if not failed:
                self._check_actor(message)
        elif report.actor.report is not None:
            self._add(report.actor.report, message)
        if time.monotonic() > self._sent_at + _PROGRESS_S:
            self._sent_at = time.monotonic()
            self._send_progress()
        if failed:
            for shard in set(failed.revoked) & self.committed.keys():
                self._count(self.committed.pop(shard), -1)
                self.journal.append(ShardEntry(shard, revoked=True))
            raise error_of(failed.failure)
        check_skipped(self._spec.config.dataset, self._spec.dataset, self._skipped.total())

    def _add(self, actor: ActorReport, message: Message) -> None:
        if isinstance(message, ShardReport) and message.entry:
            self.journal.append(message.entry)
            self.committed[message.entry.shard] = message.entry
            self._count(message.entry)
            self.actors.add_shard(actor, message.entry)
        elif isinstance(message, ActorProgress):
            self.actors.add_progress(actor, message)
        elif isinstance(message, ActorEnd):
            self.actors.add_end(actor, message)

    def _check_actor(self, report: ActorReport) -> None:
        """Check that an actor has the run's weights and precision; clips.parquet gets the first one's metadata.

        Raises:
            EngineError: it has others than the actors before it.
            ResumeError: it has others than the run was begun with.
        """
        if self.actors.add_actor(report):
            check_identity(self._spec.run_dir, report.identity)
            self._file_metadata = report.file_metadata
        elif others := diff_identity(load_identity(self._spec.run_dir) or {}, report.identity):
            raise EngineError(
                f"{report.host} embeds with other numbers than those before it: {others}; give a precision that "
                "all machines have, as precision=float32, and the same weights on all of them"
            )

    def _count(self, entry: ShardEntry, sign: int = 1) -> None:
        self._clips += sign * entry.clips
        self._examples += sign * entry.examples
        for reason, clips in entry.counts.skipped.items():
            self._skipped[reason] += sign * clips

    def close(self, *, is_complete: bool) -> None:
        """Write clips.parquet.

        Raises:
            EngineError: a run that ``is_complete`` has shards without an end.
        """
        self._send_progress(is_last=True)
        write_clips_table(self._spec.run_dir, self.committed, self._file_metadata)
        if is_complete:
            check_complete(self._spec.shards, self.committed)

    def metrics(self) -> dict[str, float]:
        """Collect the run's metrics."""
        return {**totals(self.committed).metrics, **self.actors.metrics()}

    def stats(self) -> RunStats:
        """Collect the run's statistics."""
        sums, shards = totals(self.committed), len(self.committed)
        return replace(self.actors.stats(), skipped=sums.skipped, warnings_by_reason=sums.warned, shards=shards)

    def _send_progress(self, *, is_last: bool = False) -> None:
        under_way = 0.0 if is_last else self.actors.examples_under_way * self._spec.config.frontend.file_hop_s
        self._events.send(
            ProgressEvent(
                clips=self._clips,
                attempt_clips=self._clips - self._before,
                skipped=self._skipped.total(),
                examples=self._examples,
                audio_s=self.actors.audio_s + under_way,
                elapsed_s=self.actors.elapsed_s,
            )
        )
