"""Two writers at one output in an object store: whoever is late, by whatever delay, replaces nothing that counts."""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from runner.contract.spec import RemoteHandle
from runner.core.errors import ConfigError, StoreError
from runner.core.files import FileDigest, digest_file
from runner.core.layout import RunLayout
from runner.core.span import Span
from runner.output.remote.commits import commit_name, read_commits
from runner.output.remote.committer import RemoteCommitter
from runner.output.remote.run import RemoteRun
from runner.output.state.journal import ShardEntry, read_journal, to_line
from runner.output.state.plan import Plan
from runner.output.state.plan_file import PLAN_SCHEMA, StoredPlan
from runner.storage import lease as store_hold
from runner.storage import worker_lease
from runner.storage.lease import Lease
from runner.storage.lease_owner import LeaseOwner
from runner.storage.object_store import ObjectStore
from runner.storage.worker_lease import WorkerLease
from tests.configs import make_config
from tests.object_store import Fault, StoreServer, object_store
from tests.results import make_spec

BUCKET = "bucket"
PART = f"{RunLayout.embeddings}/part-00000.parquet"
CLIPS_PART = f"{RunLayout.clip_shards}/part-00000.parquet"
NPZ_LIST = f"{RunLayout.npz_lists}/part-00000.json"
PATIENCE_S = 20.0


@pytest.fixture(scope="module")
def server() -> Iterator[StoreServer]:
    with object_store() as store:
        store.bucket(BUCKET, {})
        yield store


@pytest.fixture
def quiet(server: StoreServer) -> Iterator[StoreServer]:
    yield server
    server.behave()


@pytest.fixture
def url(quiet: StoreServer, request: pytest.FixtureRequest) -> str:
    return f"s3://{BUCKET}/{re.sub(r'[^a-z0-9]+', '-', request.node.name)}"


def store_at(url: str) -> ObjectStore:
    return ObjectStore(url, PATIENCE_S)


def held(url: str) -> tuple[ObjectStore, Lease]:
    store = store_at(url)
    hold = Lease(store)
    hold.acquire()
    return store, hold


def put_holder(store: ObjectStore, **about: Any) -> None:
    known = {"host": "far", "machine": "far away", "pid": 1, "started": 0.0, "token": "theirs", "time": time.time()}
    store.put_text(json.dumps(known | about), RunLayout.lease)


def dies(monkeypatch: pytest.MonkeyPatch, *tokens: str) -> None:
    """The holders of these tokens are taken for dead, all others live."""
    monkeypatch.setattr(LeaseOwner, "is_alive_after", lambda owner, age_s, url: owner.token not in tokens)


def take_at_once(url: str, count: int) -> tuple[list[Lease], list[str]]:
    """The holds of commands that begin at once, and what the others are told."""
    barrier = threading.Barrier(count)

    def take(_: int) -> Lease | str:
        hold = Lease(store_at(url))
        barrier.wait()
        try:
            hold.acquire()
        except ConfigError as error:
            return str(error)
        return hold

    with ThreadPoolExecutor(count) as threads:
        ends = list(threads.map(take, range(count)))
    return [end for end in ends if isinstance(end, Lease)], [end for end in ends if isinstance(end, str)]


def test_of_commands_that_begin_at_once_exactly_one_goes_on(url: str) -> None:
    holds, told = take_at_once(url, 8)
    assert len(holds) == 1
    assert len(told) == 7
    assert all(each.startswith(f"output.dir={url} is in use by another command (process ") for each in told)
    holds[0].confirm()
    holds[0].release()
    assert store_at(url).list_recursive("") == {}


def test_of_commands_that_find_a_dead_one_exactly_one_goes_on(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    put_holder(store_at(url))
    dies(monkeypatch, "theirs")
    holds, told = take_at_once(url, 8)
    assert (len(holds), len(told)) == (1, 7)
    assert json.loads(store_at(url).read(RunLayout.lease) or b"")["token"] == holds[0].token
    holds[0].release()


def test_no_clock_but_the_stores_says_whether_a_holder_lives(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is it waited for: neither a holder's clock that is far behind nor this machine's makes it dead."""
    monkeypatch.setattr(store_hold, "LEASE_RENEW_S", 1000.0)
    put_holder(store_at(url), time=time.time() - 120)
    with pytest.raises(ConfigError, match="process 1 on far"):
        held(url)
    monkeypatch.setattr("runner.storage.conditional._age_s", lambda now, modified: 61.0)
    _, hold = held(url)
    hold.release()


def test_a_hold_is_renewed_in_its_own_version_only(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_hold, "LEASE_RENEW_S", 1000.0)
    store, hold = held(url)
    first = store.read_version(RunLayout.lease)
    hold._renew()
    second = store.read_version(RunLayout.lease)
    assert first is not None
    assert second is not None
    assert first.id != second.id
    put_holder(store)
    with pytest.raises(ConfigError, match="process 1 on far"):
        hold._renew()
    assert json.loads(store.read(RunLayout.lease) or b"")["token"] == "theirs"
    hold.release()
    assert json.loads(store.read(RunLayout.lease) or b"")["token"] == "theirs"


def test_a_lost_answer_is_no_lost_race(url: str, quiet: StoreServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_hold, "LEASE_RENEW_S", 1000.0)
    quiet.fault = drops = Drops()
    store, hold = held(url)
    hold._renew()
    assert store.create_text("ours", "commit")
    assert not store.create_text("theirs", "commit")
    assert drops.count > 3
    hold.release()
    assert set(store.list_recursive("")) == {"commit"}


class Drops:
    """Does the first of puts of an object, and does not answer it."""

    def __init__(self) -> None:
        self._last: tuple[str, str] | None = None
        self.count = 0

    def __call__(self, method: str, key: str) -> Fault:
        is_again = (method, key) == self._last
        self._last = None if is_again else (method, key)
        if method != "PUT" or is_again:
            return None
        self.count += 1
        return "drop"


class Late:
    """Holds the first put of an object back until it is let go."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.came, self.go = threading.Event(), threading.Event()

    def __call__(self, method: str, key: str) -> Fault:
        if method == "PUT" and key.endswith(self._name) and not self.came.is_set():
            self.came.set()
            assert self.go.wait(PATIENCE_S)
        return None


def worker(folder: Path, url: str, token: str, *, fenced: bool = True, plan: str = "plan") -> RemoteCommitter:
    config = make_config(["weights=random", f"output.upload_timeout_s={PATIENCE_S}"])
    remote = RemoteHandle(url, token, plan, fenced)
    return RemoteCommitter(make_spec(folder, config, remote=remote))


def write_shard(folder: Path, who: str, examples: tuple[int, int] = (1, 1)) -> ShardEntry:
    """A shard of two clips, x and y, in a worker's folder; its files say whose they are."""
    for name in (PART, CLIPS_PART, NPZ_LIST, f"{RunLayout.npz}/x.npz", f"{RunLayout.npz}/y.npz"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{name} of {who}")
    (folder / NPZ_LIST).write_text(
        json.dumps({name: digest_file(folder / RunLayout.npz / name) for name in ("x.npz", "y.npz")})
    )
    pq.write_table(pa.table({"clip": ["x", "y"], "examples": list(examples), "who": [who] * 2}), folder / CLIPS_PART)
    files = {name: digest_file(folder / name) for name in (PART, NPZ_LIST, CLIPS_PART)}
    return ShardEntry(0, 2, sum(examples), files, row_digest="rows")


def commits_of(store: ObjectStore) -> dict[int, ShardEntry | None]:
    return read_commits(store, store.list_recursive(RunLayout.state))


@pytest.mark.parametrize("late_object", [f"{RunLayout.npz}/x.npz", PART, commit_name(0)])
def test_a_late_put_of_a_worker_that_lost_the_output_replaces_nothing(
    url: str, quiet: StoreServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late_object: str
) -> None:
    _, first = held(url)
    late = quiet.fault = Late(late_object)
    one = worker(tmp_path / "one", url, first.token)
    with ThreadPoolExecutor(1) as thread:
        ending = thread.submit(one.commit, write_shard(tmp_path / "one", "the first"))
        assert late.came.wait(PATIENCE_S)
        dies(monkeypatch, first.token)
        store, second = held(url)
        other = worker(tmp_path / "two", url, second.token)
        counted = other.commit(write_shard(tmp_path / "two", "the second"))
        late.go.set()
        assert_lost(ending)
    assert commits_of(store) == {0: counted}
    assert store.read(f"{RunLayout.npz}/x.npz") == f"{RunLayout.npz}/x.npz of the second".encode()
    for name, described in counted.files.items():
        (tmp_path / "found").write_bytes(store.read(name) or b"")
        assert digest_file(tmp_path / "found") == described
    taken = late_object != PART  # the first had put that already, and the second's has a name of its own
    assert (PART not in counted.files) is taken
    for hold in (second, first):
        hold.release()


def assert_lost(ending: Future[Any]) -> None:
    with pytest.raises(StoreError, match="is in use by another command"):
        ending.result(PATIENCE_S)


def test_a_worker_that_lost_the_output_stops_within_its_lease_whatever_its_patience(
    url: str, quiet: StoreServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_lease, "LEASE_RENEW_S", 0.2)
    store, hold = held(url)
    asked = threading.Event()

    def fault(method: str, key: str) -> Fault:
        if method == "PUT" and key.endswith(PART):
            asked.set()
            return "slow_down"
        return None

    quiet.fault = fault
    config = make_config(["weights=random", "output.upload_timeout_s=300"])
    spec = make_spec(tmp_path, config, remote=RemoteHandle(url, hold.token, "", True))
    with ThreadPoolExecutor(1) as thread:
        ending = thread.submit(RemoteCommitter(spec).commit, write_shard(tmp_path, "the first"))
        assert asked.wait(PATIENCE_S)
        put_holder(store)
        assert_lost(ending)
    hold.release()


def test_writes_wait_while_a_hold_is_not_renewed(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    for module in (store_hold, worker_lease):
        monkeypatch.setattr(module, "clock", lambda: now[0])
    monkeypatch.setattr(store_hold, "LEASE_RENEW_S", 1000.0)
    store, hold = held(url)
    of_worker = store_at(url)
    lease = of_worker.fence = WorkerLease(of_worker, hold.token)
    assert 0 < lease.seconds_left() <= 45
    monkeypatch.setattr("runner.storage.conditional._age_s", lambda now, modified: 50.0)  # nobody renewed it
    now[0] += 50
    assert lease.seconds_left() < 0
    assert hold.seconds_left() < 0
    for each in (store, of_worker):
        with pytest.raises(StoreError, match=r"for 0\.2 s \(the lease could not be renewed"):
            each.put_text("late", "name", 0.2)
    assert store.read("name") is None
    monkeypatch.undo()
    hold._renew()
    hold._expires_at = store_hold.clock() + 45
    of_worker.fence = WorkerLease(of_worker, hold.token)
    for each in (store, of_worker):
        each.put_text("in time", "name", 5)
    hold.release()


def test_a_put_that_takes_longer_than_the_lease_goes_on_while_it_is_renewed(
    url: str, quiet: StoreServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runner.storage.driver.CHECK_S", 0.05)
    store, asked, done = store_at(url), [], threading.Event()

    class Renewed:
        def seconds_left(self) -> float:
            asked.append(0)
            if len(asked) > 3:
                done.set()
            return 0.1

    store.fence = Renewed()
    quiet.fault = lambda method, key: None if method != "PUT" or done.wait(PATIENCE_S) else "stall"
    store.put_text("long", "name")
    assert store.read("name") == b"long"


def test_of_two_workers_of_one_command_the_first_to_commit_counts(url: str, tmp_path: Path) -> None:
    """Ray may begin a shard anew while the actor that had it lives."""
    store, hold = held(url)
    one, two = (worker(tmp_path / name, url, hold.token) for name in ("one", "two"))
    counted = one.commit(write_shard(tmp_path / "one", "the first"))
    again = two.commit(write_shard(tmp_path / "two", "the second"))
    assert again == counted
    assert commits_of(store) == {0: counted}
    assert store.read(PART) == f"{PART} of the first".encode()
    assert store.read(f"{RunLayout.npz}/x.npz") == f"{RunLayout.npz}/x.npz of the first".encode()
    assert pq.read_table(tmp_path / "two" / CLIPS_PART)["who"].to_pylist() == ["the first"] * 2
    hold.release()


def test_a_commit_of_files_that_were_removed_or_of_another_plan_does_not_count(url: str, tmp_path: Path) -> None:
    store, hold = held(url)
    other = f"{RunLayout.embeddings}/part-00000-0123456789ab.parquet"
    for theirs in (
        ShardEntry(0, files={other: FileDigest(5, "")}, row_digest="rows", plan_id="plan"),
        ShardEntry(0, row_digest="rows", plan_id="another"),
        ShardEntry(0, row_digest="other", plan_id="plan"),
    ):
        store.put_text(to_line(theirs) + "\n", commit_name(0))
        counted = worker(tmp_path, url, hold.token).commit(write_shard(tmp_path, "the second"))
        assert commits_of(store) == {0: counted}
        assert counted.files[PART] == digest_file(tmp_path / PART)
    hold.release()


def test_the_npz_of_a_clip_that_is_skipped_when_its_shard_is_done_again_goes(url: str, tmp_path: Path) -> None:
    store, hold = held(url)
    mirror = worker(tmp_path, url, hold.token)
    mirror.commit(write_shard(tmp_path, "the first"))
    mirror.revoke(0)
    mirror.commit(write_shard(tmp_path, "the second", (1, 0)))
    assert set(store.list_recursive(RunLayout.npz)) == {f"{RunLayout.npz}/x.npz"}
    assert store.read(f"{RunLayout.npz}/x.npz") == f"{RunLayout.npz}/x.npz of the second".encode()
    hold.release()


def an_output(folder: Path, url: str) -> RemoteRun:
    (folder / RunLayout.state).mkdir(parents=True)
    return RemoteRun(folder, make_config([f"output.dir={url}"]))


def plan_of(name: str, done: dict[int, ShardEntry]) -> Plan:
    return Plan(None, [Span(0, 2)], ["rows"], done, is_resumed=True, id=name)  # type: ignore[arg-type]


def put_plan(store: ObjectStore, name: str) -> None:
    plan = StoredPlan(name, {}, [Span(0, 2)], ["rows"])
    store.put_text(json.dumps({"schema": PLAN_SCHEMA, **asdict(plan)}), RunLayout.plan)
    for file in (RunLayout.manifest, RunLayout.attempts):
        store.put_text("", file)


def test_commits_of_another_run_at_the_same_url_are_not_believed(url: str, tmp_path: Path) -> None:
    """The late one of a run whose files were removed, say."""
    store = store_at(url)
    put_plan(store, "this")
    for plan, believed in (("another", {}), ("this", {0: ShardEntry(0, row_digest="rows", plan_id="this")})):
        store.put_text(to_line(ShardEntry(0, row_digest="rows", plan_id=plan)) + "\n", commit_name(0))
        output = an_output(tmp_path / plan, url)
        assert read_journal(tmp_path / plan / RunLayout.journal)[0] == believed
        assert (commit_name(0) in store.list_recursive(RunLayout.state)) is bool(believed)
        output.release()


def test_objects_of_shards_that_no_commit_tells_of_go_and_others_stay(url: str, tmp_path: Path) -> None:
    store, mine = store_at(url), f"{RunLayout.embeddings}/notes.txt"
    put_plan(store, "plan")
    for name in (PART, f"{RunLayout.embeddings}/part-00001.parquet", mine):
        store.put_text("of a worker that was killed", name)
    output = an_output(tmp_path / "run", url)
    output.begin_attempt(plan_of("plan", {}))
    assert set(store.list_recursive(RunLayout.embeddings)) == {mine}
    store.put_text("late", PART)  # of a worker that lost the output
    mirror = worker(tmp_path / "run", url, output.lease.token)
    entry = mirror.commit(write_shard(tmp_path / "run", "this"))
    (tmp_path / "run" / RunLayout.journal).write_text(to_line(entry) + "\n")
    assert output.upload_remaining(is_finished=True) is None
    assert set(store.list_recursive(RunLayout.embeddings)) == {
        mine,
        next(name for name in entry.files if name.startswith(RunLayout.embeddings)),
    }
    output.release()


def test_a_run_whose_shards_were_removed_meanwhile_is_not_told_to_be_finished(url: str, tmp_path: Path) -> None:
    store = store_at(url)
    put_plan(store, "plan")
    output = an_output(tmp_path / "run", url)
    output.begin_attempt(plan_of("plan", {}))
    entry = worker(tmp_path / "run", url, output.lease.token).commit(write_shard(tmp_path / "run", "this"))
    (tmp_path / "run" / RunLayout.journal).write_text(to_line(entry) + "\n")
    store.remove(PART)
    failure = output.upload_remaining(is_finished=True)
    assert failure is not None
    assert "1 uploaded shards (the first: 0) are no longer complete" in failure.message
    output.release()


@pytest.mark.parametrize("damage", ["gone", "cut off", "no list"])
def test_a_shard_whose_npz_files_are_gone_is_done_again(url: str, tmp_path: Path, damage: str) -> None:
    store, hold = held(url)
    put_plan(store, "plan")
    worker(tmp_path, url, hold.token).commit(write_shard(tmp_path, "this"))
    hold.release()
    for name in (f"{RunLayout.npz}/x.npz", f"{RunLayout.npz}/y.npz"):
        store.put_text("", name) if damage == "cut off" else store.remove(name) if damage == "gone" else None
    if damage == "no list":
        store.put_text("x" * (store.size(NPZ_LIST) or 0), NPZ_LIST)
    output = an_output(tmp_path / "run", url)
    assert read_journal(tmp_path / "run" / RunLayout.journal)[0] == {}
    assert commits_of(store) == {}
    output.release()


@pytest.mark.parametrize("unknown", [("if-none-match",), ("if-match",)])
def test_a_store_that_ignores_conditions_is_found_out(
    url: str, quiet: StoreServer, caplog: pytest.LogCaptureFixture, unknown: tuple[str, ...]
) -> None:
    quiet.unknown = unknown
    store, hold = held(url)
    assert store.conditions is None
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == [
        f"{url} has no conditional requests: commands check the lease before each commit instead"
    ]
    with pytest.raises(ConfigError, match="in use"):
        held(url)
    hold.release()
    assert store.list_recursive("") == {}


def test_a_store_without_conditions_is_written_as_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(store_hold, "RACE_WINDOW_S", 0.01)
    store, hold = held("memory://fencing/run")
    hold.confirm()
    assert [record.message.split(": ")[0] for record in caplog.records] == [f"{store.url} has no conditional requests"]
    mirror = worker(tmp_path, store.url, hold.token, fenced=False)
    for who in ("the first", "the second"):
        counted = mirror.commit(write_shard(tmp_path, who))
    assert commits_of(store) == {0: counted}
    assert store.read(PART) == f"{PART} of the second".encode()
    hold.release()
