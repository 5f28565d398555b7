"""The command ``vggish-runner fad``: what it prints, its exit status, and what MLflow has of it."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from runner.cli import fad
from runner.contract.files import write_tracking
from runner.contract.tracking import TrackingState
from tests.commands import PROJECT, environment
from tests.evaluation.runs import ABOUT, embeddings, make_run

BASE, OTHER = embeddings(0), embeddings(1, 1.1, 0.05)


@pytest.fixture
def runs(tmp_path: Path) -> tuple[str, str]:
    return str(make_run(tmp_path / "base", BASE)), str(make_run(tmp_path / "run", OTHER, clip="other"))


@pytest.mark.slow
def test_a_table_has_the_distance_its_interval_and_both_counts(
    runs: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert fad.main([*runs, "--infinity", "--kad"]) == 0
    head, _, titles, row, note = capsys.readouterr().out.splitlines()
    assert "300 examples, weights abababababab" in head
    assert titles.split() == ["examples", "FAD", "95", "%", "from", "to", "FAD∞", "slope", "R²", "KAD×100", "run"]
    assert row.split()[0] == "300"
    assert row.endswith(runs[1])
    assert (
        note == f"note: {runs[1]}: interval with the reference fixed, not paired, as its clips are not the reference's"
    )


@pytest.mark.slow
def test_json_and_csv_have_the_same_figures(runs: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert fad.main([*runs, "--json", "--infinity", "--bootstrap", "20"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["reference"]["examples"], found["reference"]["about"]) == (300, {**ABOUT, "output": "embedding"})
    (run,) = found["runs"]
    assert len(run["fad_infinity_points"]) == 25
    assert fad.main([*runs, "--csv", "--infinity", "--bootstrap", "20"]) == 0
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    for name in ("fad", "fad_low", "fad_high", "fad_infinity", "fad_infinity_r2"):
        assert float(row[name]) == run[name]


@pytest.mark.slow
def test_an_interval_in_pairs_says_so_in_every_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [str(make_run(tmp_path / name, rows)) for name, rows in (("base", BASE), ("near", BASE * np.float32(1.001)))]
    runs += ["--bootstrap", "20"]
    assert fad.main(runs) == 0
    assert f"{runs[1]}: interval paired over 8 clips, by their names" in capsys.readouterr().out
    assert fad.main([*runs, "--json"]) == 0
    (run,) = json.loads(capsys.readouterr().out)["runs"]
    assert run["fad_paired_clips"] == 8
    assert 0 < run["fad_low"] < run["fad"] < run["fad_high"] < 0.01
    assert fad.main([*runs, "--csv"]) == 0
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert row["fad_paired_clips"] == "8"


def test_clips_go_to_a_file_nearest_first(
    runs: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fad.main([*runs, "--per-clip", str(tmp_path / "clips.csv"), "--bootstrap", "0"]) == 0
    rows = list(csv.DictReader((tmp_path / "clips.csv").open()))
    values = [float(row["fad"]) for row in rows]
    assert len(values) == 7
    assert values == sorted(values)
    assert "1 with a single example have none" in capsys.readouterr().out


@pytest.mark.parametrize(("most", "status"), [("1000", 0), ("0.5", 1)])
def test_a_limit_decides_the_exit_status(
    most: str, status: int, runs: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert fad.main([*runs, "--bootstrap", "0", "--fail-above", most]) == status
    assert ("is above 0.5" in capsys.readouterr().err) is bool(status)


@pytest.mark.slow
def test_other_protocols_are_refused_unless_that_is_asked_for(
    runs: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = str(make_run(tmp_path / "other", OTHER, {**ABOUT, "frontend.hop_s": "0.5"}))
    assert fad.main([runs[0], runs[1], other, "--bootstrap", "0"]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert "frontend.hop_s is 0.96 for" in told.err
    assert "--allow-different" in told.err
    assert fad.main([runs[0], other, "--allow-different", "--bootstrap", "0"]) == 0


def test_random_weights_are_told_loudly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(make_run(tmp_path / "run", BASE, {**ABOUT, "weights.random": "true"}))
    assert fad.main([run, run, "--bootstrap", "0"]) == 0
    assert "RANDOM WEIGHTS" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{0}", "{0}/absent"], "absent is not there"),
        (["{parent}", "{1}"], "holds 2 runs"),
        (["{0}", "{1}", "--fail-above", "nan"], "is no distance"),
    ],
)
def test_what_can_not_be_done_is_one_sentence(
    arguments: list[str], words: str, runs: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    parent = str(Path(runs[0]).parent)
    assert fad.main([word.format(*runs, parent=parent) for word in arguments]) == 1
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert words in told


def test_without_a_run_the_usage_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        fad.main(["only-a-reference"])
    assert ended.value.code == 2
    assert "give a reference and a run" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("prepared_database")
def test_mlflow_has_the_distances_in_the_runs_own_run(runs: tuple[str, str], tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = MlflowClient(uri)
    run_id = client.create_run(client.create_experiment("e")).info.run_id
    write_tracking(Path(runs[1]) / "tracking.json", TrackingState(uri, "1", run_id, attempt=1))
    assert fad.main([*runs, "--no-log", "--bootstrap", "0"]) == 0
    assert client.get_run(run_id).data.metrics == {}
    assert fad.main([*runs, "--bootstrap", "20"]) == 0
    data = client.get_run(run_id).data
    assert set(data.metrics) == {"fad", "fad_low", "fad_high", "fad_paired_clips"}
    assert data.tags["fad.reference"] == runs[0]


def test_a_store_that_is_gone_is_a_warning(
    runs: tuple[str, str], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    write_tracking(Path(runs[1]) / "tracking.json", TrackingState("http://127.0.0.1:1", "0", "0", attempt=1))
    assert fad.main([*runs, "--bootstrap", "0"]) == 0
    assert "could not log to MLflow" in caplog.text


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from runner.cli.run import main\n"
        "try: main(['fad', '--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'numpy', 'pyarrow', 'mlflow', 'hydra', 'tensorflow'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], cwd=PROJECT, env=environment(), check=True, stdout=subprocess.DEVNULL)
    assert time.perf_counter() - began < 10
