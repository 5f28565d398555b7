"""Google's store, as an emulator plays it: the bits of a local run, taken up; what gcsfs does otherwise than s3fs."""

from __future__ import annotations

import itertools
import json
import os
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import parse_qs, quote, unquote, urlsplit
from urllib.request import Request, urlopen

import pytest
from gcp_storage_emulator.server import create_server

from runner.config.schema import FolderDataset
from runner.core.errors import ClipError, ConfigError, DatasetError, StoreError
from runner.core.layout import RunLayout
from runner.dataset.frozen_listing import list_clips
from runner.dataset.listing import walk_store
from runner.dataset.manifest import build_manifest
from runner.storage import lease
from runner.storage.lease import Lease
from runner.storage.object_store import ObjectStore
from runner.storage.prefetch import fetch
from tests.configs import make_config
from tests.conftest import Done, run_command
from tests.object_store import Fault, Proxy, free_port
from tests.stress.chaos import make_clips

BUCKET = "bucket"
SHARDS, A_SHARD = 4, 3
SETTINGS = (
    *("weights=random", "device=cpu", "model.conv=direct", "memory=conservative", "memory.decode_workers=1"),
    *("output.formats=[parquet,npz]", f"output.clips_per_shard={A_SHARD}", "tracking=none", "profile=off"),
)


@pytest.fixture(scope="module")
def server() -> Iterator[Proxy]:
    port = free_port()
    server = create_server("127.0.0.1", port, in_memory=True)
    with server, pytest.MonkeyPatch.context() as patch:
        proxy = Proxy(port)
        patch.setenv("STORAGE_EMULATOR_HOST", proxy.address)
        patch.setenv("GOOGLE_CLOUD_PROJECT", "tests")
        bucket = Request(f"{proxy.address}/storage/v1/b", b'{"name": "bucket"}', {"Content-Type": "application/json"})
        urlopen(bucket, timeout=10).close()
        yield proxy
        proxy.close()


@pytest.fixture
def quiet(server: Proxy) -> Iterator[Proxy]:
    server.behave()
    yield server
    server.behave()


def embed(root: object, out: object, outputs: Path) -> Done:
    done = run_command(f"dataset.root={root}", f"output.dir={out}", f"paths.outputs={outputs}", *SETTINGS, timeout=120)
    assert done.status == 0, done.err
    return done


def numbers_in(store: ObjectStore) -> dict[str, bytes]:
    names = ["clips.parquet", *store.list_recursive("embeddings"), *store.list_recursive("npz")]
    return {name: store.read(name) or b"" for name in names}


def numbers_of(folder: Path) -> dict[str, bytes]:
    paths = [folder / "clips.parquet", *(folder / "embeddings").rglob("*.*"), *(folder / "npz").rglob("*.*")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


class Generations:
    """Refuses what Google's store refuses by ``ifGenerationMatch``, which the emulator does not look at."""

    def __init__(self, server: Proxy) -> None:
        self._address = f"http://127.0.0.1:{server.port}"

    def __call__(self, method: str, path: str, body: bytes) -> bool:
        query = parse_qs(urlsplit(path).query)
        if (wanted := query.get("ifGenerationMatch")) is None:
            return False
        told = re.search(rb'"name": "([^"]+)"', body)
        name = query["name"][0] if "name" in query else told[1].decode() if told else unquote(path).split("/o/")[1]
        key = quote(name.partition("?")[0], safe="")
        try:
            with urlopen(f"{self._address}/storage/v1/b/{BUCKET}/o/{key}", timeout=10) as answer:
                return bool(json.load(answer)["generation"] != wanted[0])
        except HTTPError:
            return wanted[0] != "0"


def test_conditions_make_one_command_win_and_the_late_one_replace_nothing(
    quiet: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As against the S3 server (``test_object_fencing``), with the answers to every other put lost."""
    quiet.refuses = Generations(quiet)
    monkeypatch.setattr(lease, "LEASE_RENEW_S", 1000.0)
    url = f"gs://{BUCKET}/fenced"
    barrier = threading.Barrier(4)

    def take(_: int) -> tuple[ObjectStore, Lease] | str:
        store = ObjectStore(url, 30)
        hold = Lease(store)
        barrier.wait()
        try:
            hold.acquire()
        except ConfigError as error:
            return str(error)
        return store, hold

    with ThreadPoolExecutor(4) as threads:
        ends = list(threads.map(take, range(4)))
    ((store, hold),) = (end for end in ends if not isinstance(end, str))
    assert store.conditions is not None
    assert all("is in use by another command" in end for end in ends if isinstance(end, str))
    seen, count = store.read_version(RunLayout.lease), itertools.count()
    assert seen is not None
    assert 0 <= seen.age_s < 30
    quiet.fault = lambda method, key: "drop" if method == "POST" and next(count) % 2 == 0 else None
    hold._renew()
    assert store.create_text("ours", "small")
    quiet.fault = lambda method, key: None
    (tmp_path / "file").write_bytes(b"ours" * (2 << 20))  # more than goes at once
    assert store.create(tmp_path / "file", "large")
    (tmp_path / "file").write_bytes(b"late")
    assert not store.create(tmp_path / "file", "large")
    assert not store.create_text("late", "small")
    store.put_text("another's", RunLayout.lease)
    with pytest.raises(ConfigError):
        hold._renew()
    hold.release()
    assert store.read(RunLayout.lease) == b"another's"


def test_a_store_that_knows_no_generations_is_found_out(quiet: Proxy) -> None:
    store = ObjectStore(f"gs://{BUCKET}/unfenced", 30)
    hold = Lease(store)
    hold.acquire()
    assert store.conditions is None
    hold.release()
    assert store.list_recursive("") == {}


@pytest.mark.slow
def test_a_run_from_gs_to_gs_gives_the_bits_of_a_local_one_and_is_taken_up(quiet: Proxy, tmp_path: Path) -> None:
    clips, data, out = tmp_path / "data", ObjectStore(f"gs://{BUCKET}/data", 30), ObjectStore(f"gs://{BUCKET}/run", 30)
    make_clips(clips, SHARDS * A_SHARD)
    for path in sorted(path for path in clips.rglob("*") if path.is_file()):
        data.put(path, path.relative_to(clips).as_posix())
    with ThreadPoolExecutor(1) as thread:
        local = thread.submit(embed, clips, tmp_path / "local", tmp_path)
        embed(data.url, out.url, tmp_path)
        local.result()
    expected = numbers_of(tmp_path / "local")
    assert numbers_in(out) == expected
    commits = sorted(out.list_recursive(".runner/commits"))
    assert len(commits) == SHARDS
    for name in (*commits[1:3], "result.json"):
        out.remove(name)
    out.put_text("half a shard", "embeddings/part-00001.parquet")
    number, faults = itertools.count(), {11: "slow_down", 23: "broken", 35: "drop"}
    quiet.fault = lambda method, key: faults.pop(next(number), None)
    embed(data.url, out.url, tmp_path / "another machine")
    quiet.behave()
    assert faults == {}
    assert numbers_in(out) == expected
    assert sorted(out.list_recursive(".runner/commits")) == commits
    again = embed(data.url, out.url, tmp_path)
    assert f"{out.url} is already complete" in again.err


def test_an_object_is_read_by_one_request_and_one_that_is_not_there_is_missing(quiet: Proxy) -> None:
    ObjectStore(f"gs://{BUCKET}/one", 30).put_text("sound", "a b#%.wav")
    quiet.behave()
    with fetch(f"gs://{BUCKET}/one/a b#%.wav", 30) as fetched:
        assert Path(fetched.path).read_bytes() == b"sound"
    assert len(quiet.requests) == 1
    with pytest.raises(ClipError) as caught:
        fetch(f"gs://{BUCKET}/one/none.wav", 30)
    assert caught.value.reason == "missing"
    assert len(quiet.requests) == 2


def test_what_may_not_be_read_or_written_is_told_at_once(quiet: Proxy, tmp_path: Path) -> None:
    quiet.fault = lambda method, key: "forbidden"
    with pytest.raises(ClipError) as caught:
        fetch(f"gs://{BUCKET}/x.wav", 30)
    assert caught.value.reason == "unreadable"
    with pytest.raises(StoreError, match="no permission"):
        ObjectStore(f"gs://{BUCKET}/run", 30).put_text("", "x")
    with pytest.raises(DatasetError, match="may not be listed"):
        build_manifest(FolderDataset(root=f"gs://{BUCKET}/data", extensions=["wav"]), tmp_path)
    assert len(quiet.requests) == 3


def test_a_bucket_that_is_not_there(quiet: Proxy, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"root=gs://nowhere/x does not exist"):
        build_manifest(FolderDataset(root="gs://nowhere/x", extensions=["wav"]), tmp_path)


def test_a_store_that_falls_silent_is_given_up_and_asked_again(quiet: Proxy) -> None:
    ObjectStore(f"gs://{BUCKET}/silent", 30).put_text("sound", "x.wav")
    first, second = threading.Event(), threading.Event()

    def fault(method: str, key: str) -> Fault:
        if first.is_set():
            second.set()
            return None
        first.set()
        return "drop" if second.wait(20) else None

    quiet.fault = fault
    with fetch(f"gs://{BUCKET}/silent/x.wav", 1) as fetched:
        assert Path(fetched.path).read_bytes() == b"sound"
    assert second.is_set(), "the first request was waited for"
    quiet.fault = lambda method, key: "stall"
    with pytest.raises(StoreError, match="could not be written for 1 s"):
        ObjectStore(f"gs://{BUCKET}/silent", 1).put_text("", "y")


class Paged:
    """Google's JSON interface, as gcsfs calls it, with so many keys, which it makes as they are asked for."""

    protocol = ("gs", "gcs")

    def __init__(self, keys: int) -> None:
        self.keys = keys
        self.pages = 0

    def call(self, method: str, path: str, bucket: str, json_out: bool, **asked: Any) -> dict[str, Any]:
        assert (method, path, bucket, json_out, asked["prefix"]) == ("GET", "b/{}/o", BUCKET, True, "data/")
        self.pages += 1
        first, end = int(asked.get("pageToken", 0)), self.keys
        names = range(first, min(end, first + asked["maxResults"]))
        updated = "2026-01-02T03:04:05.678Z"
        items = [{"name": f"data/{name:09d}.wav", "size": str(name), "updated": updated} for name in names]
        items[:0] = [{"name": "data/", "size": "0", "updated": updated}] if first == 0 else []  # a folder's mark
        return {"items": items} | ({"nextPageToken": str(names.stop)} if names.stop < end else {})


def test_keys_are_listed_by_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Paged(2500)
    monkeypatch.setattr("runner.dataset.listing.open_store", lambda key, url, timeout_s: (store, f"{BUCKET}/data"))
    found = walk_store(f"gs://{BUCKET}/data", 5)
    assert next(found) == ("000000000.wav", 0, 1767323045677999872)
    assert store.pages == 1
    assert [name for name, _, _ in found] == [f"{name:09d}.wav" for name in range(1, 2500)]
    assert store.pages == 3


def test_keys_are_listed_in_the_order_of_a_folders(quiet: Proxy) -> None:
    names = ["a/b/c.wav", "a/b.wav", "a-b.wav", "a.wav", "ß/ü.wav"]
    store = ObjectStore(f"gs://{BUCKET}/listed", 30)
    for name in names:
        store.put_text("sound", name)
    quiet.behave()
    found = list(walk_store(f"gs://{BUCKET}/listed", 5))
    assert [(name, size) for name, size, _ in found] == [(name, 5) for name in sorted(names, key=os.fsencode)]
    assert all(mtime_ns > 1e18 for _, _, mtime_ns in found)
    assert len(quiet.requests) == 1


def test_a_listing_is_made_once(quiet: Proxy, tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"RIFF")
    settings = make_config([f"dataset.root={tmp_path}", "dataset.partition=1/1", "weights=random"])
    place = f"gs://{BUCKET}/listing.parquet"
    first = list_clips(settings, place, tmp_path)
    (tmp_path / "b.wav").write_bytes(b"RIFF")
    assert list_clips(settings, place, tmp_path).partition == first.partition
