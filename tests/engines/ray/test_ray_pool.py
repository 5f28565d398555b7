"""The hand-out of shards to actors, without Ray: actors that die, machines that go and come, shards that kill."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from runner.core.errors import EngineError
from runner.engines.ray import pool as ray_pool
from runner.engines.ray.messages import ActorEnd, ActorProgress, ActorReport, ShardReport
from runner.engines.ray.pool import DEATHS, Cluster, PoolSettings, Report, ShardPool
from runner.output.state.journal import ShardEntry

READY = ActorReport("here", "machine", 1)


class Died(Exception):
    """As Ray says it of an actor."""


class FakeActor:
    """Answers at once; what becomes of its shards is up to ``World.work``, whenever it is asked how far it is."""

    def __init__(self, world: World) -> None:
        self.world, self.node, self.dead = world, world.place(), False
        self.under_way: dict[int, Future[Any]] = {}
        self.placed: list[Future[Any]] = []

    def __getattr__(self, kind: str) -> SimpleNamespace:
        return SimpleNamespace(remote=lambda *shards: SimpleNamespace(future=lambda: self._called(kind, *shards)))

    def _called(self, kind: str, *shards: int) -> Future[Any]:
        answer: Future[Any] = Future()
        if self.dead:
            answer.set_exception(Died("dead"))
        elif kind in ("where", "make") and self.node is None:
            self.placed.append(answer)
        elif kind == "make" and self.world.dies_at_start:
            self.die(answer)
        elif kind == "embed":
            self.under_way[shards[0]] = answer
            self.world.given.append((self, sorted(self.under_way)))
        elif kind == "progress":
            answer.set_result(ActorProgress(0.0, 0.0, 0, 0))
            self.world.work(self)
        else:
            answer.set_result({"where": self.node, "make": READY, "finish": ActorEnd()}[kind])
        return answer

    def die(self, *more: Future[Any]) -> None:
        self.dead = True
        for answer in (*self.under_way.values(), *more):
            answer.set_exception(Died("as if"))
        self.under_way.clear()


class World:
    """A cluster: ``room`` machines of one actor each; ``work`` is what an actor does with the shards that it has."""

    def __init__(self, work: Callable[[FakeActor], None], room: int = 2) -> None:
        self.work, self.room, self.dies_at_start = work, room, False
        self.actors: list[FakeActor] = []
        self.given: list[tuple[FakeActor, list[int]]] = []
        self.said: list[str | None] = []
        self.gone: set[str | None] = set()

    def place(self) -> str | None:
        taken = sum(each.node is not None and not each.dead for each in self.actors)
        return f"machine {len(self.actors)}" if taken < self.room else None

    def start(self) -> FakeActor:
        self.actors.append(FakeActor(self))
        return self.actors[-1]

    def kill(self, actor: FakeActor) -> None:
        actor.dead = True

    def nodes(self) -> set[str]:
        return {each.node for each in self.actors if each.node and each.node not in self.gone}

    def pool(self, shards: int, wait_s: float = 60.0) -> ShardPool:
        cluster = Cluster(self.start, self.kill, self.nodes, lambda: max(1, self.room), Died)
        settings = PoolSettings(clips=600, elastic=True, wait_s=wait_s, needs="2 CPUs")
        return ShardPool(cluster, range(shards), settings, self.said.append)


def all_done(actor: FakeActor) -> None:
    for shard, answer in list(actor.under_way.items()):
        del actor.under_way[shard]
        answer.set_result(ShardReport(ShardEntry(shard)))


def done_by(pool: ShardPool, stopped: Callable[[], bool] = lambda: False) -> list[int]:
    return shards_of(pool.reports(stopped, 5.0))


def shards_of(reports: Iterable[Report]) -> list[int]:
    return [report.message.entry.shard for report in reports if isinstance(report.message, ShardReport)]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_LOOK_S", "_NODES_S", "_STARTS_S", "_PROGRESS_S"):
        monkeypatch.setattr(ray_pool, name, 0.01)


def test_each_shard_is_done_once_and_every_actor_ends_with_its_last_canary() -> None:
    world = World(all_done)
    reports = list(world.pool(40).reports(lambda: False, 5.0))
    assert sorted(shards_of(reports)) == list(range(40))
    assert sum(isinstance(each.message, ActorEnd) for each in reports) == len(world.actors) == 2


def test_shards_of_an_actor_that_died_are_given_to_others() -> None:
    def work(actor: FakeActor) -> None:
        if actor is world.actors[0]:
            actor.die()
        else:
            all_done(actor)

    world = World(work)
    pool = world.pool(20)
    assert sorted(done_by(pool)) == list(range(20))
    assert len(world.actors) == 3
    assert not pool.killers


def test_a_shard_that_kills_its_actors_is_found_out_alone_and_costs_no_other() -> None:
    def work(actor: FakeActor) -> None:
        if 7 in actor.under_way:
            actor.die()
        else:
            all_done(actor)

    world = World(work, room=1)
    pool = world.pool(12)
    assert sorted(done_by(pool)) == [shard for shard in range(12) if shard != 7]
    assert pool.killers == {7: "as if"}
    killed = [shards for _, shards in world.given if 7 in shards]
    assert any(len(shards) > 1 for shards in killed[:-1])
    assert killed[-1] == [7]  # the last time it was alone
    assert len(world.actors) == DEATHS + 1


def test_machines_that_go_are_no_fault_of_their_shards_however_often() -> None:
    def work(actor: FakeActor) -> None:
        if len(world.actors) <= 3 * DEATHS:
            world.gone.add(actor.node)
            actor.die()
        else:
            all_done(actor)

    world = World(work, room=1)
    pool = world.pool(3)
    assert sorted(done_by(pool)) == [0, 1, 2]
    assert not pool.killers


def test_a_machine_that_comes_has_an_actor() -> None:
    def work(actor: FakeActor) -> None:
        world.room = 3
        if len({each for each, _ in world.given}) == 3:
            all_done(actor)

    world = World(work, room=1)
    assert sorted(done_by(world.pool(30))) == list(range(30))
    assert len(world.actors) == 3


def test_an_actor_that_is_alone_leaves_something_for_machines_that_come() -> None:
    def work(actor: FakeActor) -> None:
        had.append(len(actor.under_way))
        all_done(actor)

    had: list[int] = []
    world = World(work, room=1)
    pool = world.pool(40)
    pool._settings = replace(pool._settings, clips=1)  # small shards: an actor's pipeline would hold them all
    assert sorted(done_by(pool)) == list(range(40))
    assert had[0] < 20


def test_a_cluster_without_a_machine_is_waited_for_and_said() -> None:
    world = World(all_done, room=0)

    def say(what: str | None) -> None:
        world.said.append(what)
        if what is None:
            return
        world.room = 1
        (actor,) = world.actors
        actor.node = "machine"
        for answer, value in zip(actor.placed, ("machine", READY), strict=True):
            answer.set_result(value)

    pool = world.pool(4)
    pool._say = say
    assert sorted(done_by(pool)) == [0, 1, 2, 3]
    assert world.said == ["waiting for a machine with 2 CPUs", None]
    with pytest.raises(EngineError, match=r"has had 2 CPUs for an actor in engine\.wait_s=0\.05 s"):
        done_by(World(all_done, room=0).pool(4, wait_s=0.05))


def test_actors_that_die_before_they_are_ready_end_the_run() -> None:
    world = World(all_done)
    world.dies_at_start = True
    with pytest.raises(EngineError, match="3 actors died before they were ready"):
        done_by(world.pool(4))


def test_a_stop_ends_with_the_shards_under_way() -> None:
    world = World(all_done, room=1)
    pool = world.pool(1000)
    done = done_by(pool, stopped=lambda: len(world.given) > 2)
    assert len(done) == len(world.given) < 1000
    assert not pool._actors
