"""An output in an object store, against a local S3 server: the same bits, kills, throttling, two commands at once."""

from __future__ import annotations

import collections
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from runner.config.composition import _output_dir
from runner.contract.spec import RemoteHandle
from runner.core.errors import ConfigError, StoreError
from runner.core.files import FileDigest, digest_file
from runner.core.layout import RunLayout
from runner.core.span import Span
from runner.dataset.manifest import build_manifest
from runner.output.remote.committer import RemoteCommitter
from runner.output.remote.run import RemoteRun, open_remote_run
from runner.output.state.journal import Journal, ShardCounts, ShardEntry, read_journal
from runner.output.state.plan import Plan, make_plan
from runner.output.state.plan_file import begin_attempt
from runner.output.state.rerun import ObjectProbe
from runner.output.writer import ShardFiles, ShardWriter
from runner.storage import lease, lease_owner
from runner.storage import object_store as store_client
from runner.storage.lease import Lease, check_lease
from runner.storage.object_store import ObjectStore
from runner.storage.retry import is_transient
from tests.commands import PROJECT, Done, start, wait_until
from tests.commands import run as run_command
from tests.configs import make_config
from tests.object_store import Fault, StoreServer, object_store
from tests.results import make_spec
from tests.stress.chaos import make_clips, victims

BUCKET = "bucket"
SHARDS, A_SHARD, STUBBORN = 8, 4, 7
SETTINGS = (
    *("weights=random", "device=cpu", "model.conv=direct", "memory=conservative", "memory.decode_workers=1"),
    *("output.formats=[parquet,npz]", f"output.clips_per_shard={A_SHARD}", "tracking=none", "profile=off"),
    "output.pool=[1.92]",
)
FOLDERS = ("embeddings", "npz", "pooled")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clips(tmp_path_factory.mktemp("stores") / "data", SHARDS * A_SHARD)


@pytest.fixture(scope="module")
def server() -> Iterator[StoreServer]:
    with object_store() as store:
        store.bucket(BUCKET, {})
        yield store


@pytest.fixture
def quiet(server: StoreServer) -> Iterator[StoreServer]:
    yield server
    server.behave()


def embed(clips: Path, out: str, outputs: Path, *arguments: str) -> Done:
    given = (f"dataset.root={clips}", f"output.dir={out}", f"paths.outputs={outputs}", *SETTINGS, *arguments)
    return run_command(*given, timeout=120)


def objects(prefix: str) -> dict[str, bytes]:
    """All objects below s3://bucket/prefix."""
    import s3fs

    filesystem = s3fs.S3FileSystem(use_listings_cache=False)
    names = filesystem.find(f"{BUCKET}/{prefix}")
    with ThreadPoolExecutor(8) as threads:
        contents = threads.map(filesystem.cat_file, names)
        return {name.removeprefix(f"{BUCKET}/{prefix}/"): data for name, data in zip(names, contents, strict=True)}


def numbers(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The files that hold a run's numbers."""
    return {name: data for name, data in files.items() if name == "clips.parquet" or name.startswith(FOLDERS)}


def numbers_of(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return numbers({path.relative_to(folder).as_posix(): path.read_bytes() for path in paths})


def assert_same(prefix: str, local: Path) -> dict[str, Any]:
    """The store has what a local run has, bit for bit, and nothing that is left over; its result.json."""
    found, expected = objects(prefix), numbers_of(local)
    assert sorted(numbers(found)) == sorted(expected)
    assert [name for name, data in expected.items() if found[name] != data] == []
    assert len([name for name in found if name.startswith(".runner/commits/")]) == SHARDS
    assert RunLayout.lease not in found
    result: dict[str, Any] = json.loads(found["result.json"])
    assert (result["status"], result["run_dir"]) == ("finished", f"s3://{BUCKET}/{prefix}")
    return result


@pytest.mark.slow
def test_a_run_that_was_killed_refused_and_throttled_ends_as_a_local_one(
    clips: Path, quiet: StoreServer, tmp_path: Path
) -> None:
    """Killed and its folder deleted, failed as the store refused a commit object, then through 503s, 500s and drops."""
    out = clips.parent / "local"
    with ThreadPoolExecutor(1) as thread:
        local = thread.submit(embed, clips, str(out), clips.parent)
        url = f"s3://{BUCKET}/killed"
        kill_after_two_shards(clips, url, quiet, tmp_path / "one")
        assert local.result().status == 0, local.result().err
    shutil.rmtree(tmp_path / "one")
    store = ObjectStore(url, 20)
    committed = store.list_recursive(".runner/commits")
    assert 2 <= len(committed) < SHARDS - 1
    # the last one: the killed command's worker may still have put another
    refused = next(n for n in reversed(range(SHARDS)) if f".runner/commits/shard-{n:05d}.json" not in committed)

    quiet.fault = lambda method, key: "slow_down" if key.endswith(f"-{refused:05d}.json") else None
    done = embed(clips, url, tmp_path / "two", "output.upload_timeout_s=4")
    quiet.behave()
    assert done.status == 1
    assert f"{url} could not be written for 4 s" in done.out
    assert "rerun the same command to resume" in done.out
    assert f"output.dir={url}" in done.out.split("resume  ")[-1]
    assert "Traceback" not in done.out + done.err
    found = objects("killed")
    assert json.loads(found["result.json"])["failure"]["kind"] == "store"
    part = f"embeddings/part-{refused:05d}.parquet"
    assert part in found
    assert f".runner/commits/shard-{refused:05d}.json" not in found
    store.put_text("half a shard", part)  # nothing of a shard without commit object is to be believed
    lost = int(next(iter(committed)).removesuffix(".json")[-5:])
    store.remove(f"embeddings/part-{lost:05d}.parquet")  # of a shard that was done
    left = SHARDS + 1 - sum(name.startswith(".runner/commits/") for name in found)

    quiet.fault = troubles = Troubles(f"-{refused:05d}.json")
    done = embed(clips, url, tmp_path / "one")
    quiet.behave()
    assert done.status == 0, done.err
    assert min(troubles.seen[fault] for fault in ("slow_down", "broken", "drop")) > 0
    assert troubles.stubborn > STUBBORN
    assert f"files  {url}" in done.out
    assert f"re-running 1 damaged or incomplete shards in {url}" in done.err
    result = assert_same("killed", out)
    assert result["attempt"] == 3
    assert result["metrics"]["attempt_clips"] == A_SHARD * left
    again = embed(clips, url, tmp_path / "another")
    assert again.status == 0, again.err
    assert f"{url} is already complete" in again.err


class Troubles:
    """Fails a share of all requests, and the puts of one object for longer than s3fs tries by itself."""

    def __init__(self, stubborn: str) -> None:
        self._rng, self._lock, self._name = random.Random(4), threading.Lock(), stubborn
        self.seen: collections.Counter[Fault] = collections.Counter()
        self.stubborn = 0

    def __call__(self, method: str, key: str) -> Fault:
        with self._lock:
            fault = self._rng.choices((None, "slow_down", "broken", "drop"), (85, 5, 5, 5))[0]
            if method == "PUT" and key.endswith(self._name):
                self.stubborn += 1
                fault = "slow_down" if self.stubborn <= STUBBORN else fault
            self.seen[fault] += 1
            return fault


def kill_after_two_shards(clips: Path, url: str, server: StoreServer, outputs: Path) -> None:
    server.fault = lambda method, key: time.sleep(0.3) if method == "PUT" and "/embeddings/" in key else None
    outputs.mkdir()
    given = (f"dataset.root={clips}", f"output.dir={url}", f"paths.outputs={outputs}", *SETTINGS)
    command, store = start(*given, log=outputs / "log"), ObjectStore(url, 20)

    def has_two() -> bool:
        assert command.poll() is None, command.out
        return len(store.list_recursive(".runner/commits")) >= 2

    wait_until(has_two, lambda: command.out)
    for process in [*victims(command, "worker"), command]:
        process.kill()
    command.wait()
    server.behave()


def refusal(url: str, folder: Path) -> str:
    """What a command that would write there is told."""
    (folder / ".runner").mkdir()
    with pytest.raises(ConfigError) as caught:
        open_remote_run(folder, make_config([f"output.dir={url}"]))
    return str(caught.value)


def test_a_second_command_is_refused(quiet: StoreServer, tmp_path: Path) -> None:
    hold = Lease(ObjectStore(f"s3://{BUCKET}/held", 20))
    hold.acquire()
    told = refusal(f"s3://{BUCKET}/held", tmp_path)
    assert f"output.dir=s3://{BUCKET}/held is in use by another command (process " in told
    assert list(objects("held")) == [RunLayout.lease]
    hold.release()
    assert objects("held") == {}


def test_a_bucket_that_is_not_there_is_one_message_before_any_work(
    clips: Path, quiet: StoreServer, tmp_path: Path
) -> None:
    done = embed(clips, "s3://nosuchbucket/run", tmp_path)
    assert done.status == 1
    assert done.err == "error: output.dir=s3://nosuchbucket/run is in a bucket that does not exist: " + (
        "make it, or choose one\n"
    )


def test_a_folder_of_something_else_is_refused(quiet: StoreServer, tmp_path: Path) -> None:
    ObjectStore(f"s3://{BUCKET}/other", 20).put_text("{}", "embeddings/part-00000.parquet")
    assert f"output.dir=s3://{BUCKET}/other holds something else" in refusal(f"s3://{BUCKET}/other", tmp_path)
    assert list(objects("other")) == ["embeddings/part-00000.parquet"]


def test_a_put_takes_some_time() -> None:
    with pytest.raises(ConfigError, match=r"output\.upload_timeout_s=0"):
        make_config(["output.dir=s3://bucket/run", "output.upload_timeout_s=0"])


def test_a_repository_of_commits_is_no_output() -> None:
    with pytest.raises(ConfigError, match="each put would be a commit"):
        make_config(["output.dir=hf://datasets/somebody/clips"])


def test_a_file_url_is_a_path() -> None:
    assert make_config(["output.dir=file:///a/b"]).output.dir == "/a/b"
    assert _output_dir("file:///a/b%20c", "outputs", "runs", "day", "time") == "/a/b c"
    assert _output_dir("s3://x/run", "outputs", "runs", "day", "time").startswith("outputs/stores/run-")


def test_local_runs_import_no_store_drivers() -> None:
    code = (
        "import runner.cli.run, runner.jobs.sweep, runner.jobs.job, runner.engines.local, runner.output.writer, sys; "
    )
    code += "print([name for name in sys.modules if name.split('.')[0] in ('fsspec', 's3fs') or '.store_' in name])"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


class Flaky:
    """A file system in which a method fails some times."""

    def __init__(self, times: int, error: Exception) -> None:
        self.left, self.error = times, error

    def rm_file(self, path: str) -> None:
        self.left -= 1
        if self.left >= 0:
            raise self.error


def flaky_store(monkeypatch: pytest.MonkeyPatch, flaky: Flaky, timeout_s: float) -> ObjectStore:
    monkeypatch.setattr(store_client, "open_store", lambda key, url: (flaky, "bucket/run"))
    monkeypatch.setattr("runner.storage.retry.FIRST_PAUSE_S", 0.001)
    return ObjectStore("s3://bucket/run", timeout_s)


def test_what_may_pass_is_tried_again_and_the_rest_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    flaky = Flaky(6, ConnectionResetError("gone"))
    flaky_store(monkeypatch, flaky, 30).remove("name")
    assert flaky.left == -1
    lasting = Flaky(6, PermissionError("Forbidden"))
    with pytest.raises(StoreError, match=r"s3://bucket/run can't be written: no permission \(Forbidden\)"):
        flaky_store(monkeypatch, lasting, 30).remove("name")
    assert lasting.left == 5
    endless = Flaky(10**9, OSError(16, "Slow down"))
    with pytest.raises(StoreError, match=r"s3://bucket/run could not be written for 0\.05 s"):
        flaky_store(monkeypatch, endless, 0.05).remove("name")
    assert endless.left < 10**9 - 2


def test_errors_are_told_apart_by_their_status() -> None:
    from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError

    def translated(status: int) -> OSError:
        answer = {"Error": {"Code": str(status)}, "ResponseMetadata": {"HTTPStatusCode": status}}
        error = OSError(5, "translated")
        error.__cause__ = ClientError(answer, "PutObject")
        return error

    assert [is_transient(translated(status)) for status in (400, 429, 500, 503)] == [False, True, True, True]
    assert is_transient(EndpointConnectionError(endpoint_url="http://nowhere"))
    assert not is_transient(NoCredentialsError())
    assert not is_transient(KeyError("a mistake of ours"))


@pytest.fixture
def memory_store(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> ObjectStore:
    monkeypatch.setattr(lease, "RACE_WINDOW_S", 0.05)
    for module in (lease, lease_owner):
        monkeypatch.setattr(module, "LEASE_RENEW_S", 0.1)
    return ObjectStore(f"memory://{request.node.name}/run", 5)


def put_holder(store: ObjectStore, **about: Any) -> None:
    known = {"host": "far", "machine": "far away", "pid": 1, "started": 0.0, "token": "theirs", "time": time.time()}
    store.put_text(json.dumps(known | about), RunLayout.lease)


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


def test_a_worker_that_lost_the_output_commits_no_more(memory_store: ObjectStore, tmp_path: Path) -> None:
    remote = RemoteHandle(memory_store.url, "ours", plan="", fenced=False)
    config = make_config(["weights=random"])
    committer = RemoteCommitter(
        make_spec(tmp_path, config, shards=(Span(0, 1),), row_digests=("of shard 0",), remote=remote)
    )
    (tmp_path / "embeddings").mkdir()
    (tmp_path / "embeddings/part-00000.parquet").write_bytes(b"rows")
    entry = ShardEntry(0, 1, 1, {"embeddings/part-00000.parquet": FileDigest(4, "")})
    put_holder(memory_store, token="ours")
    committer.commit(entry)
    assert ".runner/commits/shard-00000.json" in memory_store.list_recursive(".runner")
    memory_store.remove(".runner/commits/shard-00000.json")
    put_holder(memory_store)
    with pytest.raises(StoreError, match="process 1 on far"):
        committer.commit(entry)
    assert ".runner/commits/shard-00000.json" not in memory_store.list_recursive(".runner")


def test_shards_that_are_taken_back_lose_their_commit_objects(memory_store: ObjectStore, tmp_path: Path) -> None:
    remote = RemoteHandle(memory_store.url, "ours", plan="", fenced=False)
    spec = make_spec(
        tmp_path, make_config(["weights=random"]), shards=(Span(0, 1),) * 3, row_digests=("",) * 3, remote=remote
    )
    (tmp_path / RunLayout.state).mkdir()
    put_holder(memory_store, token="ours")
    journal = Journal(tmp_path / RunLayout.journal)
    writer = ShardWriter(ShardFiles(tmp_path, []), journal, uploader=RemoteCommitter(spec))
    for shard in range(2):
        writer.commit(ShardEntry(shard))
    writer.revoke_from(1)
    writer.commit(ShardEntry(2))  # it was under way
    assert list(writer.committed) == [0]
    assert list(memory_store.list_recursive(".runner/commits")) == [".runner/commits/shard-00000.json"]
    assert list(read_journal(tmp_path / RunLayout.journal)[0]) == [0]


def test_shards_of_changed_sources_lose_their_commit_objects(
    memory_store: ObjectStore, tmp_path: Path, clips: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(clips, data)
    config = make_config([f"dataset.root={data}", f"output.dir={memory_store.url}", "output.clips_per_shard=4"])

    def session(folder: Path) -> tuple[RemoteRun, Plan]:
        (folder / ".runner").mkdir(parents=True)
        (folder / "left_over").write_text("of an earlier command")
        output = open_remote_run(folder, config)
        assert output is not None
        assert not (folder / "left_over").exists()
        plan = make_plan(folder, config, build_manifest(config.dataset, tmp_path))
        begin_attempt(folder, 0.0)
        output.begin_attempt(plan)
        return output, plan

    first, plan = session(tmp_path / "one")
    assert plan.committed == {}
    committer = RemoteCommitter(
        make_spec(tmp_path / "one", config, shards=plan.shards, row_digests=plan.row_digests, remote=first.handle())
    )
    for number in (0, 1):
        name = f"embeddings/part-{number:05d}.parquet"
        (tmp_path / "one" / "embeddings").mkdir(exist_ok=True)
        (tmp_path / "one" / name).write_bytes(b"rows")
        committer.commit(ShardEntry(number, 4, 4, {name: FileDigest(4, "")}, row_digest=plan.row_digests[number]))
    memory_store.put_text("{}", "result.json")
    first.release()
    changed = sorted(path for path in data.rglob("*") if path.is_file())[0]
    changed.write_bytes(changed.read_bytes() + b"more")
    second, plan = session(tmp_path / "two")
    gone = {0, 1} - plan.committed.keys()
    assert len(gone) == 1
    assert list(memory_store.list_recursive(".runner/commits")) == [
        f".runner/commits/shard-{number:05d}.json" for number in plan.committed
    ]
    assert "result.json" not in memory_store.list_folder()
    assert len((tmp_path / "two/.runner/attempts.jsonl").read_text().splitlines()) == 2
    second.release()


def test_shards_with_clips_that_came_back_are_done_again_from_any_machine(
    memory_store: ObjectStore, tmp_path: Path, clips: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(clips, data)
    config = make_config([f"dataset.root={data}", f"output.dir={memory_store.url}", "output.clips_per_shard=4"])

    def begin(folder: Path) -> tuple[RemoteRun, Plan]:
        (folder / ".runner").mkdir(parents=True)
        output = open_remote_run(folder, config)
        assert output is not None
        plan = make_plan(folder, config, build_manifest(config.dataset, tmp_path), output.download_clip_rows)
        begin_attempt(folder, 0.0)
        output.begin_attempt(plan)
        return output, plan

    first, plan = begin(tmp_path / "one")
    committer = RemoteCommitter(
        make_spec(tmp_path / "one", config, shards=plan.shards, row_digests=plan.row_digests, remote=first.handle())
    )
    name = ".runner/clips/part-00000.parquet"
    reasons = pa.table({"reason": pa.array([None, "missing", None, None], pa.string()), "detail": pa.nulls(4)})
    pq.write_table(reasons, tmp_path / "one" / name)
    described = {name: digest_file(tmp_path / "one" / name)}
    committer.commit(
        ShardEntry(0, 4, 4, described, ShardCounts(skipped={"missing": 1}), row_digest=plan.row_digests[0])
    )
    first.release()
    clip = Path(os.fsdecode(plan.manifest.table["path"][1].as_py()))
    clip.rename(tmp_path / clip.name)
    second, plan = begin(tmp_path / "two")
    assert set(plan.committed) == {0}
    second.release()
    (tmp_path / clip.name).rename(clip)
    third, plan = begin(tmp_path / "three")
    assert plan.committed == {}
    assert memory_store.list_recursive(".runner/commits") == {}
    third.release()


def test_objects_of_a_store_that_is_silent_are_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Silent:
        def cat_file(self, url: str, start: int, end: int) -> bytes:
            asked.append(url)
            raise (FileNotFoundError(url) if len(asked) < 3 else TimeoutError(url))

    monkeypatch.setattr("runner.output.state.rerun.store_of", lambda url: Silent())
    monkeypatch.setattr("runner.output.state.rerun._REQUEST_TIMEOUT_S", 0.0)
    probe = ObjectProbe()
    assert [probe.exists(f"s3://bucket/{number}.wav".encode()) for number in range(6)] == [False] * 6
    assert len(asked) == 3
