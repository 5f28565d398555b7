"""``engine=ray`` against the local engine: the same rows, files, counts and reasons; across a kill; across engines."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import soundfile

from runner.config import RayEngineConfig
from runner.errors import EngineError
from runner.ray_cluster import Layout, layout_for
from runner.ray_engine import groups
from tests.commands import DOUBLE
from tests.conftest import PROJECT, environment, run_command

SETTINGS = ("device=cpu", "weights=random", "tracking=none", "profile=off", "output.shard_clips=4")
APART = ("engine.decode=apart",)


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


def assert_same(one: Path, other: Path) -> None:
    assert {p.name for p in (one / "embeddings").iterdir()} == {p.name for p in (other / "embeddings").iterdir()}
    for name in ("embeddings", "clips.parquet"):
        first, second = (pq.read_table(each / name).replace_schema_metadata(None) for each in (one, other))
        assert first.equals(second), name
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


def until_the_first_shard(run_dir: Path, *arguments: str) -> subprocess.Popen:
    """``python -m runner engine=ray`` with these arguments, at work: its journal has a line."""
    command = start(*arguments)
    journal = run_dir / ".runner" / "journal.jsonl"
    deadline = time.monotonic() + 180
    while not (journal.exists() and journal.read_text().count("\n") >= 1):
        assert time.monotonic() < deadline
        assert command.poll() is None, command.stdout.read()
        time.sleep(0.05)
    return command


def start(*arguments: str) -> subprocess.Popen:
    """``python -m runner engine=ray`` with these arguments, begun."""
    return subprocess.Popen(
        [sys.executable, "-m", DOUBLE, "engine=ray", *arguments],
        cwd=PROJECT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
def test_rows_files_counts_and_reasons_are_the_local_engines(clips: Path, local: Path, tmp_path: Path) -> None:
    before = ray_processes()
    done = run_command("engine=ray", f"dataset.root={clips}", f"output.dir={tmp_path}/run", *SETTINGS)
    assert done.status == 0, done.err
    assert_same(tmp_path / "run", local)
    result = done.result
    assert (result["metrics"]["clips_embedded"], result["metrics"]["clips_skipped"]) == (63, 2)
    assert sum(result["skipped"].values()) == 2
    assert result["noted"] == {"truncated": 1}
    assert result["actors"][0]["device"]["effective"] == "cpu"
    assert result["actors"][0]["parity"]["passed"]
    assert result["metrics"]["actors"] == result["metrics"]["nodes"] == 1
    assert result["metrics"]["audio_x_realtime"] > 1
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
def test_decoding_apart_changes_no_row_file_count_or_reason(clips: Path, local: Path, tmp_path: Path) -> None:
    done = run_command("engine=ray", *APART, f"dataset.root={clips}", f"output.dir={tmp_path}/run", *SETTINGS)
    assert done.status == 0, done.err
    assert_same(tmp_path / "run", local)
    result = done.result
    assert (result["metrics"]["clips_embedded"], result["metrics"]["clips_skipped"]) == (63, 2)
    assert result["noted"] == {"truncated": 1}
    assert sorted(actor["role"] for actor in result["actors"]) == ["decode", "embed"]
    assert result["resolved"]["engine.decode"] == "apart"
    for stage in ("compute", "write"):
        assert 0 < result["metrics"][f"{stage}_busy_share"] <= 1, stage
    assert result["metrics"]["audio_x_realtime"] > 1
    assert sum(actor["examples"] for actor in result["actors"]) == result["metrics"]["examples"]


@pytest.mark.slow
def test_an_actor_killed_and_another_engine_end_in_the_undisturbed_result(
    clips: Path, local: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    arguments = (f"dataset.root={clips}", f"output.dir={run_dir}", *SETTINGS)
    known = ray_processes()
    command = until_the_first_shard(run_dir, *arguments)
    killed = []
    for pid in ray_processes() - known:
        process = psutil.Process(pid)
        if "MapWorker" in " ".join([process.name(), *process.cmdline()]):
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)
    assert killed
    out, _ = command.communicate(timeout=200)
    if command.returncode:  # at most the command again, here with the other engine
        again = run_command(*arguments)
        assert again.status == 0, out + again.err
    assert_same(run_dir, local)


@pytest.mark.slow
def test_actors_of_both_stages_killed_at_work_change_nothing(clips: Path, local: Path, tmp_path: Path) -> None:
    known = ray_processes()
    command = start(*APART, f"dataset.root={clips}", f"output.dir={tmp_path}/run", *SETTINGS)
    deadline = time.monotonic() + 120
    for stage in ("DecodeShards", "EmbedWindows"):
        at_work = None
        while at_work is None:
            assert time.monotonic() < deadline
            assert command.poll() is None, command.stdout.read()
            at_work = next((pid for pid in ray_processes() - known if f"{stage})).submit" in words_of(pid)), None)
        os.kill(at_work, signal.SIGKILL)
    out, _ = command.communicate(timeout=200)
    assert command.returncode == 0, out
    assert_same(tmp_path / "run", local)


@pytest.mark.slow
def test_what_the_local_engine_began_ray_finishes(clips: Path, local: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    arguments = (f"dataset.root={clips}", f"output.dir={run_dir}", *SETTINGS)
    assert run_command(*arguments).status == 0
    journal = run_dir / ".runner" / "journal.jsonl"
    lines = journal.read_text().splitlines(True)
    journal.write_text("".join(lines[::2]))
    for name in ("result.json", "clips.parquet"):
        (run_dir / name).unlink()
    done = run_command("engine=ray", "engine.concurrency=2", "engine.num_cpus_per_actor=1", *arguments)
    assert done.status == 0, done.err
    assert_same(run_dir, local)
    assert done.result["resolved"]["threads.intra_op"] == 1  # each plans for its share of the cores
    verdicts = [actor["parity"] for actor in done.result["actors"]]  # of the two, those that had anything to do
    assert len({verdict["measured_by"] for verdict in verdicts}) == len(verdicts)  # each its own device
    assert len(journal.read_text().splitlines()) == len(lines)


@pytest.mark.slow
def test_an_actors_failure_is_the_runs_in_the_same_words(clips: Path, tmp_path: Path) -> None:
    done = run_command(
        *("engine=ray", f"dataset.root={clips}", f"output.dir={tmp_path}/run", *SETTINGS),
        *("parity.tolerances.float32.rel_err=1e-12", "dataset.max_skipped=5"),
    )
    assert done.status == 1
    failure = done.result["failure"]
    assert failure["kind"] == "parity", failure
    assert "the actor can't work" in (tmp_path / "run" / "runner.log").read_text()
    assert "gives other embeddings than the reference" in done.out


def node(cpus: float, gpus: float = 0.0, *, alive: bool = True) -> dict:
    return {"Alive": alive, "Resources": {"CPU": cpus, **({"GPU": gpus} if gpus else {})}}


def test_an_actor_for_every_gpu_or_for_every_machine() -> None:
    auto = RayEngineConfig()
    assert layout_for(auto, "cpu", [node(8), node(8), node(4, alive=False)]) == Layout(2, 8, 0)
    assert layout_for(auto, "auto", [node(32, 4)]) == Layout(4, 8, 1)
    assert layout_for(auto, "cpu", [node(0), node(16), node(16)]) == Layout(2, 16, 0)
    assert layout_for(auto, "gpu", [node(0), node(16, 2)]) == Layout(2, 8, 1)
    assert layout_for(auto, "cpu", [node(32, 4)]) == Layout(1, 32, 0)
    assert layout_for(RayEngineConfig(concurrency=3), "cpu", [node(8)]).actors == 3
    assert layout_for(RayEngineConfig(num_cpus_per_actor=2), "cpu", [node(8), node(4)]).actors == 6
    assert layout_for(RayEngineConfig(num_cpus_per_actor=0), "gpu", [node(8, 2)]) == Layout(2, 0, 1)
    with pytest.raises(EngineError, match="no machine of the cluster"):
        layout_for(RayEngineConfig(num_gpus_per_actor=1), "gpu", [node(8)])


def test_decoding_goes_to_cores_that_would_wait_for_the_gpus() -> None:
    auto = RayEngineConfig()
    assert layout_for(auto, "gpu", [node(16, 1), node(32)]) == Layout(1, 1, 1, 11, 4)
    assert layout_for(auto, "gpu", [node(8, 8), node(64, 1)]) == Layout(9, 1, 1, 15, 4)
    assert layout_for(auto, "gpu", [node(16, 1), node(16, 1)]).decoders == 0
    assert layout_for(auto, "cpu", [node(16, 1), node(32)]).decoders == 0
    assert layout_for(auto, "gpu", [node(16, 1), node(32)], decoding_is_light=True).decoders == 0
    assert layout_for(RayEngineConfig(decode="inside"), "gpu", [node(16, 1), node(32)]) == Layout(1, 16, 1)
    assert layout_for(RayEngineConfig(decode="apart"), "cpu", [node(2)]) == Layout(1, 1, 0, 1, 1)
    two = RayEngineConfig(decode_concurrency=2)
    assert layout_for(two, "gpu", [node(16, 1), node(32)]) == Layout(1, 1, 1, 2, 16)
    with pytest.raises(EngineError, match="too few to decode apart"):
        layout_for(RayEngineConfig(decode="apart"), "cpu", [node(1)])


@pytest.mark.parametrize(("shards", "actors"), [(1, 4), (256, 1), (1221, 8), (7, 2)])
def test_the_groups_are_all_shards_and_the_last_ones_small(shards: int, actors: int) -> None:
    found = groups(range(shards), actors)
    assert [number for group in found for number in group] == list(range(shards))
    assert len(found[-1]) <= -(-shards // (100 * actors if actors > 1 else 8))
    assert len(found[0]) >= len(found[-1])


@pytest.mark.slow
def test_a_cluster_that_loses_a_node_ends_in_the_undisturbed_result(
    clips: Path, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    from ray.cluster_utils import Cluster

    memory = {"num_cpus": 1, "object_store_memory": 100 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={**memory, "include_dashboard": False})
    try:
        second = cluster.add_node(**memory)
        run_dir = tmp_path / "run"
        arguments = (f"dataset.root={clips}", f"output.dir={run_dir}", *SETTINGS)
        command = until_the_first_shard(run_dir, f"engine.address={cluster.address}", *arguments)
        cluster.remove_node(second, allow_graceful=False)
        out, _ = command.communicate(timeout=240)
        if command.returncode:
            again = run_command(*arguments)
            assert again.status == 0, out + again.err
    finally:
        cluster.shutdown()
    assert_same(run_dir, local)


@pytest.mark.slow
def test_a_driver_killed_costs_the_command_again(clips: Path, local: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    arguments = (f"dataset.root={clips}", f"output.dir={run_dir}", *SETTINGS)
    command = until_the_first_shard(run_dir, *arguments)
    (driver,) = [child for child in psutil.Process(command.pid).children() if "tests.double.worker" in child.cmdline()]
    driver.kill()
    command.communicate(timeout=60)
    assert command.returncode == 1
    again = run_command(*arguments)
    assert again.status == 0, again.err
    assert_same(run_dir, local)
