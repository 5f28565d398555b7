"""The journal: what was written is read, what was cut off or changed is not believed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.core.files import FileDigest, digest_file
from runner.output.state.journal import Journal, ShardCounts, ShardEntry, from_line, read_journal, to_line
from runner.output.verify import damaged_shards, files_exist


def entry(shard: int, **values: object) -> ShardEntry:
    return ShardEntry(shard, 3, 30, {f"part-{shard}": FileDigest(5, "00")}, ShardCounts(embedded=3), **values)  # type: ignore[arg-type]


def write(path: Path, *entries: ShardEntry) -> None:
    journal = Journal(path)
    for each in entries:
        journal.append(each)
    journal.close()


def test_a_line_is_on_disk_once_it_is_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[int] = []
    journal = Journal(tmp_path / "journal")
    monkeypatch.setattr("os.fsync", lambda descriptor: flushed.append(os.fstat(descriptor).st_size))
    journal.append(entry(0))
    assert flushed == [(tmp_path / "journal").stat().st_size]
    journal.close()


def test_entries_come_back_and_the_last_of_a_shard_counts(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    assert read_journal(path) == ({}, 0)
    write(path, entry(0), entry(1), entry(2), entry(1, revoked=True))
    done, unreadable = read_journal(path)
    assert (list(done), unreadable) == ([0, 2], 0)
    assert done[2] == entry(2)
    write(path, entry(1))
    assert set(read_journal(path)[0]) == {0, 1, 2}


@pytest.mark.parametrize("cut", [1, 10, 60])
def test_a_line_that_was_cut_off_is_as_if_not_there_and_spoils_no_later_one(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "journal"
    write(path, entry(0), entry(1))
    path.write_bytes(path.read_bytes()[:-cut])
    write(path, entry(2))
    done, unreadable = read_journal(path)
    assert set(done) == ({0, 1, 2} if cut == 1 else {0, 2})
    assert unreadable == (0 if cut == 1 else 1)


@pytest.mark.parametrize("change", [1, 4, 32])
def test_a_line_with_a_bit_that_changed_is_not_believed(change: int) -> None:
    line = to_line(entry(1)).encode()
    assert from_line(line) == entry(1)
    for place, byte in enumerate(line):
        changed = line[:place] + bytes([byte ^ change]) + line[place + 1 :]
        assert from_line(changed) in (None, entry(1)), changed


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_no_bytes_break_it(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("journal") / "journal"
    path.write_bytes(data)
    assert read_journal(path)[0] == {}


def test_damage_is_found(tmp_path: Path) -> None:
    done = {}
    for number in range(4):
        path = tmp_path / f"part-{number}"
        path.write_bytes(bytes([number]) * 100)
        done[number] = ShardEntry(number, files={path.name: digest_file(path)})
    assert damaged_shards(tmp_path, done) == []
    assert files_exist(tmp_path, done)
    (tmp_path / "part-1").unlink()
    (tmp_path / "part-2").write_bytes(bytes([2]) * 99)
    (tmp_path / "part-3").write_bytes(bytes([3]) * 99 + b"x")
    assert damaged_shards(tmp_path, done) == [1, 2, 3]
    assert not files_exist(tmp_path, done)
