"""The command's side of a worker, with small scripts as workers: whatever becomes of one is told in a sentence."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from runner.contract.events import EndEvent, Event, PhaseEvent
from runner.contract.result import WorkerResult
from runner.core import stop_signals
from runner.jobs import spawn, worker_process
from runner.jobs.job import run_job
from runner.jobs.spec import Job
from runner.jobs.terminal import RunProgress
from runner.jobs.worker_process import InterruptGuard, describe_exit, log_tail, run_worker
from tests.configs import make_config
from tests.conftest import PROJECT, environment
from tests.results import make_spec


def run(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    script: str,
    *,
    asked: bool = False,
    grace_s: float = 30,
    engine: str = "local",
    guard: InterruptGuard | None = None,
) -> WorkerResult:
    """What comes of a worker that is this script; ``asked``: an end was asked for before it started."""
    (folder / "worker.py").write_text(f"import json, os, signal, sys, time\nfolder = {str(folder)!r}\n{script}")
    monkeypatch.setattr(spawn, "WORKER", (sys.executable, str(folder / "worker.py")))
    guard = guard or InterruptGuard()
    if asked:
        guard._requests.add(signal.SIGINT)
    config = make_config(["weights=random", f"engine={engine}", f"engine.shutdown_timeout_s={grace_s}"])
    with RunProgress(1) as progress:
        return worker_process.run_worker(make_spec(folder, config), progress, guard)


def test_lines_that_are_no_events_are_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = """
print("a library says hello")
print("[1, 2]")
print(42)
print('{"level": "info"}')
sys.stdout.buffer.write(b"\\xff\\xfe\\n")
print('{"event": "phase", "name": "import"}')
print('{"event": "progress", "cli', end="", flush=True)
os.kill(os.getpid(), signal.SIGSEGV)
"""
    failure = run(tmp_path, monkeypatch, script).failure
    assert (failure.kind, failure.signal) == ("signal", "SIGSEGV")


def test_who_listens_is_told_each_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = """
print('{"event": "phase", "name": "import"}')
print("noise")
print('{"event": "end", "status": "failed", "failure": null}')
"""
    heard: list[Event] = []
    monkeypatch.setattr(worker_process, "run_worker", functools.partial(run_worker, on_event=heard.append))
    run(tmp_path, monkeypatch, script)
    assert heard == [PhaseEvent("import"), EndEvent("failed")]


@pytest.mark.skipif(sys.platform != "linux", reason="real-time signals")
def test_a_signal_without_a_name_is_told_by_its_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failure = run(tmp_path, monkeypatch, "os.kill(os.getpid(), 35)").failure
    assert "killed by signal 35" in failure.message
    assert describe_exit(-35, tmp_path).signal == "signal 35"


@pytest.mark.parametrize("text", ['{"status": "fini', "[]", "", '{"metrics": {}}'])
def test_a_result_that_was_cut_off_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    result = run(tmp_path, monkeypatch, f"open(folder + '/result.json', 'w').write({text!r})")
    assert result.status == "failed"
    assert "left no result that can be read" in result.failure.message


def test_a_death_after_a_stop_is_told_as_what_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = "sys.stdin.readline()\nos.kill(os.getpid(), signal.SIGSEGV)"
    result = run(tmp_path, monkeypatch, script, asked=True)
    assert (result.status, result.failure.signal) == ("failed", "SIGSEGV")


def test_a_failure_after_a_stop_keeps_its_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = {"status": "failed", "failure": {"kind": "disk_full", "message": "the disk is full"}, "schema_version": 2}
    script = f"""
sys.stdin.readline()
open(folder + '/result.json', 'w').write({json.dumps(failed)!r})
sys.exit(1)
"""
    result = run(tmp_path, monkeypatch, script, asked=True)
    assert (result.status, result.failure.kind) == ("failed", "disk_full")


def test_a_worker_that_does_not_end_in_time_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_process, "_ABANDON_GRACE_S", 0.3)
    result = run(tmp_path, monkeypatch, "time.sleep(60)", asked=True, grace_s=0)
    assert (result.status, result.failure.kind) == ("interrupted", "interrupted")
    assert "engine.shutdown_timeout_s=0" in result.failure.message


def test_a_worker_that_a_stop_signal_ends_is_a_stopped_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = "signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])\nos.kill(os.getpid(), signal.SIGTERM)"
    result = run(tmp_path, monkeypatch, script)
    assert (result.status, result.failure.kind) == ("interrupted", "interrupted")
    assert InterruptGuard().exit_status == 143


@pytest.mark.parametrize(("engine", "status"), [("ray", "interrupted"), ("local", "failed")])
def test_a_driver_whose_cluster_was_told_to_stop_too_is_a_stopped_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str, status: str
) -> None:
    script = "sys.stdin.readline()\nsys.exit(1)  # as Ray ends a driver on the spot"
    assert run(tmp_path, monkeypatch, script, asked=True, engine=engine).status == status


def test_a_stop_signal_waits_until_the_worker_can_handle_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = """
os.kill(os.getpid(), signal.SIGTERM)
open(folder + '/result.json', 'w').write('{"status": "finished", "schema_version": 2}')
"""
    assert run(tmp_path, monkeypatch, script).status == "finished"


def test_a_log_of_bytes_has_a_tail_of_text(tmp_path: Path) -> None:
    (tmp_path / "runner.log").write_bytes(b"\x00\x1b[2J\xff\xfe one\nthe \xc3\xa4nd\t\n")
    tail = log_tail(tmp_path)
    assert not {"\x00", "\x1b"} & set(tail)
    assert tail.endswith(" one\nthe \u00e4nd\t")


def test_one_request_is_counted_once_however_many_signals_it_sends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stop_signals, "_ONE_REQUEST_S", 60)
    guard = InterruptGuard()
    counts: list[int] = []
    guard.on_signal = counts.append
    with guard.installed():
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGHUP):  # as `timeout` and systemd do
            signal.raise_signal(number)
        monkeypatch.setattr(stop_signals, "_ONE_REQUEST_S", 0)
        signal.raise_signal(signal.SIGHUP)
        assert counts == [1]
        signal.raise_signal(signal.SIGTERM)
    assert counts == [1, 2]
    assert guard.exit_status == 143


def start(folder: Path, code: str) -> subprocess.Popen[str]:
    """A Python process that says ``ready`` on its standard output when it is."""
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env=environment(PYTHONPATH=str(PROJECT)),
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n", process.communicate()[1]
    return process


def test_a_second_request_ends_what_follows_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stop_signals, "_ONE_REQUEST_S", 0)

    def finish() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with InterruptGuard().installed(), pytest.raises(KeyboardInterrupt):
        finish()


STOPPABLE = """
import os, time
from runner.core.stop_signals import StopSignal
stop = StopSignal(lambda: (print("at once", flush=True), os._exit(3)))
{begin}
print("ready", flush=True)
while not stop.is_set():
    time.sleep(0.01)
time.sleep({work})
print("finished", flush=True)
os._exit(0)
"""


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, None])
@pytest.mark.parametrize("begun", [False, True])
def test_a_worker_finishes_what_it_has_begun(tmp_path: Path, by: int | None, begun: bool) -> None:
    process = start(tmp_path, STOPPABLE.format(begin="stop.begin(lambda: None)" if begun else "", work=0.5))
    if by is not None:
        os.kill(process.pid, by)
    out, err = process.communicate("stop\n", timeout=20)  # a signal to all, and what the command then says
    assert (process.returncode, out) == ((0, "finished\n") if begun else (3, "at once\n")), err


@pytest.mark.slow
def test_a_second_signal_ends_a_worker_on_the_spot(tmp_path: Path) -> None:
    process = start(tmp_path, STOPPABLE.format(begin="stop.begin(lambda: None)", work=60))
    os.kill(process.pid, signal.SIGTERM)
    time.sleep(1)
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(timeout=20) == -signal.SIGTERM


COMMAND = """
import sys, time
from runner.cli import run as cli
def plan(arguments):
    print("ready", flush=True)
    for _ in range(600):
        time.sleep(0.1)  # a signal just before a sleep is handled after it
cli._main = plan
sys.exit(cli.main([]))
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_command_that_is_still_planning_ends_in_order(tmp_path: Path, number: int, status: int) -> None:
    process = start(tmp_path, COMMAND)
    os.kill(process.pid, number)
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (status, "")


def test_a_signal_that_comes_too_late_for_a_job_ends_its_sweep(tmp_path: Path) -> None:
    code = """
import signal, sys
from runner.cli import run as cli
from runner.jobs.worker_process import InterruptGuard
def job(arguments):
    print("ready", flush=True)
    with InterruptGuard().installed() as guard:
        signal.raise_signal(signal.SIGTERM)
    guard.pass_on()
cli._main = job
sys.exit(cli.main([]))
"""
    assert start(tmp_path, code).wait(timeout=20) == 143


def test_a_job_that_is_to_be_queued_again_ends_in_order_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slurm's signal comes to every process; Submitit's handler would end the job on the spot."""
    requeued: list[int] = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: requeued.append(number))
    script = """
os.kill(os.getpid(), signal.SIGUSR2)
os.kill(os.getppid(), signal.SIGUSR2)
assert sys.stdin.readline() == 'stop\\n'
open(folder + '/result.json', 'w').write('{"status": "interrupted", "schema_version": 2}')
"""
    try:
        with InterruptGuard().installed() as guard:
            result = run(tmp_path, monkeypatch, script, guard=guard)
        assert result == WorkerResult(status="interrupted", worker_s=result.worker_s)
        assert requeued == []
        assert guard.requeues
        guard.pass_on()
        assert requeued == [signal.SIGUSR2]
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_a_job_that_was_finished_all_the_same_passes_the_signal_on_to_its_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def finish(*_: object) -> WorkerResult:
        signal.raise_signal(signal.SIGTERM)
        return WorkerResult(status="finished")

    monkeypatch.setattr("runner.jobs.job.run_worker", finish)
    monkeypatch.setenv("VGGISH_RUNNER_SWEEP", str(tmp_path / "sweep.json"))
    soundfile.write(tmp_path / "a.wav", np.zeros(16_000), 16_000)
    options = [f"dataset.root={tmp_path}", f"paths.outputs={tmp_path}", "weights=random", "tracking=none"]
    (tmp_path / "run").mkdir()
    passed_on: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: passed_on.append(number))
    try:
        run_job(Job(make_config(options), tmp_path / "run", in_sweep=True))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert passed_on == [signal.SIGTERM]


def test_a_spec_that_was_cut_off_is_a_failure_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / ".runner").mkdir()
    spec = tmp_path / ".runner" / "spec.json"
    spec.write_text('{"config": {"eng')
    command = [sys.executable, "-m", "runner.engines.worker", str(spec)]
    worker = subprocess.Popen(command, cwd=PROJECT, env=environment(), stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert worker.wait(timeout=60) == 1
    worker.communicate()
    failure = json.loads((tmp_path / "result.json").read_text())["failure"]
    assert failure["kind"] == "resume"
    assert f"{spec} can't be read" in failure["message"]
