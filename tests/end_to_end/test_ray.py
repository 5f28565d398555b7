"""``engine=ray`` with real sessions: the local engine's rows, files, counts and reasons; across engines and a kill.

Deaths of actors and machines are in ``tests/engines/ray/test_ray_elastic.py``, with sessions that cost nothing.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import soundfile

from tests import commands
from tests.conftest import run_command
from tests.fork_server import Forked
from tests.ray_cluster import ray_cluster

SETTINGS = (
    *("device=cpu", "weights=random", "tracking=none", "profile=off", "output.clips_per_shard=4"),
    *("output.pool=[1.92]", "frontend.speed=2"),
)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty clips of one to fifteen seconds, and some that are broken, empty, cut off, short, or 44.1 kHz stereo."""
    if not os.environ.get("CI"):
        pytest.importorskip("ray", reason="Ray has no build for this machine")
    folder = tmp_path_factory.mktemp("ray") / "clips"
    rng = np.random.default_rng(5)
    for number in range(60):
        path = folder / f"label{number % 6}" / f"{number:02d}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, rng.normal(0, 0.1, 16_000 * (1 + number % 15)), 16_000)
    (folder / "label1" / "broken.wav").write_bytes(b"RIFF")
    (folder / "label4" / "empty.wav").touch()
    (folder / "label3" / "cut.wav").write_bytes((folder / "label3" / "33.wav").read_bytes()[:50_000])
    soundfile.write(folder / "label2" / "short.wav", rng.normal(0, 0.1, 4000), 16_000)
    soundfile.write(folder / "label5" / "stereo.flac", rng.normal(0, 0.1, (400_000, 2)), 44_100)
    return folder


@pytest.fixture(scope="module")
def local(clips: Path) -> Path:
    run_dir = clips.parent / "local"
    done = run_command(f"dataset.root={clips}", f"output.dir={run_dir}", *SETTINGS)
    assert done.status == 0, done.err
    return run_dir


@pytest.fixture(scope="module")
def address(clips: Path) -> Iterator[str]:
    """Of a cluster that is there already."""
    with ray_cluster(num_cpus=2) as cluster:
        yield cluster.address


def assert_same(one: Path, other: Path) -> None:
    assert {p.name for p in (one / "embeddings").iterdir()} == {p.name for p in (other / "embeddings").iterdir()}
    for name in ("embeddings", "pooled", "clips.parquet"):
        first, second = (pq.read_table(each / name).replace_schema_metadata(None) for each in (one, other))
        assert first.equals(second), name
    sums = [np.load(each / "stats.npz")["sums"] for each in (one, other)]
    np.testing.assert_allclose(*sums, rtol=1e-12)
    for folder in (one, other):
        assert not list(folder.rglob(".*.tmp"))


def ray_processes() -> set[int]:
    """Of this machine's Ray."""
    found = set()
    for process in psutil.process_iter(["name", "cmdline"]):
        words = " ".join([process.info["name"] or "", *(process.info["cmdline"] or [])])
        if "raylet" in words or "gcs_server" in words or words.startswith("ray::"):
            found.add(process.pid)
    return found


def words_of(pid: int) -> str:
    """A process's command line; that of an actor says what it does."""
    try:
        return " ".join(psutil.Process(pid).cmdline())
    except psutil.Error:
        return ""


def kill_the_driver_after_a_shard(journal: Path, *arguments: str) -> None:
    """``python -m runner engine=ray`` with these arguments, until its driver is killed once it has added a line."""
    lines = journal.read_text().count("\n")
    command = start(*arguments)
    deadline = time.monotonic() + 180
    while journal.read_text().count("\n") == lines:
        assert time.monotonic() < deadline
        assert command.poll() is None, command.out + command.err
        time.sleep(0.05)
    (driver,) = [child for child in psutil.Process(command.pid).children() if "tests.double.worker" in child.cmdline()]
    driver.kill()
    command.communicate(timeout=60)
    assert command.returncode == 1


def start(*arguments: str) -> Forked:
    """``python -m runner engine=ray`` with these arguments, begun."""
    return commands.start("engine=ray", *arguments, new_session=False)


@pytest.mark.slow
def test_rows_files_counts_and_reasons_are_the_local_engines(clips: Path, local: Path, tmp_path: Path) -> None:
    before = ray_processes()
    done = run_command("engine=ray", f"dataset.root={clips}", f"output.dir={tmp_path}/run", *SETTINGS)
    assert done.status == 0, done.err
    assert_same(tmp_path / "run", local)
    result = done.result
    assert (result["metrics"]["clips_embedded"], result["metrics"]["clips_skipped"]) == (63, 2)
    assert sum(result["skipped"].values()) == 2
    assert result["warnings_by_reason"] == {"truncated": 1}
    assert result["actors"][0]["device"]["effective"] == "cpu"
    assert result["actors"][0]["parity"]["passed"]
    assert result["metrics"]["actors"] == result["metrics"]["nodes"] == 1
    assert result["metrics"]["realtime_factor"] > 1
    assert result["metrics"]["parity_canaries"] >= 1  # however few the batches
    log = (tmp_path / "run" / "runner.log").read_text()
    assert "parity of /CPU:0" in log  # as the actor says it
    assert "\x1b[" not in log
    metadata = pq.read_schema(tmp_path / "run" / "clips.parquet").metadata
    assert metadata[b"vggish_runner.precision"] == b"float32"
    deadline = time.monotonic() + 15
    while not ray_processes() <= before:  # it was stopped
        assert time.monotonic() < deadline, [psutil.Process(pid) for pid in ray_processes() - before]
        time.sleep(0.2)


@pytest.mark.slow
def test_what_the_local_engine_began_ray_finishes_though_its_first_driver_is_killed(
    clips: Path, local: Path, address: str, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(local, run_dir)
    journal = run_dir / ".runner" / "journal.jsonl"
    lines = journal.read_text().splitlines(True)
    journal.write_text("".join(lines[::3]))
    for name in ("result.json", "clips.parquet"):
        (run_dir / name).unlink()
    arguments = (f"dataset.root={clips}", f"output.dir={run_dir}", f"engine.address={address}", *SETTINGS)
    kill_the_driver_after_a_shard(journal, *arguments)
    done = run_command("engine=ray", "engine.max_size=2", "engine.num_cpus_per_actor=1", *arguments)
    assert done.status == 0, done.err
    assert_same(run_dir, local)
    assert done.result["resolved"]["threads.intra_op"] == 1  # each plans for its share of the cores
    verdicts = [actor["parity"] for actor in done.result["actors"]]  # of the two, those that had anything to do
    assert len({verdict["measured_by"] for verdict in verdicts}) == len(verdicts)  # each its own device
    assert len(journal.read_text().splitlines()) == len(lines)
