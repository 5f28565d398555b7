"""``engine=ray`` with data and output in an object store: killed actors and drivers, machines that share nothing."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from runner.storage.object_store import ObjectStore
from tests.commands import environment, run
from tests.end_to_end.test_ray import ray_processes, start, words_of
from tests.fork_server import Forked
from tests.object_store import StoreServer, object_store
from tests.output.remote.test_object_output import numbers, numbers_of
from tests.ray_cluster import ray_cluster
from tests.stress.chaos import make_clips

pytestmark = pytest.mark.slow
BUCKET, SHARDS, A_SHARD = "ray", 8, 3
SETTINGS = (
    *("dataset=folder", f"dataset.root=s3://{BUCKET}/data", "device=cpu", "model.conv=direct"),
    *("memory.decode_workers=1", "output.formats=[parquet,npz]", f"output.clips_per_shard={A_SHARD}"),
    *("tracking=none", "profile=off"),
)
RANDOM = ("weights=random",)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoreServer]:
    if not os.environ.get("CI"):
        pytest.importorskip("ray", reason="Ray has no build for this machine")
    clips = make_clips(tmp_path_factory.mktemp("object-ray") / "data", SHARDS * A_SHARD)
    files = [path for path in clips.rglob("*") if path.is_file()]
    with object_store() as store:
        store.bucket(BUCKET, {f"data/{path.relative_to(clips).as_posix()}": path.read_bytes() for path in files})
        yield store


@pytest.fixture(scope="module")
def local(store: StoreServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The numbers of an undisturbed run of the local engine."""
    out = tmp_path_factory.mktemp("object-ray-local") / "run"
    done = run(*SETTINGS, *RANDOM, f"output.dir={out}")
    assert done.status == 0, done.err
    return numbers_of(out)


@pytest.fixture(scope="module")
def hidden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for drivers."""
    return tmp_path_factory.mktemp("hidden")


@pytest.fixture(scope="module")
def blind_address(store: StoreServer, hidden: Path) -> Iterator[str]:
    """Of a head without CPUs, and a machine that has an empty folder in the place of ``hidden``."""
    (hidden / "driver").touch()
    hides = ["unshare", "--mount", "sh", "-c", f"mount -t tmpfs none {hidden} && test ! -e {hidden}/driver"]
    if subprocess.run(hides, capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody hide a folder from a process (unshare, mount)")
    with ray_cluster(num_cpus=0) as cluster:
        ray = f"{Path(sys.executable).parent}/ray"
        joins = f"{ray} start --address={cluster.address} --num-cpus=1 --object-store-memory={100 << 20} --block"
        command = [*hides[:-1], f"mount -t tmpfs none {hidden} && exec {joins}"]
        known = ray_processes()
        machine = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + 60
            while not any("raylet" in words_of(pid) for pid in ray_processes() - known):
                assert time.monotonic() < deadline
                assert machine.poll() is None
                time.sleep(0.2)
            yield cluster.address
        finally:
            for pid in ray_processes() - known:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            machine.kill()
            machine.wait()


@pytest.fixture(autouse=True)
def _behaving(store: StoreServer) -> Iterator[None]:
    store.behave()
    yield
    store.behave()


def assert_same(store: StoreServer, prefix: str, local: dict[str, bytes]) -> None:
    """The store has the files of the local run, bit for bit, a commit object a shard, and no holder."""
    client = store.client()
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{prefix}/")
    keys = [each["Key"] for page in pages for each in page["Contents"]]
    found = {key.removeprefix(f"{prefix}/"): client.get_object(Bucket=BUCKET, Key=key)["Body"].read() for key in keys}
    assert sorted(numbers(found)) == sorted(local)
    assert [name for name, data in local.items() if found[name] != data] == []
    assert sum(name.startswith(".runner/commits/") for name in found) == SHARDS
    assert ".runner/lease.json" not in found


def until_shards(url: str, many: int, command: Forked) -> None:
    """Wait until so many are committed."""
    store, deadline = ObjectStore(url, 20), time.monotonic() + 120
    while len(store.list_recursive(".runner/commits")) < many:
        assert time.monotonic() < deadline
        assert command.poll() is None, command.out + command.err
        time.sleep(0.2)


def test_an_actor_and_then_the_driver_killed_and_their_folder_lost(
    store: StoreServer, local: dict[str, bytes], blind_address: str, tmp_path: Path
) -> None:
    """Begun on Ray, killed twice, finished by the local engine on what might be another machine."""

    def slow(method: str, key: str) -> None:
        time.sleep(0.4 if method == "PUT" and "/commits/" in key else 0)

    store.fault = slow
    url, known = f"s3://{BUCKET}/killed", ray_processes()
    settings = (*SETTINGS, *RANDOM, f"output.dir={url}")
    command = start(*settings, f"engine.address={blind_address}", f"paths.outputs={tmp_path}/one")
    until_shards(url, 1, command)
    actors = [pid for pid in ray_processes() - known if "EmbedShards" in words_of(pid)]
    os.kill(actors[0], signal.SIGKILL)
    until_shards(url, 3, command)
    (driver,) = [child for child in psutil.Process(command.pid).children() if "tests.double.worker" in child.cmdline()]
    for process in (driver, psutil.Process(command.pid)):
        process.kill()
    command.communicate(timeout=60)
    shutil.rmtree(tmp_path / "one")
    store.behave()
    committed = len(ObjectStore(url, 20).list_recursive(".runner/commits"))
    assert 3 <= committed <= SHARDS
    again = run(*settings, f"paths.outputs={tmp_path}/two")
    assert again.status == 0, again.err
    assert again.out.count("files") == 1
    assert f"files  {url}" in again.out
    assert_same(store, "killed", local)


def test_actors_on_a_machine_that_sees_none_of_the_drivers_folders(
    store: StoreServer, blind_address: str, hidden: Path, tmp_path: Path
) -> None:
    """Neither the working folder nor the weights: only Ray and the store connect the two; each clip is read once."""
    path = hidden / "model.ckpt"
    for part in ("index", "data-00000-of-00001"):
        path.with_name(f"{path.name}.{part}").write_bytes(random.Random(part).randbytes(100_000))
    weights = ("weights=file", f"weights.path={path}", "output.postprocess=pca")
    pca = hidden / "pca.npz"
    save_pca(pca)
    settings = (*SETTINGS, *weights, f"weights.pca_path={pca}")
    done = run(
        *(*settings, "engine=ray", f"engine.address={blind_address}", f"output.dir=s3://{BUCKET}/blind"),
        *(f"paths.outputs={hidden}/outputs", f"paths.models={hidden}/models"),
    )
    assert done.status == 0, done.out + done.err
    assert "1 on cpu" in done.out
    reads = Counter(key for key in store.reads() if key.startswith(f"{BUCKET}/data/"))
    assert (len(reads), set(reads.values())) == (SHARDS * A_SHARD, {1})
    same = run(*settings, f"output.dir={tmp_path}/local")
    assert same.status == 0, same.err
    assert_same(store, "blind", numbers_of(tmp_path / "local"))


def save_pca(path: Path) -> None:
    import numpy as np

    rng = np.random.default_rng(2)
    vectors, means = rng.normal(0, 0.1, (128, 128)), rng.normal(0, 0.1, (128, 1))
    np.savez(path, pca_eigen_vectors=vectors.astype(np.float32), pca_means=means.astype(np.float32))
