"""``device.index=all`` on a machine of two or three GPUs: a process each, whose run is that of one."""

from __future__ import annotations

import functools
import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest

from tests import commands
from tests.commands import wait_until
from tests.double.framework import GPUS
from tests.double.session import BATCH_S, FAILING, FAULT
from tests.fork_server import Forked
from tests.stress.chaos import SETTINGS, differences, make_clips
from tests.whole_run import tree

CLIPS = 160
SLOW = {BATCH_S: "0.03"}


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Short clips in three encodings, of which three are broken."""
    return make_clips(tmp_path_factory.mktemp("gpus") / "data", CLIPS)


def start(clips: Path, out: Path, *arguments: str, gpus: int = 2, **env: str) -> Forked:
    own = [setting for setting in SETTINGS if not setting.startswith("device=")]
    given = (f"dataset.root={clips}", f"output.dir={out}", *own, "memory.batch_size=8", "profile=off", "tracking=none")
    log = out.with_suffix(".log")
    return commands.start(*given, "device.index=all", *arguments, log=log, **{GPUS: str(gpus)}, **env)


@pytest.fixture(scope="module")
def one_gpu(clips: Path) -> Path:
    """The run of the clips on one GPU."""
    out = clips.parent / "one"
    command = start(clips, out, gpus=1)
    assert command.wait() == 0, command.out
    return out


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path) -> Iterator[None]:
    """Each test ends with no process that writes to the log of its run."""
    yield
    wait_until(lambda: not any(map(functools.partial(logs_below, tmp_path), psutil.pids())), "a process is left", 20)


def logs_below(folder: Path, pid: int) -> bool:
    """Whether a process's standard error goes to a file below the folder, as that of all of a worker's does."""
    try:
        return Path(f"/proc/{pid}/fd/2").resolve().is_relative_to(folder)
    except OSError:
        return False


def result_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "result.json").read_text())
    return found


def embedding_processes(command: Forked) -> list[psutil.Process]:
    """The processes of the GPUs: those children of the worker that have children."""
    children = psutil.Process(command.pid).children()
    workers = [child for child in children if "tests.double.worker" in child.cmdline()]
    return [child for worker in workers for child in worker.children() if child.children()]


def wait_for_shards(command: Forked, run: Path, count: int = 1) -> None:
    journal = run / ".runner/journal.jsonl"

    def committed() -> bool:
        assert command.poll() is None, command.out
        return journal.exists() and len(journal.read_text().splitlines()) >= count

    wait_until(committed, "no shards")


def test_files_are_the_same_bytes_as_those_of_one_gpu(clips: Path, one_gpu: Path, tmp_path: Path) -> None:
    command = start(clips, tmp_path / "run", gpus=3, **SLOW)
    assert command.wait() == 0, command.out
    assert tree(tmp_path / "run") == tree(one_gpu)
    one, three = result_of(one_gpu), result_of(tmp_path / "run")
    counted = ("clips_embedded", "clips_skipped", "clips_padded", "examples", "attempt_clips")
    assert [three["metrics"][name] for name in counted] == [one["metrics"][name] for name in counted]
    assert three["skipped"] == one["skipped"]
    assert three["device"]["count"] == 3
    assert three["resolved"]["memory.decode_workers"] == 3
    assert {f"replica{number}_input_wait_share" for number in range(3)} < three["metrics"].keys()
    assert three["metrics"]["parity_canaries"] >= 3
    batches = pq.read_table(tmp_path / "run/batches.parquet")
    assert set(batches["replica"].to_pylist()) == {0, 1, 2}
    assert sum(batches["examples"].to_pylist()) == three["metrics"]["examples"]


def test_shards_of_a_process_that_is_killed_go_to_the_others(clips: Path, one_gpu: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = start(clips, run, **SLOW)
    wait_for_shards(command, run)
    embedding_processes(command)[1].kill()
    assert command.wait() == 0, command.out
    assert tree(run) == tree(one_gpu)
    result = result_of(run)
    assert re.search("GPU [01] is no longer used: the system killed its process", "\n".join(result["warnings"]))
    assert result["metrics"]["attempt_clips"] == CLIPS


def test_a_run_whose_processes_are_all_killed_says_why_and_resumes(clips: Path, one_gpu: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = start(clips, run, **SLOW)
    wait_for_shards(command, run)
    for process in embedding_processes(command):
        process.kill()
    assert command.wait() == 1
    failure = result_of(run)["failure"]
    assert failure["kind"] == "out_of_memory"
    assert "rerun the same command" in failure["message"]
    command = start(clips, run)
    assert command.wait() == 0, command.out
    assert not differences(run, one_gpu)
    assert result_of(run)["metrics"]["attempt_clips"] < CLIPS


def test_a_gpu_that_fails_leaves_its_clips_to_the_others(clips: Path, one_gpu: Path, tmp_path: Path) -> None:
    command = start(clips, tmp_path / "run", **{FAILING: "gpu0", BATCH_S: "0.01"})
    assert command.wait() == 0, command.out
    assert tree(tmp_path / "run") == tree(one_gpu)
    warnings = result_of(tmp_path / "run")["warnings"]
    assert "GPU 0 is no longer used: RuntimeError: the device is gone" in warnings


def test_a_gpu_that_lies_fails_the_run_before_its_first_clip(clips: Path, tmp_path: Path) -> None:
    command = start(clips, tmp_path / "run", **{FAULT: "embeddings rounded to float16"})
    assert command.wait() == 1
    result = result_of(tmp_path / "run")
    assert (result["failure"]["kind"], result["parity"]["passed"]) == ("parity", False)
    assert not (tmp_path / "run/.runner/journal.jsonl").exists()


def test_a_stop_ends_with_the_shards_that_all_processes_have_begun(clips: Path, one_gpu: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = start(clips, run, **SLOW)
    wait_for_shards(command, run)
    os.killpg(command.pid, signal.SIGTERM)
    assert command.wait() == 143, command.out
    result = result_of(run)
    assert (result["status"], result.get("failure")) == ("interrupted", None)
    done = pq.read_table(run / "clips.parquet").num_rows
    assert 0 < done < CLIPS
    assert done % 16 == 0
    command = start(clips, run, gpus=1)
    assert command.wait() == 0, command.out
    assert not differences(run, one_gpu)


def test_a_worker_that_is_killed_leaves_no_process_and_resumes(clips: Path, one_gpu: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = start(clips, run, **SLOW)
    wait_for_shards(command, run)
    processes = embedding_processes(command)
    processes[0].parent().kill()
    assert command.wait() == 1
    assert psutil.wait_procs(processes, timeout=10)[1] == []
    command = start(clips, run)
    assert command.wait() == 0, command.out
    assert not differences(run, one_gpu)


def test_skipped_clips_of_all_processes_are_counted_together(clips: Path, tmp_path: Path) -> None:
    command = start(clips, tmp_path / "run", "dataset.max_skipped=2", **SLOW)
    assert command.wait() == 1
    failure = result_of(tmp_path / "run")["failure"]
    assert failure["kind"] == "skipped"
    assert "3 clips can't be embedded, and dataset.max_skipped=2" in failure["message"]


def test_passes_and_device_benchmarks_are_of_all_processes(clips: Path, tmp_path: Path) -> None:
    more = ("profile=quick", "profile.plots=false", "profile.repeat_s=0.2", "profile.batch_size_curve=true")
    command = start(clips / "0", tmp_path / "run", *more, "profile.device_benchmark_s.cpu=0.1")
    assert command.wait() == 0, command.out
    result = result_of(tmp_path / "run")
    metrics = result["metrics"]
    assert metrics["repeats"] == len(result["repeats"]["passes"]) >= 5
    assert metrics["matmul_peak_tflops"] == 2.0  # the double's is 1 a process
    assert metrics["model_only_examples_per_s"] > 0
    assert result["batch_size_curve"]["batch_size"] == 8
