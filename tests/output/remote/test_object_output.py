"""An output in an object store, against a local S3 server: the same bits, kills, throttling, two commands at once."""

from __future__ import annotations

import collections
import json
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

import pytest

from runner.config.composition import _output_dir
from runner.core.errors import ConfigError
from runner.core.layout import RunLayout
from runner.output.remote.run import open_remote_run
from runner.storage.lease import Lease
from runner.storage.object_store import ObjectStore
from tests.commands import PROJECT, Done, start, wait_until
from tests.commands import run as run_command
from tests.configs import make_config
from tests.double.framework import GPUS
from tests.object_store import Fault, StoreServer, object_store
from tests.stress.chaos import make_clips, victims

BUCKET = "bucket"

SHARDS, A_SHARD, STUBBORN = 8, 2, 7

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


@pytest.fixture(scope="module")
def local(clips: Path) -> Path:
    """The run in a folder."""
    done = embed(clips, str(clips.parent / "local"), clips.parent)
    assert done.status == 0, done.err
    return clips.parent / "local"


@pytest.fixture
def quiet(server: StoreServer) -> Iterator[StoreServer]:
    yield server
    server.behave()


def embed(clips: Path, out: str, outputs: Path, *arguments: str, **env: str) -> Done:
    given = (f"dataset.root={clips}", f"output.dir={out}", f"paths.outputs={outputs}", *SETTINGS, *arguments)
    return run_command(*given, timeout=120, **env)


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
    clips: Path, local: Path, quiet: StoreServer, tmp_path: Path
) -> None:
    """Killed and its folder deleted, failed as the store refused a commit object, then through 503s, 500s and drops."""
    url = f"s3://{BUCKET}/killed"
    kill_after_two_shards(clips, url, quiet, tmp_path / "one")
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
    result = assert_same("killed", local)
    assert result["attempt"] == 3
    assert result["metrics"]["attempt_clips"] == A_SHARD * left
    again = embed(clips, url, tmp_path / "another")
    assert again.status == 0, again.err
    assert f"{url} is already complete" in again.err


@pytest.mark.slow
def test_the_processes_of_two_gpus_commit_to_one_store(
    clips: Path, local: Path, quiet: StoreServer, tmp_path: Path
) -> None:
    gpus = ("device.name=auto", "device.index=all")
    done = embed(clips, f"s3://{BUCKET}/gpus", tmp_path / "out", *gpus, **{GPUS: "2"})
    assert done.status == 0, done.err
    assert assert_same("gpus", local)["device"]["count"] == 2


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
        asked = sum(method == "PUT" and "/.runner/commits/" in key for method, key in list(server.requests))
        return asked >= 2 and len(store.list_recursive(".runner/commits")) >= 2

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
