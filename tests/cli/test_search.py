"""The commands ``search`` and ``duplicates``, as their users see them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from runner.cli import duplicates, search
from tests.commands import PROJECT, environment
from tests.evaluation.test_search import write_run


@pytest.fixture
def run(tmp_path: Path) -> str:
    embeddings = np.random.default_rng(4).standard_normal((20, 128)).astype(np.float32)
    embeddings[15:] = embeddings[:5]
    return str(write_run(tmp_path / "run", embeddings, [f"{'abcd'[row // 5]}.wav" for row in range(20)]))


def test_a_search_prints_clips_with_times_and_scores(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert search.main([run, "--clip", "b.wav", "--start", "0.96", "--end", "1", "--top", "2"]) == 0
    header, first, second = capsys.readouterr().out.splitlines()
    assert header.split() == ["score", "start", "end", "clip"]
    assert first.split() == ["1.0000", "00:00.96", "00:01.94", "b.wav", "(b)"]
    assert float(second.split()[0]) < 1


def test_a_search_writes_tables_for_annotation_programs(
    run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    query = [run, "--clip", "a.wav", "--top", "3", "--per-clip", "1"]
    assert search.main([*query, "--format", "raven", "--output", str(tmp_path / "hits.txt")]) == 0
    assert search.main([*query, "--format", "audacity", "--output", str(tmp_path / "tracks")]) == 0
    assert len((tmp_path / "hits.txt").read_text().splitlines()) == 4
    assert len(list((tmp_path / "tracks").glob("*.wav.txt"))) == 3
    assert "3 examples in" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--clip", "a.wav", "--top", "0"], "--top 0 is not a number of examples"),
        (["--clip", "a.wav", "--format", "audacity"], "give their folder with --output"),
        (["--clip", "nobody.wav"], "has no clip nobody.wav"),
        ([], "give one query"),
        (["x.wav", "--clip", "a.wav"], "give one query"),
        (["missing.wav"], "missing.wav cannot be the query"),
    ],
)
def test_a_query_that_cannot_be_is_one_sentence(
    run: str, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert search.main([run, *arguments]) == 1
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert message in told
    assert len(told.splitlines()) == 1


@pytest.mark.slow
def test_a_search_for_a_clip_imports_neither_pandas_nor_scikit_learn(run: str) -> None:
    code = (
        "import sys; from runner.cli.run import main\n"
        f"assert main(['search', {run!r}, '--clip', 'b.wav']) == 0\n"
        "heavy = {'pandas', 'sklearn', 'scipy', 'mlflow', 'hydra', 'tensorflow'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], cwd=PROJECT, env=environment(), check=True, stdout=subprocess.DEVNULL)


def test_duplicates_are_printed_as_groups_and_as_rows(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert duplicates.main([run, "--above", "0.999"]) == 0
    assert "1 group with 2 of 4 clips" in capsys.readouterr().out
    assert duplicates.main([run, "--above", "0.999", "--format", "csv"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert [row.split(",")[:2] for row in rows[1:]] == [["1", "a.wav"], ["1", "d.wav"]]


def test_a_threshold_that_is_no_similarity_is_an_error(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert duplicates.main([run, "--above", "99"]) == 1
    assert "--above 99 is not a cosine similarity" in capsys.readouterr().err
