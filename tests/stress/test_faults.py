"""Small runs under calls that fail and losses of power, one of every fourth kind; all of them: ``make faults``."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import DOUBLE, PROJECT, environment, run_module
from tests.stress.disk import Call, why_not
from tests.stress.faults import check_commands
from tests.stress.power_loss import Contents, Disk, choices

needs_shim = pytest.mark.skipif(why_not() is not None, reason=f"what a process does to files: {why_not()}")


@pytest.fixture(scope="module")
def bad_cases() -> list[str]:
    """The cases of ``python -m tests.stress.faults`` in its short form that came out otherwise, a line for each."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.stress.faults", "--quick", "--short"],
        cwd=PROJECT,
        env=environment(PYTHONPATH=str(PROJECT)),
        capture_output=True,
        text=True,
        check=False,
    )
    bad = [line for line in done.stdout.splitlines()[:-1] if not re.search(r": \d+ calls, \d+ cases of \d+$", line)]
    assert done.stdout.endswith(f"\n{len(bad)} came out otherwise\n"), (done.stdout + done.stderr)[-4000:]
    return bad


@needs_shim
@pytest.mark.slow
def test_every_call_that_fails_leaves_a_run_that_the_same_command_completes(bad_cases: list[str]) -> None:
    assert [case for case in bad_cases if ": power lost after " not in case] == []


@needs_shim
@pytest.mark.slow
def test_a_loss_of_power_at_any_moment_leaves_a_run_that_the_same_command_completes(bad_cases: list[str]) -> None:
    assert [case for case in bad_cases if ": power lost after " in case] == []


@pytest.mark.slow
def test_a_finished_run_that_is_given_again_changes_no_byte(tmp_path: Path) -> None:
    done = run_module("tests.whole_run", str(tmp_path))  # it forks decode processes, and so has no TensorFlow
    assert (done.status, done.out) == (0, ""), done.out + done.err


@needs_shim
@pytest.mark.slow
def test_calls_that_fail_in_the_real_command_and_its_worker_are_told_and_cost_nothing(tmp_path: Path) -> None:
    assert check_commands(tmp_path, times=2, seed=0, command=DOUBLE) == 0


# What a disk may hold: the model that the losses of power come from


def call(kind: str, path: str, number: int = 0, second: str = "", fd: int = 3, data: bytes = b"") -> Call:
    return Call(kind, fd, number, path, second, data)


def held(calls: list[Call], before: Path) -> dict[str, Contents]:
    disk = Disk(Path("/run"), before)
    for each in calls:
        disk.apply(each)
    return {name: disk.after_power_loss(choice) for name, choice in choices(0).items()}


def written(path: str, data: bytes, *, flush: bool = True) -> list[Call]:
    flags = os.O_CREAT | os.O_WRONLY | os.O_TRUNC
    flushed = [call("fsync", "")] if flush else []
    return [call("open", path, flags), call("write", "", 0, data=data), *flushed, call("close", path, 1)]


RENAMED = call("rename", "/run/.a.tmp", second="/run/a")
FOLDER_FLUSHED = [call("open", "/run"), call("fsync", ""), call("close", "/run")]


def test_a_name_is_certain_once_its_folder_was_flushed(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    calls = [*written("/run/.a.tmp", b"new"), RENAMED]
    assert held(calls, tmp_path)["nothing"] == {"a": b"old"}
    assert set(map(str, (each["a"] for each in held([*calls, *FOLDER_FLUSHED], tmp_path).values()))) == {"b'new'"}


def test_a_name_may_come_without_its_data(tmp_path: Path) -> None:
    calls = [*written("/run/.a.tmp", b"new", flush=False), RENAMED]
    assert held(calls, tmp_path)["names"] == {"a": b""}
    assert held([*calls, *FOLDER_FLUSHED], tmp_path)["nothing"] == {"a": b""}


def test_a_new_folder_is_lost_with_all_in_it_unless_the_one_above_was_flushed(tmp_path: Path) -> None:
    inner = [call("open", "/run/npz"), call("fsync", ""), call("close", "/run/npz")]
    calls = [call("mkdir", "/run/npz"), *written("/run/npz/a", b"x"), *inner]
    assert held(calls, tmp_path)["nothing"] == {}
    assert held([*calls, *FOLDER_FLUSHED], tmp_path)["nothing"] == {"npz": None, "npz/a": b"x"}
