"""The driver's hand-out of shards to actors that come, go and die.

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from runner.core.errors import EngineError

log = logging.getLogger("runner.engines.worker")

DEATHS = 3
"""A shard that was under way at so many deaths of actors, the last time alone, is not given to another."""

_CLIPS_AHEAD = 512
"""An actor has shards of about so many clips a decode process: more than its pipeline holds."""

_LEAST_AHEAD, _MOST_AHEAD = 2, 256

_LOOK_S = 0.5

_NODES_S = 2.0
"""How often the loop looks around while it hears nothing, and how often it looks for machines that came."""

_PROGRESS_S = 1.0

_STARTS_S = 20.0
"""An actor that has a machine may take so long to say so: before that nobody waits for one."""


@dataclass(eq=False)
class Actor:
    """An actor as the driver knows it.

    ``node`` is where it is, once Ray has placed it; ``about`` what it said of itself when it was ready; ``shards``
    those that it has; ``ending`` whether it was told that there are no more.
    """

    handle: Any
    node: str | None = None
    about: dict[str, Any] | None = None
    shards: set[int] = field(default_factory=set)
    polled_at: float = 0.0
    ending: bool = False


class Report(NamedTuple):
    """What an actor gave: ``kind`` is the method's name, ``value`` what came."""

    actor: Actor
    kind: str
    value: dict[str, Any]


class Cluster(NamedTuple):
    """What the hand-out needs of Ray: ``start`` makes an actor, ``kill`` ends one, ``nodes`` are those alive by Ray's
    names, ``most`` is how many actors there may be now, and ``death`` is what the loss of an actor raises."""

    start: Callable[[], Any]
    kill: Callable[[Any], None]
    nodes: Callable[[], set[str]]
    most: Callable[[], int]
    death: type[Exception]


class ShardPool:
    """Gives shards to actors, a call each, until all are done.

    Args:
        cluster: starts and ends actors.
        shards: that are to be done, in order.
        clips: of an average shard.
        elastic: whether machines may come while the run goes on: something is kept for them.
        wait_s: how long there may be no actor because no machine holds one.
        needs: what an actor takes, in words.
        say: told of what the run waits for, in words; of None when it goes on.
    """

    def __init__(
        self,
        cluster: Cluster,
        shards: Sequence[int],
        *,
        clips: float,
        elastic: bool,
        wait_s: float,
        needs: str,
        say: Callable[[str | None], None],
    ) -> None:
        self._cluster, self._clips, self._elastic = cluster, clips, elastic
        self._wait_s, self._needs, self._say = wait_s, needs, say
        self._left = deque(shards)
        self._alone: deque[int] = deque()
        """Shards that may have killed actors: each is given to one that has no other."""
        self._deaths: Counter[int] = Counter()
        self.killers: dict[int, str] = {}
        """Shards that were given up, with what Ray said of the last death."""
        self._actors: list[Actor] = []
        self._heard: queue.SimpleQueue[tuple[Actor, str, int, Future[Any]]] = queue.SimpleQueue()
        self._failed_starts = 0
        self._most, self._counted_at = 0, float("-inf")
        self._placed_at: float = time.monotonic()
        self._waits = False
        self.largest = 0
        """The most actors that were ready at a time."""

    def reports(self, stopped: Callable[[], bool], grace_s: float) -> Iterator[Report]:
        """Hand shards out, and give what comes of them; at the end actors end, with what they give last.

        Args:
            stopped: whether to end early: no more shards are handed out then.
            grace_s: how long those under way may then take.

        Raises:
            EngineError: actors die one after the other before they are ready, or no machine holds one.
        """
        ends_at = None
        while self._in_hand() or ((self._left or self._alone) and ends_at is None):
            if ends_at is None and stopped():
                ends_at = time.monotonic() + grace_s
            if ends_at is None:
                self._hire()
                self._give()
            elif time.monotonic() > ends_at:
                break
            yield from self._hear()
        for actor in list(self._actors):
            if actor.about is None:
                self._dismiss(actor)
            else:
                actor.ending = True
                self._call(actor, "finish")
        while self._actors:
            if ends_at is not None and time.monotonic() > ends_at:
                self.close()
            yield from self._hear()

    def close(self) -> None:
        """End all actors, whatever they do."""
        while self._actors:
            self._dismiss(self._actors[0])

    # Actors

    def _hire(self) -> None:
        """Have as many actors as there may be, and as there is work for; Ray places them when there is room."""
        now = time.monotonic()
        if now > self._counted_at + _NODES_S:
            self._counted_at, self._most = now, self._cluster.most()
            self._look_for_machines(now)
        work = len(self._left) + len(self._alone) + self._in_hand()
        while len(self._actors) < min(self._most, work):
            actor = Actor(self._cluster.start())
            self._actors.append(actor)
            self._call(actor, "where")
            self._call(actor, "make")

    def _look_for_machines(self, now: float) -> None:
        """Say so where no actor has found a machine, and give up where that takes too long.

        Raises:
            EngineError: it takes too long.
        """
        if any(actor.node for actor in self._actors):
            self._placed_at = now
        waited = now - self._placed_at - _STARTS_S
        waits = waited > 0
        if waits != self._waits:
            self._waits = waits
            self._say(f"waiting for a machine with {self._needs}" if waits else None)
        if waited > self._wait_s:
            raise EngineError(
                f"no machine of the cluster has had {self._needs} for an actor in engine.wait_s={self._wait_s:g} s: "
                "add one, raise engine.wait_s, or lower engine.num_cpus_per_actor or engine.num_gpus_per_actor, and "
                "rerun the same command to resume"
            )

    def _dismiss(self, actor: Actor) -> None:
        self._actors.remove(actor)
        self._cluster.kill(actor.handle)

    def _call(self, actor: Actor, kind: str, *arguments: int) -> None:
        shard = arguments[0] if arguments else -1
        future = getattr(actor.handle, kind).remote(*arguments).future()
        future.add_done_callback(lambda done: self._heard.put((actor, kind, shard, done)))

    # Shards

    def _in_hand(self) -> int:
        return sum(len(actor.shards) for actor in self._actors)

    def _give(self) -> None:
        for actor in sorted(self._actors, key=lambda each: len(each.shards)):
            while actor.about is not None and (shard := self._next_for(actor)) is not None:
                actor.shards.add(shard)
                self._call(actor, "embed", shard)

    def _next_for(self, actor: Actor) -> int | None:
        """The shard that an actor is to have now, if any."""
        if self._alone and not actor.shards:
            return self._alone.popleft()
        if not self._left or any(self._deaths[shard] >= DEATHS - 1 for shard in actor.shards):
            return None
        return self._left.popleft() if len(actor.shards) < self._ahead(actor.about or {}) else None

    def _ahead(self, about: Mapping[str, Any]) -> int:
        """How many shards an actor has at a time: as keep it busy, and fewer later on, so that all end together."""
        processes = about.get("resolved", {}).get("memory.decode_workers", 1)
        wanted = min(_LEAST_AHEAD + int(_CLIPS_AHEAD * processes / max(self._clips, 1)), _MOST_AHEAD)
        if self._elastic or self._most > 1:
            placed = sum(actor.node is not None for actor in self._actors)
            wanted = min(wanted, len(self._left) // (2 * placed))
        return max(_LEAST_AHEAD, wanted)

    # What is heard

    def _hear(self) -> Iterator[Report]:
        """Wait for a moment, and give what has come."""
        for actor in self._actors:
            if actor.shards and time.monotonic() > actor.polled_at + _PROGRESS_S:
                actor.polled_at = float("inf")
                self._call(actor, "progress")
        try:
            actor, kind, shard, done = self._heard.get(timeout=_LOOK_S)
        except queue.Empty:
            return
        if actor not in self._actors:
            return
        try:
            value = done.result()
        except self._cluster.death as error:
            self._lose(actor, error)
            return
        except Exception as error:
            raise EngineError(f"an actor could not be called ({error}): see runner.log") from error
        if kind == "where":
            actor.node = value
            return
        if kind == "make":
            actor.about, self._failed_starts = value, 0
            self.largest = max(self.largest, sum(each.about is not None for each in self._actors))
        elif kind == "progress":
            actor.polled_at = time.monotonic()
        elif kind == "embed":
            actor.shards.discard(shard)
        elif kind == "finish":
            self._dismiss(actor)
        yield Report(actor, kind, value)

    def _lose(self, actor: Actor, error: Exception) -> None:
        """An actor is gone: its shards are given to others, unless one of them has killed too many."""
        self._dismiss(actor)
        if actor.ending:
            log.warning("an actor died at its end, before its last canary: %s", error)
            return
        by_machine = _is_the_machines(actor, error, self._cluster.nodes())
        log.warning("an actor died with %d shards, which others are given: %s", len(actor.shards), error)
        if actor.about is None and not by_machine:
            self._failed_starts += 1
            if self._failed_starts >= DEATHS:
                raise EngineError(
                    f"{DEATHS} actors died before they were ready, one after the other ({error}): see runner.log"
                )
        for shard in sorted(actor.shards, reverse=True):
            self._deaths[shard] += not by_machine
            if self._deaths[shard] >= DEATHS:
                self.killers[shard] = str(error)
            else:
                (self._alone if self._deaths[shard] == DEATHS - 1 else self._left).appendleft(shard)


def _is_the_machines(actor: Actor, error: Exception, alive: set[str]) -> bool:
    """Whether an actor went with its machine, as one of a spot market does: that is no fault of its shards."""
    gone = actor.node is not None and actor.node not in alive
    return gone or bool(getattr(error, "preempted", False)) or "node has died" in str(error)
