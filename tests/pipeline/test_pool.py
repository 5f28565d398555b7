"""The life of decode processes: signals, pauses and deaths that no clip is to blame for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import soundfile

from runner.core.errors import EngineError
from runner.pipeline.decode_pool import DecodePool
from runner.pipeline.messages import ClipResult, ClipTask
from tests.conftest import PROJECT, environment
from tests.vggish_clips import OPTIONS

pytestmark = pytest.mark.slow

ROWS = 8


@pytest.fixture
def clip(tmp_path: Path) -> bytes:
    soundfile.write(tmp_path / "a.wav", np.zeros(16_000), 16_000)
    return os.fsencode(tmp_path / "a.wav")


@pytest.fixture
def long_clip(tmp_path: Path) -> bytes:
    """One that takes a second to decode."""
    soundfile.write(tmp_path / "long.flac", np.random.default_rng(0).uniform(-1, 1, 150 * 44_100), 44_100)
    return os.fsencode(tmp_path / "long.flac")


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[DecodePool]:
    monkeypatch.setattr(
        "runner.pipeline.decode_pool._CHECK_EVERY_S", 0.01
    )  # on a fast machine a clip is decoded between two looks
    pool = DecodePool(OPTIONS, 1, decode_timeout_s=1.5)
    yield pool
    pool.close()


def pid_of(pool: DecodePool) -> int:
    return int(pool._processes[0].process.pid)


def received(pool: DecodePool) -> list[ClipResult]:
    """The clips that have ended; slots are given back at once."""
    ended: list[ClipResult] = []
    for decoded in pool.receive(0.05):
        ended += decoded.finished
        if decoded.filled is not None:
            pool.release(decoded.filled.slot)
    return ended


def results(pool: DecodePool, *paths: bytes, jobs: int = 0) -> list[ClipResult]:
    """How clips end; those of a process that died are given again, as the feeder does."""
    pool.submit([(ClipTask(jobs + job, path, None, None), 1) for job, path in enumerate(paths)], last=True)
    ended: list[ClipResult] = []
    deadline = time.monotonic() + 60
    while len(ended) < len(paths):
        assert time.monotonic() < deadline
        ended += received(pool)
        if again := pool.retries():
            pool.submit(again, last=True)
    return ended


def kill(pool: DecodePool) -> None:
    os.kill(pid_of(pool), signal.SIGKILL)
    pool._processes[0].process.join()


def test_a_released_slot_is_filled_without_the_thread_that_receives(pool: DecodePool, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "many.wav", np.zeros(16_000 * 60, np.int16), 16_000)
    pool.open(1, 1, ROWS)
    (process,) = pool._processes
    pool.submit([(ClipTask(0, os.fsencode(tmp_path / "many.wav"), None, None), 1)], last=True)
    filled: list[int] = []
    while len(filled) < 2:  # all that there are
        filled += [decoded.filled.slot for decoded in pool.receive(1.0) if decoded.filled]
    assert process.waits_for_slot
    assert not process.connection.poll(0.2)
    thread = threading.Thread(target=pool.release, args=(filled[0],))
    thread.start()
    thread.join()
    assert process.connection.poll(30)


@pytest.mark.slow
def test_processes_killed_while_idle_cost_no_clip(pool: DecodePool, clip: bytes) -> None:
    kill(pool)  # while TensorFlow would be imported
    pool.open(1, 2, ROWS)
    for job in range(5):  # more often than starts may fail, also between two runs of one pool
        (result,) = results(pool, clip, jobs=job)
        assert (result.embedded, result.reason) == (True, None)
        kill(pool)
    assert pool.deaths == 5


def test_a_start_that_went_well_makes_up_for_those_that_failed(pool: DecodePool, clip: bytes) -> None:
    pool.open(1, 2, ROWS)
    for job in range(3):
        deaths = pool.deaths
        while pool.deaths < deaths + 2:  # the one that was at work, if any, and one that has just been started
            kill(pool)
            list(pool.receive(0.01))
        (result,) = results(pool, clip, jobs=job)
        assert result.embedded


def test_a_clip_is_given_up_once_three_processes_died_of_it(pool: DecodePool, long_clip: bytes) -> None:
    pool.open(1, 2, ROWS)
    tasks = [(ClipTask(0, long_clip, None, None), 1)]
    ended: list[ClipResult] = []
    for deaths in (1, 2, 3):
        pool.submit(tasks, last=True)
        while pool.memory.last_heartbeat(0) is None:
            assert not received(pool)
        kill(pool)
        while pool.deaths < deaths:
            ended += received(pool)
        tasks = pool.retries()
    assert ([result.reason for result in ended], tasks) == (["decoder_crashed"], [])


def test_processes_that_die_at_their_start_end_the_run(pool: DecodePool) -> None:
    pool.open(1, 2, ROWS)

    def kill_each_at_its_start() -> None:
        while True:
            kill(pool)
            list(pool.receive(0.01))

    with pytest.raises(EngineError, match="decode processes die at their start"):
        kill_each_at_its_start()


def test_stop_signals_end_no_decode_process_not_even_one_that_is_starting(pool: DecodePool, clip: bytes) -> None:
    def signal_all() -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(pid_of(pool), number)

    for _ in range(10):
        signal_all()
        time.sleep(0.02)
    pool.open(1, 2, ROWS)
    assert results(pool, clip)[0].embedded
    signal_all()
    assert results(pool, clip, jobs=1)[0].embedded
    assert pool.deaths == 0


def test_time_in_which_all_processes_were_stopped_is_no_silence(
    pool: DecodePool, long_clip: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [time.monotonic()]
    monkeypatch.setattr("runner.pipeline.decode_pool.time", SimpleNamespace(monotonic=lambda: now[0]))
    pool.open(1, 2, ROWS)
    pool.submit([(ClipTask(0, long_clip, None, None), 1)], last=True)
    while pool.memory.last_heartbeat(0) is None:
        assert not received(pool)
    os.kill(pid_of(pool), signal.SIGSTOP)
    for seconds in (0.3, 1000):  # the last beat is seen; then nobody looks: this process is stopped as well
        now[0] += seconds
        assert not received(pool)
    os.kill(pid_of(pool), signal.SIGCONT)
    while not (ended := received(pool)):
        pass
    assert (ended[0].embedded, ended[0].reason, pool.deaths) == (True, None, 0)


@pytest.mark.slow
def test_a_decode_process_that_is_stopped_alone_is_given_up(pool: DecodePool, long_clip: bytes, clip: bytes) -> None:
    pool.open(1, 2, ROWS)
    pool.submit([(ClipTask(0, long_clip, None, None), 1)], last=True)
    while pool.memory.last_heartbeat(0) is None:
        assert not received(pool)
    os.kill(pid_of(pool), signal.SIGSTOP)
    reasons = {result.reason for result in results(pool, clip, jobs=1)}
    assert reasons <= {"timeout", None}
    assert pool.deaths == 1


def test_a_process_with_a_pool_that_was_never_closed_ends(tmp_path: Path) -> None:
    """As Ray's actors do."""
    code = """
from runner.pipeline.decode_pool import DecodePool
from tests.vggish_clips import OPTIONS
if __name__ == "__main__":
    pool = DecodePool(OPTIONS, 2)
    pool.open(2, 2, 8)
    while not all(process.is_ready for process in pool._processes):
        list(pool.receive(0.05))
    print(*(process.process.pid for process in pool._processes), flush=True)
"""
    (tmp_path / "script.py").write_text(code)
    env = environment(PYTHONPATH=str(PROJECT))
    command = [sys.executable, "script.py"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0, done.stderr
    assert not [pid for pid in map(int, done.stdout.split()) if psutil.pid_exists(pid)]
