"""A job that Slurm preempts, as far as Submitit's local launcher shows it: it is queued again and goes on."""

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

from tests.conftest import PROJECT, environment

CLIPS, A_SHARD = 60, 2


@pytest.mark.slow
def test_a_preempted_job_ends_its_shards_is_queued_again_and_goes_on(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    (tmp_path / "data").mkdir()
    for number in range(CLIPS):
        soundfile.write(tmp_path / "data" / f"{number:03d}.wav", rng.normal(0, 0.1, 160_000), 16_000)
    command = subprocess.Popen(
        [
            *(sys.executable, "-m", "runner", "-m", "hydra/launcher=submitit_local", "memory=conservative"),
            *("memory.batch_size=4", "memory.decode_workers=1"),  # few clips are under way at a time
            *(f"dataset.root={tmp_path}/data", f"output.dir={tmp_path}/sweep", f"output.shard_clips={A_SHARD}"),
            *("device=cpu", "weights=random", "tracking=none", "profile=off", f"paths.outputs={tmp_path}"),
        ],
        cwd=PROJECT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    journal, deadline = tmp_path / "sweep" / "0" / ".runner" / "journal.jsonl", time.monotonic() + 120
    while not (journal.exists() and journal.read_text().count("\n") >= 1):
        assert time.monotonic() < deadline
        assert command.poll() is None, command.stdout.read()
        time.sleep(0.05)
    (job,) = [
        each
        for each in psutil.Process(command.pid).children(recursive=True)
        if "submitit.core._submit" in " ".join(each.cmdline())
    ]
    for process in (job, *job.children(recursive=True)):  # Slurm sends it to all of a job's processes
        os.kill(process.pid, signal.SIGUSR2)
    out, _ = command.communicate(timeout=240)
    assert command.returncode == 0, out
    logs = "".join(path.read_text() for path in (tmp_path / "sweep" / ".submitit").rglob("*_log.*"))
    assert logs.count("Requeued job") == 1, logs
    assert "stopping: the shards under way are finished first" in logs
    assert "job is preempted" in logs
    clips = pq.read_table(tmp_path / "sweep" / "0" / "clips.parquet")
    assert clips["status"].to_pylist() == ["embedded"] * CLIPS
    assert len(journal.read_text().splitlines()) == CLIPS // A_SHARD  # none was done twice
