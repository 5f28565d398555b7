"""The plan of a run, made, taken up again and brought up to date; locks; what may differ."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from runner.compose import compose_config
from runner.config import FolderDataset, RunConfig
from runner.errors import ConfigError
from runner.journal import JOURNAL, STATE, Journal, ShardEntry, read_journal
from runner.manifest import build_manifest
from runner.resume import Plan, check_folder, claim, deciding, make_plan, release
from tests.conftest import PROJECT


@pytest.fixture
def data(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    root.mkdir()
    for number in range(10):
        (root / f"{number}.wav").write_bytes(bytes(number + 1))
    return root


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    return folder


def config(data: Path, *overrides: str) -> RunConfig:
    return compose_config([f"dataset.root={data}", "weights=random", "output.shard_clips=3", *overrides])


def plan(run: Path, data: Path) -> Plan:
    return make_plan(run, config(data), build_manifest(FolderDataset(root=str(data), extensions=["wav"]), run))


def finish(run: Path, *shards: int) -> None:
    journal = Journal(run / STATE / JOURNAL)
    for number in shards:
        journal.append(ShardEntry(number))
    journal.close()


def test_a_new_run_has_everything_to_do(run: Path, data: Path) -> None:
    made = plan(run, data)
    assert (made.shards, made.done, made.resumed, made.notes) == ([(0, 3), (3, 6), (6, 9), (9, 10)], {}, False, [])
    assert not made.is_finished


def test_a_run_taken_up_keeps_what_is_done(run: Path, data: Path) -> None:
    plan(run, data)
    finish(run, 0, 2)
    again = plan(run, data)
    assert (set(again.done), again.resumed, again.notes) == ({0, 2}, True, [])
    finish(run, 1, 3)
    assert plan(run, data).is_finished


def test_a_changed_file_has_its_shard_done_again_also_after_another_kill(run: Path, data: Path) -> None:
    plan(run, data)
    finish(run, 0, 1)
    os.utime(data / "4.wav", ns=(1, 1))
    again = plan(run, data)
    assert set(again.done) == {0}
    assert again.notes == ["1 source files changed since the run began: they are embedded anew"]
    third = plan(run, data)  # the second session was killed before it did anything
    assert (set(third.done), third.notes) == ({0}, [])


def test_new_files_come_after_the_others_and_vanished_ones_stay(run: Path, data: Path) -> None:
    before = plan(run, data).manifest
    finish(run, 0, 1, 2, 3)
    (data / "0.wav").unlink()
    (data / "00-new.wav").write_bytes(b"x")
    (data / "z.wav").write_bytes(b"x")
    again = plan(run, data)
    assert again.shards == [(0, 3), (3, 6), (6, 9), (9, 10), (10, 12)]
    assert set(again.done) == {0, 1, 2, 3}
    names = again.manifest.table["clip"].to_pylist()
    assert names == [*before.table["clip"].to_pylist(), "00-new.wav", "z.wav"]
    assert len(again.notes) == 2
    assert again.manifest.digest != before.digest
    once_more = plan(run, data)
    assert (once_more.shards, once_more.manifest.digest) == (again.shards, again.manifest.digest)


def test_a_plan_half_written_counts_the_new_files_as_new_again(run: Path, data: Path) -> None:
    plan(run, data)
    old = (run / STATE / "plan.json").read_text()
    (data / "z.wav").write_bytes(b"x")
    made = plan(run, data)
    (run / STATE / "plan.json").write_text(old)  # killed between manifest and plan
    assert plan(run, data).shards == made.shards


@pytest.mark.parametrize(
    "free", ["device=gpu", "memory=greedy", "memory.decode_workers=7", "tracking=none", "dataset.on_error=fail"]
)
def test_what_changes_no_number_may_differ(run: Path, data: Path, free: str) -> None:
    plan(run, data)
    check_folder(run, config(data, free))
    assert deciding(config(data, free)) == deciding(config(data))


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("precision=bfloat16", "precision.name"),
        ("weights.seed=1", "weights.seed"),
        ("frontend.hop_s=0.48", "frontend.hop_s"),
        ("dataset.pattern=a*", "dataset.pattern"),
        ("output=npz", "output.formats"),
        ("output.shard_clips=4", "output.shard_clips"),
    ],
)
def test_what_changes_numbers_or_files_may_not(run: Path, data: Path, override: str, key: str) -> None:
    plan(run, data)
    with pytest.raises(ConfigError, match=f"another configuration: {key} "):
        check_folder(run, config(data, override))


def test_a_folder_of_something_else_is_refused(run: Path, data: Path) -> None:
    (run / "result.json").write_text("{}")
    with pytest.raises(ConfigError, match="already holds a run"):
        check_folder(run, config(data))


@pytest.mark.parametrize("text", ["", "[]", '{"schema": 99}', "\0"])
def test_a_plan_that_cannot_be_read_is_refused(run: Path, data: Path, text: str) -> None:
    plan(run, data)
    (run / STATE / "plan.json").write_text(text)
    with pytest.raises(ConfigError, match=r"plan\.json"):
        check_folder(run, config(data))


def test_a_folder_has_one_command_at_a_time_and_a_dead_ones_lock_is_free(run: Path) -> None:
    code = f"from pathlib import Path; from runner.resume import claim; claim(Path({str(run)!r}))"
    code += "; print('got it', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "got it\n"
        with pytest.raises(ConfigError, match=rf"in use by another command \(process {other.pid} on "):
            claim(run)
        other.kill()
        other.wait()
    claim(run)
    claim(run)  # this process has it
    release(run)


def test_unreadable_lines_are_told(run: Path, data: Path) -> None:
    plan(run, data)
    finish(run, 0)
    with (run / STATE / JOURNAL).open("ab") as file:
        file.write(b'{"shard": 1, "cl')
    made = plan(run, data)
    assert set(made.done) == {0}
    assert "journal can't be read" in made.notes[0]
    finish(run, 1)
    assert set(read_journal(run / STATE / JOURNAL)[0]) == {0, 1}


def test_where_nothing_changed_the_plan_is_compared_in_pieces(
    run: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = plan(run, data)
    monkeypatch.setattr("runner.resume.reconcile", lambda *tables: pytest.fail("the whole was read"))
    again = plan(run, data)
    assert (again.shards, again.manifest.digest, again.notes) == (before.shards, before.manifest.digest, [])
