"""MLflow over time: a run's own start and end, sessions that follow one another, stores that were deleted since."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from runner.cli.track import main
from runner.config.schema import TrackingConfig
from runner.contract.result import RunInfo
from runner.contract.spec import DatasetSummary
from runner.output.state.plan_file import begin_attempt, first_attempt_at
from runner.reporting.logged_run import _row
from runner.tracking.calls import log_dataset
from runner.tracking.client import _mlflow_timeouts, store_uri
from runner.tracking.relog import track
from runner.tracking.runs import finish_run, is_logged, open_run
from tests.tracking.test_tracking import LOCAL, info_of, make_run, read_back

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prepared_database")]


def change(run_dir: Path, **values: object) -> RunInfo:
    """Another result.json, as a later attempt leaves it."""
    result = json.loads((run_dir / "result.json").read_text()) | values
    (run_dir / "result.json").write_text(json.dumps(result))
    return info_of(run_dir)


def steps(client: MlflowClient, run_id: str, metric: str) -> list[int]:
    """Of a metric, in the order of time."""
    history = sorted(client.get_metric_history(run_id, metric), key=lambda each: (each.timestamp, each.step))
    return [each.step for each in history]


def test_a_run_begins_and_ends_when_it_did_however_late_it_is_logged(tmp_path: Path) -> None:
    client = MlflowClient(store_uri(LOCAL, tmp_path))
    live = make_run(tmp_path / "live", run_started_at=400.0)
    open_run(LOCAL, tmp_path, live, info_of(live))
    (run,) = read_back(client)
    assert (run.info.status, run.info.start_time, run.info.end_time) == ("RUNNING", 400_000, None)
    finish_run(LOCAL, tmp_path, live)
    finish_run(LOCAL, tmp_path, make_run(tmp_path / "later"))
    times = {(run.info.start_time, run.info.end_time) for run in read_back(client)}
    assert times == {(400_000, 1_010_000), (1_000_000, 1_010_000)}


def test_a_run_that_was_taken_up_began_with_its_first_session(tmp_path: Path) -> None:
    (tmp_path / ".runner").mkdir()
    assert first_attempt_at(tmp_path) is None
    for number, at in enumerate((100.0, 200.0)):
        assert begin_attempt(tmp_path, at) == number + 1
        assert first_attempt_at(tmp_path) == 100.0


def test_a_run_has_its_user_and_source(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", user="ann", git={"commit": "c" * 40, "dirty": False})
    open_run(LOCAL, tmp_path, run_dir, info_of(run_dir))
    (run,) = read_back(MlflowClient(store_uri(LOCAL, tmp_path)))
    tags = {key: value for key, value in run.data.tags.items() if key.startswith(("mlflow.user", "mlflow.source"))}
    assert tags == {
        "mlflow.user": "ann",
        "mlflow.source.name": "vggish-runner",
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": "c" * 40,
    }
    assert run.inputs.dataset_inputs[0].dataset.digest == "d" * 32  # from the start


def test_a_later_sessions_steps_go_on_and_no_spread_is_of_another_sessions_mean(tmp_path: Path) -> None:
    client = MlflowClient(store_uri(LOCAL, tmp_path))
    measured = {"realtime_factor": 100.0, "window_realtime_factor_std": 7.0}
    run_dir = make_run(tmp_path / "run", "interrupted", attempt=1, metrics=measured)
    finish_run(LOCAL, tmp_path, run_dir)
    (first,) = read_back(client)
    run_id = first.info.run_id

    later = change(
        run_dir,
        attempt=2,
        status="finished",
        started_at=2_000.0,
        ended_at=2_010.0,
        metrics={"realtime_factor": 50.0},
    )
    open_run(LOCAL, tmp_path, run_dir, later)
    for _ in range(2):  # cut off before it was noted, and told again
        assert finish_run(LOCAL, tmp_path, run_dir)
        (run,) = read_back(client)
        assert run.data.metrics["realtime_factor"] == 50.0
        assert math.isnan(run.data.metrics["window_realtime_factor_std"])
        assert steps(client, run_id, "realtime_factor") == [0, 1]
        assert steps(client, run_id, "window_realtime_factor") == list(range(10))
        assert "window_realtime_factor_std" not in _row(run).metrics
        state = json.loads((run_dir / "tracking.json").read_text())
        (run_dir / "tracking.json").write_text(json.dumps({**state, "state": "open"}))

    change(run_dir, attempt=3, status="interrupted", ended_at=3_000.0, metrics={"startup_s": 9.0}, throughput_series=[])
    assert finish_run(LOCAL, tmp_path, run_dir)  # it measured nothing: what the session before did stays
    (run,) = read_back(client)
    assert (run.info.status, run.data.metrics["realtime_factor"]) == ("KILLED", 50.0)
    assert run.info.end_time == 3_000_000


def test_a_batch_sizes_step_stays_what_it_is(tmp_path: Path) -> None:
    curve = {"steps": [{"batch_size": 64, "examples_per_s": 9.0, "memory_mib": None}], "batch_size": 64}
    run_dir = make_run(tmp_path / "run", attempt=1, batch_size_curve=curve)
    finish_run(LOCAL, tmp_path, run_dir)
    change(run_dir, attempt=2, started_at=2_000.0)
    finish_run(LOCAL, tmp_path, run_dir)
    client = MlflowClient(store_uri(LOCAL, tmp_path))
    (run,) = read_back(client)
    assert steps(client, run.info.run_id, "batch_size_examples_per_s") == [64, 64]


def test_a_session_that_mlflow_was_not_told_of_is_logged_later(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", "interrupted", attempt=1)
    assert finish_run(LOCAL, tmp_path, run_dir)
    change(run_dir, attempt=2, status="finished")
    assert not is_logged(LOCAL, tmp_path, run_dir)
    assert finish_run(LOCAL, tmp_path, run_dir)
    (run,) = read_back(MlflowClient(store_uri(LOCAL, tmp_path)))
    assert run.info.status == "FINISHED"
    assert is_logged(LOCAL, tmp_path, run_dir)


@pytest.mark.parametrize("how", ["deleted", "another", "trash"])
def test_runs_whose_store_lost_them_are_logged_again(
    how: str, tmp_path: Path, outputs: Path, new_outputs: Callable[[Path], Path]
) -> None:
    """A database that is new in its place, one that has other runs already, and runs that lie in the trash."""
    sweep, lost = tmp_path / "sweep", new_outputs(tmp_path / "lost")
    sweep.mkdir()
    (sweep / "sweep.json").write_text(json.dumps({"run_id": None, "overrides": ["device=cpu,gpu"], "jobs": ["0"]}))
    job = make_run(sweep / "0", attempt=1)
    noted = [job / "result.json", job / "tracking.json", sweep / "sweep.json"]
    result = json.loads(noted[0].read_text())
    result["config"]["paths"]["outputs"] = str(lost)
    noted[0].write_text(json.dumps(result))
    assert track(sweep).startswith("logged, 1 jobs;")
    assert is_logged(LOCAL, lost, job)
    assert "were logged already" in track(sweep)
    if how == "trash":
        outputs, client = lost, MlflowClient(store_uri(LOCAL, lost))
        for run in read_back(client):
            client.delete_run(run.info.run_id)
    else:
        for path in noted:
            path.write_text(path.read_text().replace(str(lost), str(outputs)))
        if how == "another":
            finish_run(LOCAL, outputs, make_run(tmp_path / "another"))
    assert not is_logged(LOCAL, outputs, job)
    assert track(sweep).partition(";")[0] == "logged, 1 jobs"
    found = {run.info.run_id: run for run in read_back(MlflowClient(store_uri(LOCAL, outputs)))}
    parent = found[json.loads((sweep / "sweep.json").read_text())["run_id"]]
    child = found[json.loads((job / "tracking.json").read_text())["run_id"]]
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert (parent.info.status, child.info.status) == ("FINISHED", "FINISHED")


def test_a_run_of_another_version_is_not_logged_and_said_to_be_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = make_run(tmp_path / "old")
    (run_dir / "result.json").write_text('{"schema_version": 3}')
    assert main([str(run_dir), str(tmp_path)]) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert f"{run_dir}/result.json is of version 3 of the runner's files, and this runner reads version 2" in first
    assert "has no result.json: give the folder of a run" in second


def test_a_sweep_begins_and_ends_with_its_jobs(tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    sweep.mkdir()
    record = {"run_id": None, "overrides": ["device=cpu,gpu"], "jobs": ["0"], "started_at": 990.0}
    (sweep / "sweep.json").write_text(json.dumps(record))
    make_run(sweep / "0")
    track(sweep, f"sqlite:///{tmp_path}/mlflow.db")
    runs = read_back(MlflowClient(store_uri(LOCAL, tmp_path)))
    assert [(run.info.start_time, run.info.end_time) for run in runs] == [(990_000, 1_010_000), (1_000_000, 1_010_000)]


def test_the_experiment_is_the_given_one_else_the_environments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = MlflowClient(store_uri(LOCAL, tmp_path))

    def logged(name: str, tracking: TrackingConfig = LOCAL) -> str:
        finish_run(tracking, tmp_path, make_run(tmp_path / name))
        run = client.get_run(json.loads((tmp_path / name / "tracking.json").read_text())["run_id"])
        return client.get_experiment(run.info.experiment_id).name

    assert logged("plain") == "vggish-runner"
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", client.create_experiment("by number", str(tmp_path / "files")))
    assert logged("number") == "by number"
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "by name")
    assert logged("name") == "by name"
    assert logged("setting", replace(LOCAL, experiment="mine")) == "mine"


@pytest.mark.parametrize(
    ("root", "kind"),
    [("/data/clips", "local"), ("s3://bucket/clips", "s3"), ("gs://bucket/clips", "gs"), ("hf://buckets/a/b", "hf"),
     ("http://host/clips", "http"), ("https://host/clips", "http")],
)  # fmt: skip
def test_a_data_sets_source_is_of_its_kind(root: str, kind: str) -> None:
    class Client:
        def log_inputs(self, run_id: str, inputs: list) -> None:
            self.dataset = inputs[0].dataset

    client = Client()
    log_dataset(client, "run", DatasetSummary(root, "d", 1))  # type: ignore[arg-type]
    assert client.dataset.source_type == kind
    if kind != "hf":  # of which MLflow knows data sets by name alone
        from mlflow.data import get_source

        source = get_source(client.dataset)
        assert root in (getattr(source, "uri", None), getattr(source, "url", None))


def test_a_time_limit_of_mlflows_environment_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    key = "MLFLOW_HTTP_REQUEST_TIMEOUT"
    monkeypatch.delenv(key, raising=False)
    with _mlflow_timeouts(5.0):
        assert os.environ[key] == "5"
    assert key not in os.environ
    monkeypatch.setenv(key, "600")
    with _mlflow_timeouts(5.0):
        assert os.environ[key] == "600"
    assert os.environ[key] == "600"


def test_logging_later_ends_at_ctrl_c_without_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(place: str, uri: str | None) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("runner.cli.track._track", interrupt)
    assert main([str(tmp_path)]) == 130
    assert capsys.readouterr().err == "stopped; rerun the same command to log the rest\n"
