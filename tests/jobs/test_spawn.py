"""Workers that are started ahead of their run."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.cli.run import main
from runner.contract.spec import RunSpec
from runner.jobs import spawn
from runner.jobs.spawn import STANDBY, start_worker
from tests.commands import PROJECT, environment, run, wait_until
from tests.configs import make_config
from tests.results import make_spec


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A worker that prints its spec's path, from its arguments or standard input."""
    path = tmp_path / "worker.py"
    path.write_text("import sys\nprint(sys.argv[1] if len(sys.argv) > 1 else 'ahead ' + sys.stdin.readline())")
    monkeypatch.setattr(spawn, "WORKER", (sys.executable, str(path)))
    yield path
    STANDBY.close()


def spec(folder: Path, *overrides: str) -> RunSpec:
    return make_spec(folder / "run", make_config(["weights=random", *overrides]))


def first_line(process: subprocess.Popen[str]) -> str:
    return process.communicate(timeout=60)[0].splitlines()[0]


def test_a_worker_that_waits_gets_one_run(script: Path, tmp_path: Path) -> None:
    STANDBY.start()
    STANDBY.start()  # one waits at most
    path = tmp_path / "run" / ".runner" / "spec.json"
    assert first_line(start_worker(spec(tmp_path))) == f"ahead {json.dumps(str(path))}"
    assert first_line(start_worker(spec(tmp_path))) == str(path)


@pytest.mark.skipif(sys.platform != "linux", reason="file names of any bytes")
@pytest.mark.parametrize("name", [b"two\nlines", b"\xff"])
def test_a_waiting_worker_gets_the_exact_path_of_its_run(script: Path, tmp_path: Path, name: bytes) -> None:
    STANDBY.start()
    folder = tmp_path / os.fsdecode(name)
    told = first_line(start_worker(spec(folder))).removeprefix("ahead ")
    assert json.loads(told) == str(folder / "run" / ".runner" / "spec.json")


def test_a_worker_that_died_while_it_waited_is_replaced(script: Path, tmp_path: Path) -> None:
    working = script.read_text()
    script.write_text("raise SystemExit")
    STANDBY.start()
    died = STANDBY._process
    assert died is not None
    wait_until(lambda: died.poll() is not None, "it did not end")
    script.write_text(working)
    assert first_line(start_worker(spec(tmp_path))) == str(tmp_path / "run" / ".runner" / "spec.json")


def test_a_driver_of_ray_is_started_for_its_run(script: Path, tmp_path: Path) -> None:
    STANDBY.start()
    assert not first_line(start_worker(spec(tmp_path, "engine=ray"))).startswith("ahead")


@pytest.fixture
def started(script: Path, monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[str]]:
    """Workers that are started."""
    processes: list[subprocess.Popen[str]] = []
    start = spawn._start
    monkeypatch.setattr(spawn, "_start", lambda *arguments: processes.append(start(*arguments)) or processes[-1])
    return processes


@pytest.mark.parametrize("wrong", ["device=abacus", "frontend.hop_s=0"])
def test_a_worker_that_was_started_for_a_wrong_configuration_is_ended(
    started: list[subprocess.Popen[str]], wrong: str
) -> None:
    with contextlib.suppress(SystemExit):
        assert main([wrong]) == 1
    assert [process.returncode for process in started] == [-signal.SIGKILL]


def test_a_command_that_runs_nothing_starts_no_worker(started: list[subprocess.Popen[str]]) -> None:
    assert main(["--cfg", "job"]) == 0
    assert started == []


@pytest.mark.slow
def test_all_jobs_of_a_sweep_have_workers_that_were_started_ahead(few_clips: Path, tmp_path: Path) -> None:
    done = run(
        *("-m", "profile.round=1,2,3", f"dataset.root={few_clips}", "weights=random", "device=cpu"),
        *(f"paths.outputs={tmp_path}", f"paths.models={tmp_path}", "tracking=none", "profile=off"),
        *("hydra.sweep.dir=" + str(tmp_path / "sweep"),),
    )
    assert done.status == 0, done.err
    logs = [(tmp_path / "sweep" / str(job) / "runner.log").read_text() for job in range(3)]
    assert ["started ahead" in log for log in logs] == [True, True, True]


@pytest.mark.slow
def test_a_run_with_an_environment_of_its_own_has_a_worker_that_was_started_for_it(
    few_clips: Path, tmp_path: Path
) -> None:
    done = run(
        *("+hydra.job.env_set.VARIABLE=1", f"dataset.root={few_clips}", "weights=random", "device=cpu"),
        *(f"output.dir={tmp_path}/run", f"paths.outputs={tmp_path}", f"paths.models={tmp_path}"),
        *("tracking=none", "profile=off"),
    )
    assert done.status == 0, done.err
    assert "started ahead" not in (tmp_path / "run" / "runner.log").read_text()


@pytest.mark.slow
def test_a_worker_that_no_run_comes_for_ends(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.double.worker"]
    ended = subprocess.run(
        command, cwd=PROJECT, env=environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


@pytest.mark.slow
def test_the_log_of_a_run_begins_with_the_start_of_its_worker(tmp_path: Path) -> None:
    (tmp_path / ".runner").mkdir()
    with (tmp_path / "early.log").open("w+b") as early_log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.double.worker"],
            cwd=PROJECT,
            env=environment(PYTHONPROFILEIMPORTTIME="1"),
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=early_log,
        )
    assert process.stdin is not None
    assert process.stdout is not None
    with process.stdin, process.stdout:  # its end would stop the run
        process.stdin.write(json.dumps(f"{tmp_path}/.runner/spec.json") + "\n")
        process.stdin.flush()
        assert process.wait(60) == 1  # there is no such spec
    log = (tmp_path / "runner.log").read_text()
    lines = ("runner.engines.local", "this worker was started ahead", "the run failed")
    assert sorted(lines, key=log.index) == list(lines)
