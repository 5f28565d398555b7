"""Our own files, cut off: one sentence that names the file, and no traceback."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from runner.cli import run
from runner.core.errors import ConfigError, ResumeError
from runner.core.layout import RunLayout
from runner.core.readable import read_json
from runner.dataset.manifest import build_manifest
from runner.output.state.identity import check_identity
from runner.output.state.plan import make_plan
from runner.output.state.plan_file import read_plan
from tests.configs import make_config


def cut(path: Path, to: float) -> None:
    """Leave the first part of a file."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * to)])


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run that was planned."""
    (tmp_path / "data").mkdir()
    for name in "ab":
        soundfile.write(tmp_path / "data" / f"{name}.wav", np.zeros(16_000), 16_000)
    plan(tmp_path)
    return tmp_path / "run"


def plan(folder: Path) -> None:
    config = make_config([f"dataset.root={folder / 'data'}", "weights=random"])
    make_plan(folder / "run", config, build_manifest(config.dataset, folder))


@pytest.mark.parametrize("to", [0, 0.4, 0.99])
def test_a_cut_manifest_is_made_anew_or_one_sentence(run_dir: Path, to: float) -> None:
    path = run_dir / RunLayout.manifest
    whole = path.read_bytes()
    cut(path, to)
    plan(run_dir.parent)
    assert path.read_bytes() == whole, "the data set is what it was"
    cut(path, to)
    soundfile.write(run_dir.parent / "data" / "c.wav", np.zeros(16_000), 16_000)
    with pytest.raises(ResumeError, match=r"manifest.parquet can't be read .* choose another output.dir"):
        plan(run_dir.parent)


def test_a_cut_plan_is_one_sentence(run_dir: Path) -> None:
    cut(run_dir / RunLayout.plan, 0.5)
    with pytest.raises(ConfigError, match=r"plan.json can't be read"):
        read_plan(run_dir)


def test_a_cut_identity_is_one_sentence(run_dir: Path) -> None:
    (run_dir / RunLayout.identity).write_text('{"precision": "flo')
    with pytest.raises(ResumeError, match=r"can't be read"):
        check_identity(run_dir, {"precision": "float32"})


@pytest.mark.parametrize("text", ['{"a": ', "[1]", "\x00", ""])
def test_what_is_no_object_is_one_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ResumeError, match=r"a.json can't be read \([^\n]+\): restore it"):
        read_json(tmp_path / "a.json")


def test_a_cut_file_is_told_without_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sweep.json").write_text(json.dumps({"jobs": []})[:-3])
    monkeypatch.setattr(run, "_main", lambda arguments: read_json(tmp_path / "sweep.json"))
    assert run.main([]) == 1
    assert "sweep.json can't be read" in capsys.readouterr().err
