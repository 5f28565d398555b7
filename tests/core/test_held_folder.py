"""Temporary folders of processes that may be killed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runner.core import scratch
from runner.core.scratch import HeldFolder


def test_folders_of_the_dead_go_and_those_in_use_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scratch.tempfile, "tempdir", str(tmp_path))
    left, used, other = tmp_path / "some-left", HeldFolder("some-"), tmp_path / "other"
    (left / "session").mkdir(parents=True)
    other.mkdir()
    for folder in (left, used.path, other):
        os.utime(folder, (0, 0))
    own = HeldFolder("some-")
    assert set(tmp_path.iterdir()) == {used.path, own.path, other}
    for each in (used, own):
        each.remove()
    assert set(tmp_path.iterdir()) == {other}
