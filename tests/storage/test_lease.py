"""The lease on an output in an object store: one command at a time has it."""

from __future__ import annotations

import threading
import time

import pytest

from runner.core.errors import ConfigError
from runner.core.layout import RunLayout
from runner.storage import lease
from runner.storage.lease import Lease, check_lease
from runner.storage.object_store import ObjectStore
from tests.storage.leases import make_memory_store, put_holder


@pytest.fixture
def memory_store(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> ObjectStore:
    return make_memory_store(monkeypatch, request.node.name)


def test_a_dead_holder_is_taken_over_and_a_living_one_is_not(memory_store: ObjectStore) -> None:
    put_holder(memory_store)
    with pytest.raises(ConfigError, match="process 1 on far"):
        Lease(memory_store).acquire()
    put_holder(memory_store, time=time.time() - 1000)
    beating = threading.Timer(0.05, put_holder, (memory_store,), {"time": time.time() - 999})
    beating.start()
    with pytest.raises(ConfigError, match="process 1 on far"):  # alive, by a clock that is behind
        Lease(memory_store).acquire()
    beating.join()
    hold = Lease(memory_store)
    hold.acquire()
    hold.confirm()
    here = lease.read_owner(memory_store)
    assert here is not None
    hold.release()
    assert lease.read_owner(memory_store) is None
    put_holder(memory_store, machine=here.machine, pid=here.pid, started=here.started - 100)
    again = Lease(memory_store)
    again.acquire()  # at once: the process of that number is another one
    again.confirm()
    again.release()


def test_of_two_that_begin_at_once_one_stays(memory_store: ObjectStore) -> None:
    one, other = Lease(memory_store), Lease(memory_store)
    one.acquire()
    memory_store.remove(RunLayout.lease)  # as if it had not been there at the other's look
    other.acquire()
    with pytest.raises(ConfigError, match="in use by another command"):
        one.confirm()
    other.confirm()
    one.release()
    check_lease(memory_store, other.token)
    other.release()


def test_a_holder_is_written_anew_while_its_command_lives(memory_store: ObjectStore) -> None:
    hold = Lease(memory_store)
    hold.acquire()
    first = lease.read_owner(memory_store)
    deadline = time.monotonic() + 5
    while lease.read_owner(memory_store) == first:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    hold.release()
