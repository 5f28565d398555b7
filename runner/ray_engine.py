"""``engine=ray``: the run's shards under Ray Data, by actors that embed as the local engine does.

The driver (the run's worker process, without TensorFlow) keeps the journal: a shard is done once its line is there, so
a run that was begun by one engine is finished by any other.  Ray Data was chosen over plain actors because it brings
what would else be home-made: actor pools, their restarts after a death, the hand-out of work, and back-pressure.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.cold_start import Events
from runner.config import RayEngineConfig, from_dict
from runner.errors import EngineError
from runner.failures import Failure, error_of
from runner.journal import ShardEntry
from runner.limits import check_skipped
from runner.output import RunWriter, check_complete, totals
from runner.ray_cluster import Layout, actor_pool, connect, layout_for
from runner.ray_figures import ActorFigures
from runner.ray_registry import Brief, brief_for
from runner.stop_signals import StopSignal
from runner.taking_up import agree, shards_done, sole_worker
from runner.window_types import window_types

if TYPE_CHECKING:
    from runner.store_writer import StoreMirror

log = logging.getLogger("runner.worker")

_GROUPS_AHEAD = 2
_LAST_SHARE, _LAST_SHARE_ALONE = 100, 8
"""The last groups of shards are so small a share of an actor's part of the run: no actor works alone for longer.  One
that is alone anyway has fewer groups, at the end of each of which a batch is not full."""
_PROGRESS_S = 0.25
_ROUNDS = 3
"""So often in a row shards that got lost with an actor are begun anew without one of them done."""


def carry_out(
    spec: dict[str, Any],
    run_dir: Path,
    events: Events,
    result: dict[str, Any],
    stop: StopSignal,
    mirror: StoreMirror | None = None,
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
        EngineError: Ray is not installed, can't be reached, or has nothing to run on; shards are lost again and again.
        RunnerError: what an actor failed with.
    """
    config = from_dict(spec["config"])
    result["warnings"] = []
    with contextlib.ExitStack() as stack:
        events.send("phase", name="lock")
        stack.enter_context(sole_worker(run_dir, config.engine.stop_grace_s, mirror.lock if mirror else None))
        done = mirror.shards_done() if mirror else shards_done(run_dir, config, spec["rows"])
        stop.begin(lambda: None)  # from here on it is looked at
        events.send("phase", name="cluster")
        assert isinstance(config.engine, RayEngineConfig)
        ray = connect(config.engine)
        stop.take_signals()  # Ray takes SIGTERM for itself
        is_wav = window_types(Path(spec["manifest"]))[0] == "int16"
        layout = layout_for(config.engine, config.device.name, ray.nodes(), decoding_is_light=is_wav)
        events.send("phase", name="embed", seconds={})
        collected = Collected(spec, run_dir, events, result, done)
        _embed_all(ray, brief_for(ray, spec), layout, collected, stop, mirror)
        if mirror:
            mirror.get_parts(collected.writer.done)
        collected.finish(stop.is_set() and bool(collected.left), layout)


def _embed_all(
    ray: Any, brief: Brief, layout: Layout, collected: Collected, stop: StopSignal, mirror: StoreMirror | None
) -> None:
    """Embed what is left, and anew what was lost with an actor on the way."""
    rounds = 0
    while collected.left and not stop.is_set():
        before = len(collected.left)
        work = groups(collected.left, layout.decoders or layout.actors)
        if layout.decoders:
            from runner.ray_apart import reports

            found = reports(ray, brief, work, layout, collected.figures.driver_stages, mirror)
        else:
            found = _reports(ray, brief, work, layout)
        for report in found:
            collected.take(report)
            if stop.is_set():
                return
        rounds = 0 if len(collected.left) < before else rounds + 1
        if rounds == _ROUNDS:
            raise EngineError(
                f"{len(collected.left)} shards were lost {_ROUNDS} times with the actors that had them: see runner.log "
                "and Ray's own logs for why actors die, and run the same command again to go on"
            )
        if collected.left:
            log.warning("%d shards were lost with an actor, and are done again", len(collected.left))


def _reports(ray: Any, brief: Brief, work: Sequence[Sequence[int]], layout: Layout) -> Iterator[dict[str, Any]]:
    """The reports of actors that embed these groups of shards."""
    from runner.ray_actor import CALLS, EmbedShards

    rows = [{"shards": json.dumps(list(group))} for group in work]
    reports = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        EmbedShards,
        fn_constructor_args=(brief,),
        batch_size=1,
        compute=actor_pool(ray, min(layout.actors, len(rows)), CALLS),
        num_cpus=layout.cpus,
        num_gpus=layout.gpus,
    )
    for batch in reports.iter_batches(batch_size=1, prefetch_batches=0):
        yield from map(json.loads, batch["report"])


def groups(shards: Sequence[int], actors: int) -> list[list[int]]:
    """The shards in groups, the first ones large and the last ones small, so that no actor works long alone."""
    found = []
    at = 0
    share = _LAST_SHARE if actors > 1 else _LAST_SHARE_ALONE
    least = -(-len(shards) // (share * actors))
    while at < len(shards):
        size = max(least, (len(shards) - at) // (_GROUPS_AHEAD * actors))
        found.append(list(shards[at : at + size]))
        at += size
    return found


class Collected:
    """Takes the actors' reports: into the journal, the counts and the figures.

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
        self._before = self._clips
        self._known: set[tuple[str, int]] = set()
        self._told_at = 0.0
        self.writer = RunWriter(run_dir, {}, [], done)
        self.figures = ActorFigures(events, result)

    @property
    def left(self) -> list[int]:
        """The shards that are not done."""
        return [number for number in range(len(self._spec["shards"])) if number not in self.writer.done]

    def take(self, report: dict[str, Any]) -> None:
        """Take a report; raise what the actor failed with."""
        self._meet(report["actor"])
        self.figures.take(report)
        for entry in report["entries"]:
            if entry["undone"]:
                if entry["shard"] in self.writer.done:
                    self._count(self.writer.done[entry["shard"]], -1)
                    self.writer.record(ShardEntry(entry["shard"], undone=True))
                continue
            entry["files"] = {name: tuple(described) for name, described in entry["files"].items()}
            known = self.writer.done.get(entry["shard"])
            if known is None or known.files != entry["files"]:  # of what was done twice the later files are there
                self.writer.record(ShardEntry(**entry))
                self._count(self.writer.done[entry["shard"]])
                if known is not None:
                    self._count(known, -1)
        if time.monotonic() > self._told_at + _PROGRESS_S:
            self._told_at = time.monotonic()
            self._progress()
        if report["error"]:
            raise error_of(Failure(**report["error"]))
        check_skipped(self._config.dataset, self._spec["dataset"], self._skipped.total())

    def _meet(self, actor: dict[str, Any]) -> None:
        """An actor must embed with what the run was begun with; the first one's words are in clips.parquet."""
        who = (actor["host"], actor["pid"])
        if who in self._known or "identity" not in actor:
            return
        agree(self._run_dir, actor["identity"])
        if not self._known:
            self.writer.describe(actor["file_metadata"])
        self._known.add(who)

    def _count(self, entry: ShardEntry, sign: int = 1) -> None:
        self._clips += sign * entry.clips
        self._examples += sign * entry.examples
        for reason, clips in entry.counts["skipped"].items():
            self._skipped[reason] += sign * clips

    def finish(self, killed: bool, layout: Layout) -> None:
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
        resolved = {"engine.concurrency": layout.actors, "engine.decode": "apart" if layout.decoders else "inside"}
        if layout.decoders:
            resolved["engine.decode_concurrency"] = layout.decoders
            resolved["memory.decode_workers"] = layout.decoders * layout.decode_cpus
        result["resolved"] = {**result.get("resolved", {}), **resolved}

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
