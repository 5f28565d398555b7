"""Partitions and wholes in object stores, against a local S3 server: the same bits, faults, kills, what is no whole."""

from __future__ import annotations

import collections
import json
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from runner.cli.merge import main as merge
from runner.core.layout import FORMAT_FOLDERS, FORMATS, RunLayout
from runner.output.remote.commits import commit_name
from runner.output.state.journal import ShardEntry, from_line, read_journal, to_line
from runner.output.state.plan_file import read_plan
from runner.storage import lease
from runner.storage.lease import Lease
from runner.storage.object_store import ObjectStore
from tests.commands import PROJECT, REAL, start, wait_until
from tests.commands import run as run_command
from tests.object_store import StoreServer, object_store

BUCKET = "parts"
SETTINGS = (
    *("weights=random", "device=cpu", "tracking=none", "profile=off", "model.conv=direct", "memory=conservative"),
    *("memory.decode_workers=1", f"output.formats=[{','.join(FORMATS)}]", "output.postprocess=audioset"),
    *("output.pool=[1.92]", "output.clips_per_shard=2"),
)
KEPT = (*FORMAT_FOLDERS, "stats.npz", "clips.parquet")
SHARDS = 5
Fault = str | None
"""What becomes of a request; see ``StoreServer.fault``."""


@dataclass(frozen=True)
class Parts:
    """Two parts, in folders and at URLs, and what merging the folders gives."""

    folders: tuple[Path, Path]
    urls: tuple[str, str]
    whole: dict[str, bytes]


@pytest.fixture(scope="module")
def server() -> Iterator[StoreServer]:
    with object_store() as store, pytest.MonkeyPatch.context() as patch:
        patch.setattr(lease, "RACE_WINDOW_S", 0.05)
        store.bucket(BUCKET, {})
        yield store


@pytest.fixture(scope="module")
def parts(server: StoreServer, tmp_path_factory: pytest.TempPathFactory) -> Parts:
    """The first part is written to the store by a run; the second is a folder's, laid out as such a run's."""
    home = tmp_path_factory.mktemp("parts")
    make_clips(home / "clips")
    url = f"s3://{BUCKET}/one"
    with ThreadPoolExecutor(2) as threads:
        given = (("1/2", home / "1"), ("2/2", home / "2"), ("1/2", url))
        runs = [threads.submit(embed, home / "clips", which, str(out), home, server) for which, out in given]
        for run in runs:
            assert run.result() == 0
    put_run(server, home / "1", "copied")
    put_run(server, home / "2", "two")
    assert kept(server, "copied") == kept(server, "one")
    folders = (home / "1", home / "2")
    assert merge([*map(str, folders), "--output", str(home / "whole")]) == 0
    return Parts(folders, (url, f"s3://{BUCKET}/two"), files_of(home / "whole"))


def make_clips(folder: Path) -> None:
    """Nine clips of three labels, one in a folder further down, and one that is none."""
    rng = np.random.default_rng(5)
    for number in range(9):
        path = folder / f"label {number % 3}" / ("in" if number == 4 else "") / f"{number:02d}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, rng.normal(0, 0.1, 16_000 + 3000 * number), 16_000)
    (folder / "label 1" / "broken.wav").write_bytes(b"RIFF")


def embed(clips: Path, which: str, out: str, outputs: Path, server: StoreServer) -> int:
    arguments = (f"dataset.root={clips}", f"dataset.partition={which}", f"output.dir={out}", f"paths.outputs={outputs}")
    done = run_command(*arguments, *SETTINGS, **server.environment)
    assert done.status == 0, done.err + done.out
    return done.status


def put_run(server: StoreServer, folder: Path, prefix: str) -> None:
    """Put a run's folder as a run at a URL leaves it: commit objects for the journal, no locks."""
    client = server.client()
    left_out = {f".runner/{name}" for name in ("journal.jsonl", "run.lock", "worker.lock", "lock_owner.json")}
    objects = {name: data for name, data in files_of(folder, everything=True).items() if name not in left_out}
    stored = read_plan(folder)
    assert stored is not None
    plan = stored.id
    for number, entry in read_journal(folder / ".runner" / "journal.jsonl")[0].items():
        objects[commit_name(number)] = f"{to_line(replace(entry, plan_id=plan))}\n".encode()
    for name, data in objects.items():
        client.put_object(Bucket=BUCKET, Key=f"{prefix}/{name}", Body=data)


def files_of(folder: Path, everything: bool = False) -> dict[str, bytes]:
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if everything or name.startswith(KEPT)}


def objects(server: StoreServer, prefix: str) -> dict[str, bytes]:
    """All objects below s3://BUCKET/prefix, past the proxy."""
    client = server.client()
    keys = [entry["Key"] for entry in client.list_objects_v2(Bucket=BUCKET, Prefix=f"{prefix}/").get("Contents", [])]
    return {key.removeprefix(f"{prefix}/"): client.get_object(Bucket=BUCKET, Key=key)["Body"].read() for key in keys}


def names_put(server: StoreServer, prefix: str) -> int:
    """How many TFRecords there are."""
    found = server.client().list_objects_v2(Bucket=BUCKET, Prefix=f"{prefix}/").get("Contents", [])
    return sum(entry["Key"].endswith(".tfrecord") for entry in found)


def read_of(server: StoreServer) -> set[str]:
    """What was read of runs: the first part of each object's name."""
    keys = (key.split("/", 2) for method, key in server.requests if method == "GET" and not key.endswith("/"))
    return {key[2].partition("/")[0] for key in keys if len(key) == 3}


def kept(server: StoreServer, prefix: str) -> dict[str, bytes | ShardEntry]:
    """A run's files, and its commit objects but for its plan's id."""
    found: dict[str, bytes | ShardEntry] = {}
    for name, data in objects(server, prefix).items():
        if name.startswith(f"{RunLayout.commits}/"):
            entry = from_line(data.strip())
            assert entry is not None
            found[name] = replace(entry, plan_id="")
        elif name.startswith((*KEPT, ".runner/c")):
            found[name] = data
    return found


def assert_whole(found: dict[str, bytes], parts: Parts) -> None:
    """The same files as from folders, bit for bit, merged.json beside them, and nothing left over."""
    merged = json.loads(found.pop("merged.json"))
    assert sorted(found) == sorted(parts.whole)
    assert [name for name, data in parts.whole.items() if found[name] != data] == []
    assert (merged["metrics"]["clips_embedded"], merged["metrics"]["clips_skipped"]) == (9, 1)


@pytest.fixture
def copies(server: StoreServer, parts: Parts, request: pytest.FixtureRequest) -> Iterator[tuple[str, str]]:
    """A part's objects for a test to spoil: the second part's URL, and its prefix."""
    server.behave()
    prefix = f"spoilt/{request.node.name}"
    put_run(server, parts.folders[1], prefix)
    yield f"s3://{BUCKET}/{prefix}", prefix
    server.behave()


@pytest.mark.slow
def test_urls_to_a_folder(
    server: StoreServer, parts: Parts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.behave()
    assert merge(parts.urls) == 0
    assert read_of(server) == {".runner", "result.json"}  # all else is listed
    out = capsys.readouterr().out
    assert "1/2      6" in out
    assert parts.urls[0] in out
    assert merge([*parts.urls, "--output", str(tmp_path / "whole")]) == 0
    assert f"merged 2 of 2 partitions into {tmp_path / 'whole'}" in capsys.readouterr().out
    assert_whole(files_of(tmp_path / "whole", everything=True), parts)
    assert merge([*parts.urls, "--output", str(tmp_path / "whole")]) == 1
    assert f"{tmp_path / 'whole'} is not empty: choose another folder" in capsys.readouterr().err


@pytest.mark.slow
def test_urls_to_a_url_are_copied_by_the_store(server: StoreServer, parts: Parts) -> None:
    server.behave()
    assert merge([*parts.urls, "--output", f"s3://{BUCKET}/whole/"]) == 0
    assert read_of(server) == {".runner", "clips.parquet", "result.json"}  # nothing else passed this machine
    puts = [key for method, key in server.requests if method == "PUT" and not key.endswith("lease.json")]
    assert (puts[0], puts[-1]) == (f"{BUCKET}/whole/merge_in_progress.json", f"{BUCKET}/whole/merged.json")
    assert_whole(objects(server, "whole"), parts)


@pytest.mark.slow
@pytest.mark.parametrize("to", ["folder", "url", "another kind"])
def test_folders_and_urls_mix(server: StoreServer, parts: Parts, tmp_path: Path, to: str) -> None:
    server.behave()
    target = {"folder": str(tmp_path / "whole"), "url": f"s3://{BUCKET}/mixed", "another kind": "memory://mixed/whole"}
    given = [parts.urls[0], str(parts.folders[1])]
    assert merge([*given[:: -1 if to == "url" else 1], "--output", target[to]]) == 0
    if to == "folder":
        found = files_of(tmp_path / "whole", everything=True)
        linked = tmp_path / "whole" / "embeddings" / "part-00001.parquet"
        assert linked.samefile(parts.folders[1] / "embeddings" / "part-00000.parquet")
    elif to == "url":
        found = objects(server, "mixed")
    else:
        store = ObjectStore(target[to], 5)
        found = {name: store.read(name) or b"" for name in store.list_recursive("")}
    assert_whole(found, parts)


class Troubles:
    """Fails a share of all requests."""

    def __init__(self) -> None:
        self._rng, self._lock = random.Random(7), threading.Lock()
        self.failed: collections.Counter[Fault] = collections.Counter()

    def __call__(self, method: str, key: str) -> Fault:
        with self._lock:
            fault: Fault = self._rng.choices((None, "slow_down", "broken", "drop"), (85, 5, 5, 5))[0]
            self.failed[fault] += 1
            return fault


@pytest.mark.slow
@pytest.mark.parametrize("to", ["folder", "url"])
def test_a_store_that_throttles_and_drops_gives_the_same(
    server: StoreServer, parts: Parts, tmp_path: Path, to: str
) -> None:
    server.behave()
    server.fault = troubles = Troubles()
    target = str(tmp_path / "whole") if to == "folder" else f"s3://{BUCKET}/troubled"
    assert merge([*parts.urls, "--output", target]) == 0
    server.behave()
    assert min(troubles.failed[fault] for fault in ("slow_down", "broken", "drop")) > 0
    found = files_of(tmp_path / "whole", everything=True) if to == "folder" else objects(server, "troubled")
    assert_whole(found, parts)


def test_a_store_that_stays_away_is_one_message_in_time(
    server: StoreServer, parts: Parts, capsys: pytest.CaptureFixture[str]
) -> None:
    server.fault = lambda method, key: "slow_down"
    assert merge([*parts.urls, "--timeout-s", "1"]) == 1
    server.behave()
    assert capsys.readouterr().err.endswith(
        f"error: {parts.urls[0]} could not be listed for 1 s (no answer, or only refusals): completed "
        "uploads are kept; rerun the same command to resume\n"
    )


SPOILT = {
    "embeddings": ("embeddings/part-00001.parquet", None, "is damaged: files of shards 1 are missing or have changed"),
    "size": ("tfrecord/part-00000.tfrecord", b"short", "is damaged: files of shards 0 are missing or have changed"),
    "npz": ("npz/label 1/in/04.wav.npz", None, "is damaged: shards 1 lack npz files; remove their objects .runner/"),
    "rows": (".runner/clips/part-00000.parquet", b"short", "is damaged: files of shards 0 are missing or have changed"),
    "commit": (".runner/commits/shard-00001.json", None, "is not finished: 1 of its 2 shards are missing"),
    "cut off": (".runner/commits/shard-00001.json", b'{"shard": 1', "is not finished: 1 of its 2 shards"),
    "result": ("result.json", None, "is not finished: it has no result.json; rerun its command"),
    "failed": ("result.json", b'{"status": "failed"}', "is not finished: its result.json says failed; rerun its"),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", SPOILT)
def test_what_is_spoilt_is_told_and_nothing_is_put_together(
    server: StoreServer,
    parts: Parts,
    copies: tuple[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    what: str,
) -> None:
    url, prefix = copies
    name, data, words = SPOILT[what]
    client = server.client()
    client.head_object(Bucket=BUCKET, Key=f"{prefix}/{name}")
    if data is None:
        client.delete_object(Bucket=BUCKET, Key=f"{prefix}/{name}")
    else:
        client.put_object(Bucket=BUCKET, Key=f"{prefix}/{name}", Body=data)
    assert merge([parts.urls[0], url, "--output", str(tmp_path / "whole")]) == 1
    err = capsys.readouterr().err
    assert f"FAILED: {url} {words}" in err
    assert err.count("FAILED") == 1
    assert not (tmp_path / "whole").exists()


@pytest.mark.slow
def test_bytes_that_changed_are_seen_as_they_are_fetched(
    server: StoreServer, parts: Parts, copies: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url, prefix = copies
    name = "tfrecord/part-00000.tfrecord"
    server.client().put_object(Bucket=BUCKET, Key=f"{prefix}/{name}", Body=objects(server, prefix)[name][:-1] + b"\xff")
    assert merge([parts.urls[0], url, "--output", str(tmp_path / "whole")]) == 1
    assert f"{url}/{name} has other content than was written: remove it" in capsys.readouterr().err
    assert not (tmp_path / "whole" / "merged.json").exists()


@pytest.mark.slow
def test_a_part_that_is_held_is_told(
    server: StoreServer, parts: Parts, copies: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    hold = Lease(ObjectStore(copies[0], 20))
    hold.acquire()
    assert merge([parts.urls[0], copies[0]]) == 1
    assert f"FAILED: {copies[0]} is in use by another command (process " in capsys.readouterr().err
    hold.release()
    assert merge([parts.urls[0], copies[0]]) == 0


def test_places_that_hold_no_part_or_something_else(
    server: StoreServer, parts: Parts, capsys: pytest.CaptureFixture[str]
) -> None:
    server.behave()
    assert merge([f"s3://{BUCKET}/nothing", parts.urls[1]]) == 1
    assert (
        f"s3://{BUCKET}/nothing holds no run: give the output.dir of runs with dataset.partition=i/n"
        in capsys.readouterr().err
    )
    assert merge(["s3://nosuchbucket/part"]) == 1
    assert merge(["s3://me:secret@bucket/part"]) == 1
    err = capsys.readouterr().err
    assert "secret" not in err
    assert merge([*parts.urls, "--output", parts.urls[0]]) == 1
    assert f"error: {parts.urls[0]} is not empty: choose another folder" in capsys.readouterr().err
    assert [key for method, key in server.requests if method in ("PUT", "DELETE")] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("to", "how"), [("folder", signal.SIGKILL), ("url", signal.SIGKILL), ("url", signal.SIGINT)], ids=str
)
def test_a_merge_that_was_killed_goes_on(
    server: StoreServer,
    parts: Parts,
    tmp_path: Path,
    to: str,
    how: signal.Signals,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server.behave()
    prefix = f"killed by {how.name}"
    target = str(tmp_path / "whole") if to == "folder" else f"s3://{BUCKET}/{prefix}"
    arguments = [*parts.urls, "--output", target]
    method = "GET" if to == "folder" else "PUT"
    given: list[str] = []

    def only_two_shards(asked: str, key: str) -> Fault:
        """Two shards' TFRecords, which come last, are given, and no other's."""
        if asked != method or not key.endswith(".tfrecord"):
            return None
        if key not in given and len(given) < 2:
            given.append(key)
        return None if key in given else "slow_down"

    def found() -> dict[str, bytes]:
        return files_of(tmp_path / "whole", everything=True) if to == "folder" else objects(server, prefix)

    server.fault = only_two_shards
    command = start("merge", *arguments, command=REAL, **server.environment)

    def two_are_there() -> bool:
        assert command.poll() is None, command.err
        if len(given) < 2:  # asked for: only then is it worth looking
            return False
        return (len(list(tmp_path.rglob("part-*.tfrecord"))) if to == "folder" else names_put(server, prefix)) == 2

    wait_until(two_are_there, lambda: command.err)
    command.send_signal(how)
    _, err = command.communicate(timeout=30)
    if how == signal.SIGINT:
        assert err.endswith("stopped; rerun the same command to resume\n")
        assert command.returncode == 130
    left = found()
    assert "merge_in_progress.json" in left
    assert "merged.json" not in left
    assert "clips.parquet" not in left

    server.behave()
    there = {name for name in left if name.endswith(".tfrecord")}
    assert len(there) == 2
    assert merge(arguments) == 0, capsys.readouterr().err
    again = {key for asked, key in server.requests if asked == method and key.endswith(".tfrecord")}
    assert len(again) == SHARDS - len(there)
    assert_whole(found(), parts)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "fault"), [(signal.SIGINT, "silence"), (signal.SIGTERM, "slow_down")], ids=("ctrl-c", "sigterm")
)
def test_a_merge_is_stopped_soon_whatever_its_store_answers(
    server: StoreServer, parts: Parts, tmp_path: Path, how: signal.Signals, fault: str
) -> None:
    server.behave()
    asked, over = threading.Event(), threading.Event()

    def no_shards(method: str, key: str) -> Fault:
        if over.is_set() or method != "GET" or not key.endswith(".tfrecord"):
            return None
        asked.set()
        if fault == "silence":
            over.wait()
        return "slow_down"

    server.fault = no_shards
    (tmp_path / "temporary").mkdir()
    arguments = [*parts.urls, "--output", str(tmp_path / "whole")]
    env = server.environment | {"TMPDIR": str(tmp_path / "temporary")}
    command = start("merge", *arguments, "--timeout-s", "600", command=REAL, **env)
    try:
        wait_until(asked.is_set, lambda: command.err)
        command.send_signal(how)
        command.communicate(timeout=30)
    finally:
        over.set()
        command.kill()
    assert command.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}[how]
    assert [RunLayout.lease in objects(server, prefix) for prefix in ("one", "two")] == [False, False]
    assert list((tmp_path / "temporary").iterdir()) == []
    assert "merge_in_progress.json" in files_of(tmp_path / "whole", everything=True)
    assert merge(arguments) == 0
    assert_whole(files_of(tmp_path / "whole", everything=True), parts)


@pytest.mark.slow
def test_a_merge_of_other_parts_does_not_go_on(
    server: StoreServer, parts: Parts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.behave()
    (tmp_path / "merge_in_progress.json").write_text('{"digest": "another"}')
    server.client().put_object(Bucket=BUCKET, Key="begun/merge_in_progress.json", Body=b"cut o")
    for target in (str(tmp_path), f"s3://{BUCKET}/begun"):
        assert merge([*parts.urls, "--output", target]) == 1
        assert f"{target} holds an unfinished merge of other partitions" in capsys.readouterr().err
    assert list(objects(server, "begun")) == ["merge_in_progress.json"]
    hold = Lease(ObjectStore(f"s3://{BUCKET}/taken", 20))
    hold.acquire()
    assert merge([*parts.urls, "--output", f"s3://{BUCKET}/taken"]) == 1
    assert f"error: --output=s3://{BUCKET}/taken is in use by another command" in capsys.readouterr().err
    hold.release()
    assert RunLayout.lease not in objects(server, "taken")


def test_folders_need_no_store_modules_and_their_npz_files_are_looked_at(
    parts: Parts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = "import sys; from runner.cli.merge import main; main(sys.argv[1:]); "
    code += "print([name for name in sys.modules if name.split('.')[0] in ('fsspec', 's3fs') or '_store' in name])"
    arguments = [*map(str, parts.folders), "--output", str(tmp_path / "whole")]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
    spoilt = tmp_path / "spoilt"
    shutil.copytree(parts.folders[1], spoilt)
    next((spoilt / "npz").rglob("*.npz")).unlink()
    assert merge([str(parts.folders[0]), str(spoilt)]) == 1
    assert f"FAILED: {spoilt} is damaged: shards " in capsys.readouterr().err
