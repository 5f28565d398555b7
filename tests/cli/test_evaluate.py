"""``vggish-runner evaluate``: existing runs, in folders, sweeps and at URLs; what it prints, writes and logs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runner.cli.evaluate import _config, _parser, main
from runner.config.groups.evaluate import TASKS, EvaluateConfig
from runner.config.schema import TrackingConfig
from runner.contract.files import read_result, write_result, write_tracking
from runner.contract.tracking import TrackingState
from runner.core.layout import RunLayout
from runner.output.run_blocks import read_blocks
from runner.statistics.files import to_npz
from runner.statistics.frechet import Gaussian, frechet_distance
from runner.statistics.moments import EmbeddingStatistics
from runner.tracking.client import experiment_client
from tests.evaluation.labeled_runs import labeled_clips, write_run
from tests.reporting.test_advice import result


def finished(folder: Path, noise: float = 0.0, **given: Any) -> Path:
    """A run's folder with embeddings and a result.json; the noise is on the embeddings."""
    rng = np.random.default_rng(1)
    rows = [row._replace(embeddings=row.embeddings + noise * rng.standard_normal((2, 128)).astype(np.float32))
            for row in labeled_clips(distance=0.5)]  # fmt: skip
    write_run(folder, rows)
    write_result(RunLayout(folder).result, result(**given))
    return folder


def test_the_flags_are_the_configurations_keys_with_its_defaults() -> None:
    assert _config(_parser().parse_args(["RUN"])) == EvaluateConfig(tasks=[*TASKS])
    options = ["--tasks", "probe, knn", "--labels", "a.csv", "--label-column", "category", "--fold-column", "fold",
               "--group-pattern", "(.)", "--unit", "window", "--few-shot-samples", "0"]  # fmt: skip
    config = _config(_parser().parse_args(["RUN", *options]))
    assert config.tasks == ["probe", "knn"]
    assert (config.labels, config.label_column, config.fold_column) == ("a.csv", "category", "fold")
    assert (config.group_pattern, config.unit, config.few_shot_samples) == ("(.)", "window", 0)


@pytest.mark.slow
def test_runs_are_evaluated_and_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    coarse = finished(tmp_path / "coarse", noise=3.0, precision="bfloat16", speed=1e5)
    fine = finished(tmp_path / "fine", speed=5e4)
    assert main([str(coarse), str(fine), "--tasks", "probe"]) == 0
    out = capsys.readouterr().out
    assert "30 clips of 3 labels, 5 folds by 30 recordings" in out
    assert "Quality of cpu-balanced-float32: probe accuracy" in out
    assert "cpu-balanced-bfloat16: 100,000 × realtime, moved probe accuracy by -" in out
    for run in (coarse, fine):
        evaluation = json.loads(RunLayout(run).evaluation.read_text())
        own = read_result(RunLayout(run).result)
        assert own.metrics["probe_accuracy"] == evaluation["metrics"]["probe_accuracy"]
        assert own.metrics["realtime_factor"] > 1
        assert own.evaluation is not None
        assert list(own.evaluation.values["probe_accuracy"]) == evaluation["values"]["probe_accuracy"]
        assert (run / "plots" / "confusion.png").read_bytes()[:4] == b"\x89PNG"


def test_a_merged_folder_without_a_result_is_evaluated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path, labeled_clips())
    assert main([str(run), "--tasks", "retrieval"]) == 0
    assert "mAP@R" in capsys.readouterr().out
    assert not RunLayout(run).result.exists()


def sweep(folder: Path) -> Path:
    """A sweep of two jobs, the second with other embeddings, and one that never began."""
    for number, precision in enumerate(("float32", "float16")):
        run = finished(folder / str(number), noise=0.1 * number, precision=precision)
        rows = np.concatenate([block.embeddings for block in read_blocks(str(run))])
        RunLayout(run).statistics.write_bytes(to_npz(EmbeddingStatistics.of(rows), {}))
    RunLayout(folder).sweep.write_text(json.dumps({"jobs": ["0", "1", "2"]}))
    return folder


def distance(folder: Path) -> float:
    """The Fréchet distance of a sweep's two jobs, from their embeddings."""
    first, second = (
        Gaussian.of_rows(np.concatenate([block.embeddings for block in read_blocks(str(folder / job))]))
        for job in ("0", "1")
    )
    return frechet_distance(first, second)


@pytest.mark.slow
def test_a_sweep_is_its_jobs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fad = distance(sweep(tmp_path))
    assert main([str(tmp_path), "--tasks", "probe"]) == 0
    moved = f"cpu-balanced-float16: 100 × realtime, moved FAD by {fad:.4f} and probe accuracy by 0.0 points"
    assert moved in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.usefixtures("prepared_database")
def test_the_jobs_of_a_sweep_get_their_distance_in_mlflow(tmp_path: Path) -> None:
    fad = distance(sweep(tmp_path / "sweep"))
    tracking = TrackingConfig(uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    with experiment_client(tracking, tmp_path) as (client, experiment):
        runs = [client.create_run(experiment).info.run_id for _ in range(2)]
        for job, run_id in enumerate(runs):
            state = TrackingState(str(tracking.uri), experiment, run_id, attempt=1)
            write_tracking(RunLayout(tmp_path / "sweep" / str(job)).tracking, state)
        assert main([str(tmp_path / "sweep"), "--tasks", "knn"]) == 0
        logged = [client.get_run(run_id).data for run_id in runs]
    assert [data.metrics["sweep_fad"] for data in logged] == pytest.approx([0.0, fad], rel=1e-6)
    assert [data.tags["sweep_fad.reference"] for data in logged] == [runs[0], runs[0]]


def test_one_run_that_can_not_be_evaluated_costs_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken, killed = finished(tmp_path / "broken"), finished(tmp_path / "killed", status="interrupted")
    next(RunLayout(broken).embeddings.iterdir()).write_bytes(b"PAR1")
    good = finished(tmp_path / "good")
    assert main([str(broken), str(killed), str(good), "--tasks", "knn"]) == 1
    out, err = capsys.readouterr()
    assert f"error: {broken}: " in err
    assert "cannot be read as Parquet" in err
    assert f"error: {killed}: the run is interrupted, not finished" in err
    assert "kNN" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "nowhere is not there"),
        ([".", "--tasks", "probes"], "evaluate.tasks=probes is not an option"),
        ([".", "--labels", "nowhere.csv"], "evaluate.labels=nowhere.csv does not exist"),
    ],
)
def test_what_can_not_be_done_is_one_sentence(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 1
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


@pytest.mark.slow
@pytest.mark.usefixtures("prepared_database")
def test_the_mlflow_run_of_a_run_gets_its_quality(tmp_path: Path) -> None:
    run = finished(tmp_path / "run")
    tracking = TrackingConfig(uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    with experiment_client(tracking, tmp_path) as (client, experiment):
        run_id = client.create_run(experiment).info.run_id
        write_tracking(RunLayout(run).tracking, TrackingState(str(tracking.uri), experiment, run_id, attempt=1))
        assert main([str(run), "--tasks", "probe"]) == 0
        logged = client.get_run(run_id)
        assert 0 < logged.data.metrics["probe_accuracy"] <= 1
        assert logged.data.tags["evaluation.tasks"] == "probe"
        assert logged.data.tags["evaluation.rows"] == "30"
        files = {file.path for folder in (None, "plots") for file in client.list_artifacts(run_id, folder)}
        assert {"evaluation.json", "plots/confusion.png"} <= files


@pytest.mark.slow
def test_a_run_at_a_url_gets_its_files_there(tmp_path: Path) -> None:
    import fsspec

    store = fsspec.filesystem("memory")
    store.put(str(finished(tmp_path / "run")), "/bucket/run", recursive=True)
    try:
        assert main(["memory://bucket/run", "--tasks", "knn"]) == 0
        evaluation = json.loads(store.cat_file("/bucket/run/evaluation.json"))
        assert evaluation["data"]["rows"] == 30
        assert json.loads(store.cat_file("/bucket/run/result.json"))["metrics"]["knn_accuracy"] > 0
        assert store.exists("/bucket/run/plots/confusion.png")
        assert not store.exists("/bucket/run/.runner/lease.json")
    finally:
        store.rm("/bucket", recursive=True)
