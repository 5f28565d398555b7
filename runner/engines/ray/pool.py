"""The driver's pool of actors, which come, go and die, and its distribution of shards to them.

A loop of our own over plain actors, and neither Ray Data nor ``ray.util.ActorPool``: Ray Data restarts actors and
repeats calls out of sight, so that no one can say how often a shard killed its actor, and ``ActorPool`` can't have
actors that join or leave.  As Ray Data's own pool does, actors that find no room are left to wait: Ray places them, and
an autoscaler goes by them.
"""

from __future__ import annotations

import logging
import queue
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from runner.core.errors import EngineError

if TYPE_CHECKING:
    from runner.engines.ray.messages import ActorReport, Message

log = logging.getLogger(__name__)

DEATHS = 3
"""A shard that was under way at so many deaths of actors, the last time alone, is given up."""

_LEAST_AHEAD, _MOST_AHEAD = 2, 256
"""Shards that an actor has at a time, begun or not: so many at the end of the run, and at most."""

_WRITTEN_AHEAD = 4
"""Shards that an actor may write while it embeds others."""

_CLIPS_AHEAD = 512
"""Clips of the other shards of an actor, for each of its decode processes: more than its pipeline holds."""

_LOOK_S = 0.5

_NODES_S = 2.0
"""Seconds between looks while no answer comes, and between looks for new machines."""

_PROGRESS_S = 1.0

_STARTS_S = 20.0
"""An actor that has a machine may take so long to report it: no wait is reported before."""


@dataclass(eq=False)
class Actor:
    """An actor as the driver knows it.

    ``node`` is its machine, once Ray has placed it; ``report`` its own when it was ready; ``shards`` those that it has;
    ``ending`` whether there are no more for it.
    """

    handle: Any
    node: str | None = None
    report: ActorReport | None = None
    shards: set[int] = field(default_factory=set)
    polled_at: float = 0.0
    ending: bool = False


class Report(NamedTuple):
    """An actor's answer to a call."""

    actor: Actor
    message: Message


class Cluster(NamedTuple):
    """Ray, as far as the pool needs it.

    ``start`` makes an actor and ``kill`` ends one; ``nodes`` gives the ids of machines that are alive, ``most`` how
    many actors there may be now; ``death`` is the exception for the loss of an actor.
    """

    start: Callable[[], Any]
    kill: Callable[[Any], None]
    nodes: Callable[[], set[str]]
    most: Callable[[], int]
    death: type[Exception]


@dataclass(frozen=True)
class PoolSettings:
    """How a pool deals with its cluster.

    ``clips`` are those of an average shard; ``elastic`` says whether machines may join: shards are held back for them.
    ``wait_s`` is how long there may be no actor because no machine has what one ``needs`` (in words).
    """

    clips: float
    elastic: bool
    wait_s: float
    needs: str


class ShardPool:
    """Hands shards out to actors, a call each, until all are done.

    Args:
        cluster: starts and ends actors.
        shards: to be done, in order.
        settings: see ``PoolSettings``.
        say: gets what the run waits for, in words, and None when it goes on.

    Attributes:
        killers: shards that were given up, with Ray's words on the last death.
        largest: the most actors that were ready at a time.
    """

    def __init__(
        self,
        cluster: Cluster,
        shards: Sequence[int],
        settings: PoolSettings,
        say: Callable[[str | None], None],
    ) -> None:
        self.killers: dict[int, str] = {}
        self.largest = 0
        self._cluster, self._settings, self._say = cluster, settings, say
        self._remaining = deque(shards)
        self._alone: deque[int] = deque()  # shards that may have killed actors: each goes to one that has no other
        self._deaths: Counter[int] = Counter()
        self._actors: list[Actor] = []
        self._answers: queue.SimpleQueue[tuple[Actor, str, int, Future[Any]]] = queue.SimpleQueue()
        self._failed_starts = 0
        self._most, self._counted_at = 0, float("-inf")
        self._placed_at = time.monotonic()
        self._waits = False

    def reports(self, stopped: Callable[[], bool], grace_s: float) -> Iterator[Report]:
        """Hand shards out, and yield the answers; at the end actors end, each with a last report.

        Args:
            stopped: whether to end early: no more shards are handed out then.
            grace_s: how long shards under way may then take.

        Raises:
            EngineError: actors die one after the other before they are ready, or no machine holds one.
        """
        ends_at = None
        while self._under_way() or ((self._remaining or self._alone) and ends_at is None):
            if ends_at is None and stopped():
                ends_at = time.monotonic() + grace_s
            if ends_at is None:
                self._start_actors()
                self._hand_out()
            elif time.monotonic() > ends_at:
                break
            yield from self._receive()
        for actor in list(self._actors):
            if actor.report is None:
                self._dismiss(actor)
            else:
                actor.ending = True
                self._call(actor, "finish")
        while self._actors:
            if ends_at is not None and time.monotonic() > ends_at:
                self.close()
            yield from self._receive()

    def close(self) -> None:
        """End all actors, whatever they do."""
        while self._actors:
            self._dismiss(self._actors[0])

    def _start_actors(self) -> None:
        """Start as many actors as there may be, and as there is work for; Ray places them when there is room."""
        now = time.monotonic()
        if now > self._counted_at + _NODES_S:
            self._counted_at, self._most = now, self._cluster.most()
            self._check_machines(now)
        work = len(self._remaining) + len(self._alone) + self._under_way()
        while len(self._actors) < min(self._most, work):
            actor = Actor(self._cluster.start())
            self._actors.append(actor)
            self._call(actor, "where")
            self._call(actor, "make")

    def _check_machines(self, now: float) -> None:
        """Report that no actor has found a machine, and give up where that takes too long.

        Raises:
            EngineError: it takes too long.
        """
        if any(actor.node for actor in self._actors):
            self._placed_at = now
        needs, wait_s = self._settings.needs, self._settings.wait_s
        waited = now - self._placed_at - _STARTS_S
        waits = waited > 0
        if waits != self._waits:
            self._waits = waits
            self._say(f"waiting for a machine with {needs}" if waits else None)
        if waited > wait_s:
            raise EngineError(
                f"no machine of the cluster has had {needs} for an actor in engine.wait_s={wait_s:g} s: add one, raise "
                "engine.wait_s, or lower engine.num_cpus_per_actor or engine.num_gpus_per_actor, and rerun the "
                "same command to resume"
            )

    def _dismiss(self, actor: Actor) -> None:
        self._actors.remove(actor)
        self._cluster.kill(actor.handle)

    def _call(self, actor: Actor, kind: str, *arguments: int) -> None:
        shard = arguments[0] if arguments else -1
        future = getattr(actor.handle, kind).remote(*arguments).future()
        future.add_done_callback(lambda done: self._answers.put((actor, kind, shard, done)))

    def _under_way(self) -> int:
        return sum(len(actor.shards) for actor in self._actors)

    def _hand_out(self) -> None:
        for actor in sorted(self._actors, key=lambda actor: len(actor.shards)):
            while actor.report is not None and (shard := self._next_for(actor)) is not None:
                actor.shards.add(shard)
                self._call(actor, "embed", shard)

    def _next_for(self, actor: Actor) -> int | None:
        """The shard that an actor is to have now, if any."""
        if self._alone and not actor.shards:
            return self._alone.popleft()
        if not self._remaining or any(self._deaths[shard] >= DEATHS - 1 for shard in actor.shards):
            return None
        assert actor.report is not None
        return self._remaining.popleft() if len(actor.shards) < self._ahead(actor.report.decode_processes) else None

    def _ahead(self, processes: int) -> int:
        """Return how many shards an actor has at a time; all end together where there are, or may be, others."""
        ahead = _LEAST_AHEAD + _WRITTEN_AHEAD + int(_CLIPS_AHEAD * processes / max(self._settings.clips, 1))
        ahead = min(ahead, _MOST_AHEAD)
        if self._settings.elastic or self._most > 1:
            placed = sum(actor.node is not None for actor in self._actors)
            ahead = min(ahead, len(self._remaining) // (2 * placed))
        return max(_LEAST_AHEAD, ahead)

    def _receive(self) -> Iterator[Report]:
        """Wait for a moment, and yield the answer that has come."""
        for actor in self._actors:
            if actor.shards and time.monotonic() > actor.polled_at + _PROGRESS_S:
                actor.polled_at = float("inf")
                self._call(actor, "progress")
        try:
            actor, kind, shard, done = self._answers.get(timeout=_LOOK_S)
        except queue.Empty:
            return
        if actor not in self._actors:
            return
        try:
            answer = done.result()
        except self._cluster.death as error:
            self._lose(actor, error)
            return
        except Exception as error:
            raise EngineError(f"an actor could not be called ({error}): see runner.log") from error
        if kind == "where":
            actor.node = answer
            return
        if kind == "make":
            actor.report, self._failed_starts = answer, 0
            self.largest = max(self.largest, sum(known.report is not None for known in self._actors))
        elif kind == "progress":
            actor.polled_at = time.monotonic()
        elif kind == "embed":
            actor.shards.discard(shard)
        elif kind == "finish":
            self._dismiss(actor)
        yield Report(actor, answer)

    def _lose(self, actor: Actor, error: Exception) -> None:
        """Drop an actor that is gone, and hand its shards to others, but one that has killed too many."""
        self._dismiss(actor)
        if actor.ending:
            log.warning("an actor died at its end, before its last canary: %s", error)
            return
        with_machine = _went_with_machine(actor, error, self._cluster.nodes())
        log.warning("an actor died; its %d shards go to others: %s", len(actor.shards), error)
        if actor.report is None and not with_machine:
            self._failed_starts += 1
            if self._failed_starts >= DEATHS:
                raise EngineError(
                    f"{DEATHS} actors died before they were ready, one after the other ({error}): see runner.log"
                )
        for shard in sorted(actor.shards, reverse=True):
            self._deaths[shard] += not with_machine
            if self._deaths[shard] >= DEATHS:
                self.killers[shard] = str(error)
            else:
                (self._alone if self._deaths[shard] == DEATHS - 1 else self._remaining).appendleft(shard)


def _went_with_machine(actor: Actor, error: Exception, alive: set[str]) -> bool:
    """Whether an actor was lost with its machine, as in a spot market: that is no fault of its shards."""
    gone = actor.node is not None and actor.node not in alive
    return gone or bool(getattr(error, "preempted", False)) or "node has died" in str(error)
