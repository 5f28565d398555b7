"""A job that Slurm preempts, as far as Submitit's local launcher shows it: it is queued again and goes on."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import soundfile

from tests.commands import start, wait_until
from tests.double.session import BATCH_S

CLIPS, A_SHARD = 16, 2


def preempted(folder: Path, number: int) -> tuple[int, str, str, list[str]]:
    """A job of a sweep that gets this signal at work: the command's status and words, the job's, and its journal."""
    rng = np.random.default_rng(5)
    (folder / "data").mkdir()
    for each in range(CLIPS):
        soundfile.write(folder / "data" / f"{each:02d}.wav", rng.normal(0, 0.1, 160_000), 16_000)
    command = start(
        *("-m", "hydra/launcher=submitit_local", "memory=conservative"),
        *("memory.batch_size=4", "memory.decode_workers=1"),  # few clips are under way at a time
        *(f"dataset.root={folder}/data", f"output.dir={folder}/sweep", f"output.clips_per_shard={A_SHARD}"),
        *("device=cpu", "weights=random", "tracking=none", "profile=off", f"paths.outputs={folder}"),
        log=folder / "said",
        **{BATCH_S: "0.1"},
    )
    journal = folder / "sweep" / "0" / ".runner" / "journal.jsonl"

    def at_work() -> bool:
        assert command.poll() is None, command.out
        return journal.exists() and journal.read_text().count("\n") >= 1

    wait_until(at_work, lambda: command.out)
    (job,) = [
        each
        for each in psutil.Process(command.pid).children(recursive=True)
        if "submitit.core._submit" in " ".join(each.cmdline())
    ]
    for process in (job, *job.children(recursive=True)):  # Slurm sends it to all of a job's processes
        os.kill(process.pid, number)
    out, _ = command.communicate(timeout=120)
    logs = "".join(path.read_text() for path in (folder / "sweep" / ".submitit").rglob("*_log.*"))
    assert "stopping after the current shards" in logs, out + logs
    return command.returncode, out, logs, journal.read_text().splitlines()


def test_a_preempted_job_ends_its_shards_is_queued_again_and_goes_on(tmp_path: Path) -> None:
    status, out, logs, lines = preempted(tmp_path, signal.SIGUSR2)
    assert status == 0, out
    assert logs.count("Requeued job") == 1, logs
    assert "job is preempted" in logs
    clips = pq.read_table(tmp_path / "sweep" / "0" / "clips.parquet")
    assert clips["status"].to_pylist() == ["embedded"] * CLIPS
    assert len(lines) == CLIPS // A_SHARD  # none was done twice


def test_a_job_that_is_told_to_end_ends_its_shards_and_its_command_says_what_to_do(tmp_path: Path) -> None:
    status, out, _, lines = preempted(tmp_path, signal.SIGTERM)
    assert status == 1
    assert "Traceback" not in out
    assert "stopped or killed before it had a result" in " ".join(out.split())
    assert len(lines) < CLIPS // A_SHARD
    clips = pq.read_table(tmp_path / "sweep" / "0" / "clips.parquet")
    assert clips["status"].to_pylist() == ["embedded"] * (A_SHARD * len(lines))
