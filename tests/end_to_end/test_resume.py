"""Runs that are killed, refused, starved or robbed: what the person sees, and what stays valid."""

from __future__ import annotations

import collections
import functools
import json
import random
import resource
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from tests import commands, whole_run
from tests.commands import REAL, Done, run, run_module, wait_until
from tests.double.session import BATCH_S
from tests.end_to_end.test_runs import client_of, runs_of
from tests.fork_server import Forked
from tests.stress.chaos import SETTINGS, differences, disturb, left_over, make_clips, victims
from tests.tracking_server import TrackingServer


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """50 short clips in three encodings, of which one is broken."""
    return make_clips(tmp_path_factory.mktemp("chaos") / "data", 50)


def start(clips: Path, out: Path, *arguments: str, **env: str) -> Forked:
    """The command on the clips, whose run is in ``out``, in the background; its output goes to a file beside it."""
    own = (f"dataset.root={clips}", f"output.dir={out}", *SETTINGS, "memory.batch_size=8", "profile=off", *arguments)
    return commands.start(*own, log=out.with_suffix(".log"), **env)


@pytest.fixture(scope="module")
def undisturbed(clips: Path) -> Path:
    """The run of the clips that nothing disturbed."""
    out = clips.parent / "undisturbed"
    command = start(clips, out, "tracking=none")
    assert command.wait() == 0, command.out
    return out


def test_a_run_that_is_killed_and_resumed_is_the_undisturbed_one(clips: Path, undisturbed: Path) -> None:
    """``make chaos`` does this hundreds of times."""
    out = clips.parent / "disturbed"
    killed: collections.Counter[str] = collections.Counter()
    command = functools.partial(start, clips, out, "tracking=none", **{BATCH_S: "0.1"})
    disturb(command, out, random.Random(3), 4, killed, longest_s=1.5)
    assert killed.total() >= 2  # of four; on a fast machine the run is over before the last
    assert differences(out, undisturbed) == []
    assert left_over(out) == []


def wait_until_shards(command: Forked, out: Path, shards: int = 2) -> None:
    """Return once so many shards are on disk."""
    wait_until(lambda: len(list(out.glob("embeddings/part-*.parquet"))) >= shards, lambda: command.out)


@contextmanager
def held_in_the_middle(command: Forked) -> Iterator[None]:
    """Have a command's worker do nothing for as long as the context lasts."""
    (worker,) = victims(command, "worker")
    worker.suspend()
    try:
        yield
    finally:
        worker.resume()


def test_a_killed_command_is_continued_in_its_mlflow_run(
    clips: Path, undisturbed: Path, tmp_path: Path, outputs: Path
) -> None:
    out, own = tmp_path / "run", f"paths.outputs={outputs}"
    command = start(clips, out, own, **{BATCH_S: "0.1"})
    wait_until_shards(command, out)
    for victim in victims(command, "worker"):
        victim.kill()
    command.kill()
    command.wait()
    (logged,) = runs_of(outputs)
    assert logged.info.status == "RUNNING"  # nobody was left to say otherwise
    second = start(clips, out, own, "memory=balanced", "tracking.run_name=second")
    assert second.wait() == 0, second.out
    (logged,) = runs_of(outputs)
    assert (logged.info.status, logged.info.run_name) == ("FINISHED", "second")
    assert logged.data.tags["resumed.memory.name"] == "balanced"
    assert logged.data.tags["attempt"] == "2"
    assert logged.data.metrics["clips_embedded"] == 49
    assert logged.data.metrics["attempt_clips"] < 50
    assert differences(out, undisturbed) == []
    third = run(f"dataset.root={clips}", f"output.dir={out}", own, "weights=random", "output.clips_per_shard=16")
    assert third.status == 0, third.err
    assert "is already complete" in third.err
    assert len(runs_of(outputs)) == 1


def test_other_settings_are_refused_with_the_keys_that_differ(clips: Path, undisturbed: Path) -> None:
    before = (undisturbed / ".hydra/overrides.yaml").read_text()
    done = run(
        f"dataset.root={clips}", f"output.dir={undisturbed}", "weights=random", "weights.seed=5", "precision=bfloat16"
    )
    assert done.status == 1
    for words in (
        "output.clips_per_shard (16 there, None now)",
        "precision.name (float32 there",
        "weights.seed (0 there",
    ):
        assert words in done.err
    assert (undisturbed / ".hydra/overrides.yaml").read_text() == before


def test_two_commands_at_once_one_is_refused(clips: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    first = start(clips, out, "tracking=none", **{BATCH_S: "0.1"})
    wait_until_shards(first, out, 1)
    with held_in_the_middle(first):
        second = run(
            f"dataset.root={clips}", f"output.dir={out}", "weights=random", "device=cpu", "output.clips_per_shard=16",
            "tracking=none",
        )  # fmt: skip
    assert second.status == 1
    assert f"is locked by process {first.pid} on " in second.err
    first.send_signal(signal.SIGINT)
    assert first.wait(60) in (0, 130)


def test_a_full_disk_is_one_message_and_room_lets_it_go_on(clips: Path, undisturbed: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(small)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no right to mount a small file system")
    try:
        out = small / "run"
        arguments = (f"dataset.root={clips}", f"output.dir={out}", "weights=random", "device=cpu", "tracking=none")
        arguments += ("output.clips_per_shard=16", "memory=conservative", "profile=off")
        done = run(*arguments)
        assert done.status == 1
        assert "Traceback" not in done.err + done.out
        assert "No space left" in done.out + done.err
        assert "rerun the same command" in done.out + done.err
        pq.read_table(out / "embeddings")
        subprocess.run(["mount", "-o", "remount,size=50m", str(small)], check=True)
        again = run(*arguments)
        assert again.status == 0, again.err
        assert differences(out, undisturbed) == []
    finally:
        subprocess.run(["umount", str(small)], check=False)


def test_a_folder_that_cannot_be_written_is_one_message(clips: Path) -> None:
    done = run(f"dataset.root={clips}", "weights=random", "output.dir=/proc/nothing/here", "tracking=none")
    assert done.status == 1
    assert done.err.count("error:") == 1
    assert "/proc/nothing" in done.err
    assert "Traceback" not in done.err


def test_a_data_set_that_vanishes_loses_no_clip(clips: Path, undisturbed: Path, tmp_path: Path) -> None:
    data, away, out = tmp_path / "data", tmp_path / "away", tmp_path / "run"
    shutil.copytree(clips, data)
    first = start(data, out, "tracking=none", "output.clips_per_shard=2", **{BATCH_S: "0.1"})
    wait_until_shards(first, out)
    data.rename(away)
    data.mkdir()  # a mount point whose drive is gone
    assert first.wait(60) == 1
    log = first.out
    assert "is gone, or empty" in log
    assert "rerun the same command" in log
    data.rmdir()
    away.rename(data)
    assert start(data, out, "tracking=none", "output.clips_per_shard=2").wait() == 0
    assert differences(out, undisturbed) == []


@pytest.mark.parametrize(
    ("limit", "status"), [("dataset.max_skipped=1", "failed"), ("dataset.max_skipped=0.5", "finished")]
)
def test_a_run_that_skips_too_much_is_stopped(tmp_path: Path, limit: str, status: str) -> None:
    result = run_in_process(tmp_path, limit)
    assert result["status"] == status
    if status == "failed":
        assert result["failure"]["kind"] == "skipped"
        assert "dataset.max_skipped=1" in result["failure"]["message"]


def test_on_error_fail_stops_at_the_first_clip(tmp_path: Path) -> None:
    result = run_in_process(tmp_path, "dataset.on_error=fail")
    assert result["status"] == "failed"
    assert "dataset.on_error=fail" in result["failure"]["message"]
    assert "unsupported_format" in result["failure"]["message"]


def run_in_process(folder: Path, *arguments: str) -> dict[str, Any]:
    """Return result.json of a run of six clips, two of which can't be embedded."""
    data = whole_run.make_data(folder / "data")
    (data / "b" / "5.wav").write_bytes(b"RIFF no audio at all")
    run = folder / "outputs" / "run"
    result = whole_run.session(whole_run.make_config(data, run, *arguments), run)
    assert not isinstance(result, str), result
    return result


def test_memory_that_is_refused_to_the_worker_is_one_message(few_clips: Path, tmp_path: Path) -> None:
    """With TensorFlow, which ends in its own ways where it gets no memory."""
    arguments = (f"dataset.root={few_clips}", "weights=random", "device=cpu", "tracking=none", "profile=off")
    arguments += (f"output.dir={tmp_path}/run", f"paths.outputs={tmp_path}")
    command = commands.start(*arguments, command=REAL)
    resource.prlimit(command.pid, resource.RLIMIT_AS, (2_500_000_000,) * 2)  # before it starts its worker
    assert command.wait(300) == 1
    assert "Traceback" not in command.out + command.err
    failure = json.loads((tmp_path / "run/result.json").read_text())["failure"]
    assert failure["message"] in command.out
    again = run(*arguments)
    assert again.status == 0, again.err
    assert again.result["metrics"]["clips_embedded"] == 6


@pytest.fixture
def server(outputs: Path) -> Iterator[TrackingServer]:
    """An MLflow server that can be killed and started again."""
    with TrackingServer(outputs) as server:
        yield server


def logged_run(server: TrackingServer) -> Run:
    """The only run that the server has."""
    client = MlflowClient(server.uri)
    (found,) = client.search_runs([client.get_experiment_by_name("vggish-runner").experiment_id])
    return found


def test_a_tracking_server_killed_and_started_again_has_the_run(
    clips: Path, tmp_path: Path, server: TrackingServer
) -> None:
    out = tmp_path / "run"
    command = start(clips, out, "tracking=server", f"tracking.uri={server.uri}", **{BATCH_S: "0.1"})
    wait_until_shards(command, out, 1)
    with held_in_the_middle(command):
        server.kill()
        server.start()
    assert command.wait(60) == 0, command.out
    assert json.loads((out / "tracking.json").read_text())["state"] == "logged"
    logged = logged_run(server)
    assert (logged.info.status, logged.data.metrics["clips_embedded"]) == ("FINISHED", 49)


def test_a_run_that_ended_without_its_tracking_server_is_logged_later(
    clips: Path, tmp_path: Path, server: TrackingServer
) -> None:
    out = tmp_path / "run"
    command = start(clips, out, "tracking=server", f"tracking.uri={server.uri}", **{BATCH_S: "0.1"})
    wait_until_shards(command, out, 1)
    server.kill()
    assert command.wait(60) == 0, command.out
    assert json.loads((out / "tracking.json").read_text())["state"] == "open"
    assert f"python -m runner track {out}" in command.out
    server.start()
    later = run_module("runner", "track", str(out))
    assert later.status == 0, later.err
    logged = logged_run(server)
    assert (logged.info.status, logged.data.metrics["clips_embedded"]) == ("FINISHED", 49)


def test_a_sweep_that_was_stopped_is_resumed(tmp_path: Path, outputs: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for number in range(4):
        soundfile.write(data / f"{number}.wav", [0.1] * 32_000, 16_000)
    arguments = ["-m", "memory=conservative,balanced", f"dataset.root={data}", "weights=random", "device=cpu"]
    arguments += [f"paths.outputs={outputs}", f"output.dir={tmp_path}/sweep", "profile=off"]
    first = run(*arguments)
    assert first.status == 0, first.err
    shutil.rmtree(tmp_path / "sweep/1/embeddings")
    second = run(*arguments)
    assert second.status == 0, second.err
    assert f"{tmp_path}/sweep/0 is already complete" in second.err.replace("\n", " ")
    assert pq.read_table(tmp_path / "sweep/1/embeddings").num_rows == 8
    client = client_of(outputs)
    runs = client.search_runs([client.get_experiment_by_name("vggish-runner").experiment_id])
    assert [run.info.status for run in runs] == ["FINISHED"] * 3
    other = run(*arguments, "weights.seed=3")
    assert other.status == 1
    assert "already holds another sweep" in other.err


def test_credentials_are_in_no_file_param_tag_or_message(few_clips: Path, tmp_path: Path, outputs: Path) -> None:
    secret = "planted-s3cret"
    uri = f"http://user:{secret}@127.0.0.1:9/path?token={secret}"
    done = run(
        f"dataset.root={few_clips}", "weights=random", "device=cpu", "tracking=server",
        f"output.dir={tmp_path}/run", f"paths.outputs={tmp_path}",
        MLFLOW_TRACKING_URI=uri, MLFLOW_TRACKING_TOKEN=secret, AWS_SECRET_ACCESS_KEY=secret,
    )  # fmt: skip
    assert done.status == 0, done.err
    assert secret not in done.out + done.err
    local = f"sqlite:///{outputs}/mlflow.db"
    later = run_module("runner", "track", f"{tmp_path}/run", "--uri", local)
    assert later.status == 0, later.err
    sweep = run(
        "-m", f"dataset.root={few_clips}", "weights=random", "device=cpu", "hydra/launcher=submitit_local",
        "tracking=server", f"output.dir={tmp_path}/sweep", f"paths.outputs={tmp_path}", "memory=greedy", "profile=off",
        MLFLOW_TRACKING_URI=uri,
    )  # fmt: skip
    assert sweep.status == 0, sweep.err
    assert secret not in sweep.out + sweep.err
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 20
    assert [path for path in written if secret.encode() in path.read_bytes()] == []


def test_corrected_labels_reach_the_files_and_rows_taken_out_are_refused(tmp_path: Path) -> None:
    names = [f"{number}\x1b[31m.wav" for number in range(3)]
    for name in names:
        soundfile.write(tmp_path / name, [0.1] * 16_000, 16_000)
    manifest = tmp_path / "clips.csv"

    def run_with(labels: dict[str, str]) -> Done:
        manifest.write_text("path,label\n" + "".join(f"{name},{label}\n" for name, label in labels.items()))
        return run(
            "dataset=manifest", f"dataset.path={manifest}", "weights=random", "device=cpu", "tracking=none",
            "profile=off", f"output.dir={tmp_path}/run", "output.clips_per_shard=1", "output.formats=[npz]",
        )  # fmt: skip

    first = run_with(dict.fromkeys(names, "dog"))
    assert first.status == 0, first.err
    second = run_with({**dict.fromkeys(names, "dog"), names[1]: "cat"})
    assert second.status == 0, second.err
    assert "1 labels changed since the run started" in " ".join(second.err.split())
    assert second.result["metrics"]["attempt_clips"] == 1
    clips = pq.read_table(tmp_path / "run/clips.parquet")
    assert dict(zip(clips["clip"].to_pylist(), clips["label"].to_pylist(), strict=True)) == {
        names[0]: "dog", names[1]: "cat", names[2]: "dog"
    }  # fmt: skip
    assert str(np.load(tmp_path / "run/npz" / f"{names[1]}.npz")["label"]) == "cat"
    third = run_with({names[0]: "dog", names[2]: "dog"})
    assert third.status == 1
    assert "no longer has 1 rows that this run started with (the first: 1\\x1b[31m.wav)" in third.err
    assert "\x1b[31m" not in third.err + (tmp_path / "run/runner.log").read_text(encoding="utf-8")
