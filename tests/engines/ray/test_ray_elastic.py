"""A Ray cluster that grows, shrinks and has actors die, with sessions of plain arithmetic: the local engine's files.

The driver is a process of its own, since Ray ends one on the spot that loses its cluster.  The machines are raylets of
one machine.  Ray's own ``AutoscalingCluster`` begins with ``ray stop``, which would end
what others run here; machines are added by hand instead, once the run has said what it waits for.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from tests import whole_run
from tests.commands import start, wait_until
from tests.engines.ray.arithmetic import run
from tests.fork_server import Forked
from tests.ray_cluster import ray_cluster

pytestmark = pytest.mark.slow
SHARDS = 20
MEMORY = {"object_store_memory": 80 << 20}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without CPUs."""
    pytest.importorskip("ray", reason="Ray has no build for this machine")
    with ray_cluster(num_cpus=0) as cluster, pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", cluster.address)  # as `ray job submit` does
        yield cluster


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("elastic") / "data" / "label"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(SHARDS):
        soundfile.write(folder / f"{number:02d}.wav", rng.uniform(-0.5, 0.5, 16_000 + 997 * number), 16_000)
    (folder / "07.wav").write_bytes(b"RIFF no audio at all")
    return folder.parent


@pytest.fixture(scope="module")
def local(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of an undisturbed run of the local engine."""
    folder = tmp_path_factory.mktemp("elastic-local")
    result = run(data, folder)
    assert result["status"] == "finished", result
    return whole_run.tree(folder / "run")


def begun(data: Path, folder: Path, *more: str) -> Forked:
    """A driver, in a process of its own."""
    command, log = "tests.engines.ray.arithmetic", folder / "driver.log"
    return start(str(data), str(folder), *more, command=command, log=log)


def ended(driver: Forked, folder: Path) -> dict[str, Any]:
    """The result of a driver."""
    assert driver.wait(120) == 0, (folder / "driver.log").read_text()[-3000:]
    result: dict[str, Any] = json.loads((folder / "run" / "result.json").read_text())
    return result


def until(driver: Forked, holds: Callable[[], Any]) -> None:
    """Return once it holds, while the driver goes on."""
    wait_until(lambda: driver.poll() is not None or holds(), "it did not come to hold", 90)
    assert driver.poll() is None


def actors(folder: Path) -> dict[int, str]:
    """The machine of each actor that was given a shard, by process."""
    names = [path.name.split("-") for path in folder.glob("actor-*")]
    return {int(pid): machine for _, pid, _, machine in names}


def test_a_cluster_that_begins_with_no_cpu_grows_and_loses_an_actor_and_a_machine(
    cluster: Any, data: Path, local: dict[str, bytes], tmp_path: Path
) -> None:
    hold = tmp_path / "hold"
    hold.touch()
    command, log = begun(data, tmp_path, "engine=ray", "engine.wait_s=60"), tmp_path / "run" / "runner.log"
    until(command, lambda: log.exists() and "waiting for a machine with 1 CPUs and 0 GPUs" in log.read_text())
    cluster.add_node(**MEMORY, num_cpus=1)
    until(command, lambda: actors(tmp_path))
    second = cluster.add_node(**MEMORY, num_cpus=1)
    until(command, lambda: len(set(actors(tmp_path).values())) == 2)
    os.kill(next(pid for pid, machine in actors(tmp_path).items() if machine != second.node_id), signal.SIGKILL)
    cluster.remove_node(second, allow_graceful=False)
    until(command, lambda: len(actors(tmp_path)) == 3)
    hold.unlink()
    result = ended(command, tmp_path)
    assert result["status"] == "finished", result
    assert whole_run.tree(tmp_path / "run") == local
    assert result["metrics"]["nodes"] == 2
    assert result["metrics"]["actors"] == 3


def test_a_shard_that_kills_its_actor_ends_the_run_once_all_else_is_done(
    cluster: Any, data: Path, local: dict[str, bytes], tmp_path: Path
) -> None:
    if not cluster.worker_nodes:
        cluster.add_node(**MEMORY, num_cpus=1)
    command = begun(data, tmp_path, "engine=ray", 'engine.runtime_env={env_vars:{POISON:"11"}}')
    result = ended(command, tmp_path)
    assert result["status"] == "failed", result
    assert result["failure"]["kind"] == "engine"
    message = result["failure"]["message"]
    assert "1 shards killed their actors 3 times each, the last time alone" in message
    assert "(the first is shard 11, label/11.wav to label/11.wav: " in message
    lines = (tmp_path / "run" / ".runner" / "journal.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["shard"] for line in lines) == [each for each in range(SHARDS) if each != 11]
    result = run(data, tmp_path)  # by the local engine
    assert result["status"] == "finished", result
    assert whole_run.tree(tmp_path / "run") == local
