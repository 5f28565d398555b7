"""MLflow: what is logged, to sqlite and to a real server; and what happens when the store is not there."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from runner.config.command_line import command_line
from runner.config.schema import AutoWeights, FolderDataset, RunConfig, TrackingConfig, VGGishConfig
from runner.contract.files import read_result
from runner.contract.result import RunInfo
from runner.core.errors import ConfigError
from runner.core.redact import without_credentials
from runner.tracking.client import TrackingError, store_uri, ui_command
from runner.tracking.record import record_from_result
from runner.tracking.runs import finish_run, open_run
from runner.tracking.sweeps import finish_sweep, open_sweep
from tests.commands import PROJECT, start
from tests.results import make_result, to_json
from tests.tracking_server import TrackingServer

pytestmark = pytest.mark.usefixtures("prepared_database")

LOCAL = TrackingConfig()


def config_values(**tracking: object) -> dict:
    config = RunConfig(model=VGGishConfig(), weights=AutoWeights(), dataset=FolderDataset(root="/data"))
    return asdict(replace(config, tracking=replace(config.tracking, **tracking)))


def make_run(folder: Path, status: str = "finished", **changes: object) -> Path:
    """A run's folder with its files."""
    folder.mkdir(parents=True)
    (folder / "runner.log").write_text("log\n")
    (folder / "embeddings").mkdir()
    (folder / "embeddings/part-00000.parquet").write_bytes(b"rows")
    (folder / ".hydra").mkdir()
    (folder / ".hydra/config.yaml").write_text("device: cpu\n")
    result = {
        "status": status,
        "run_name": "cpu-balanced-float32",
        "run_dir": str(folder),
        "started_at": 1_000.0,
        "ended_at": 1_010.0,
        "config": config_values(),
        "overrides": ["device=cpu", "tracking.uri=http://me:planted@host/x?token=planted", "dataset.root=/my data"],
        "device": {"requested": "cpu", "effective": "cpu", "name": "CPU", "reason": "asked", "fallback_reason": None},
        "precision": {"requested": "float32", "effective": "float32", "reason": "asked"},
        "weights": {"source": "random", "checksum": "abc", "is_random": True, "seed": 0, "reason": "asked"},
        "dataset": {"root": "/data", "digest": "d" * 32, "clips": 3, "is_demo": False, "ignored": {}},
        "resolved": {"memory.batch_size": 64},
        "metrics": {"realtime_factor": 100.0, "clips_embedded": 3, "clips_skipped": 0},
        "throughput_series": [{"t_s": t, "realtime_factor": 90.0 + t, "examples_per_s": 5.0} for t in range(5)],
        **changes,
    }
    (folder / "result.json").write_text(json.dumps(to_json(result)))
    return folder


def info_of(run_dir: Path) -> RunInfo:
    """A run's description, by its result.json."""
    return read_result(run_dir / "result.json").info


def test_the_store_is_the_given_one_else_the_environments_else_local(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert store_uri(LOCAL, tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    with pytest.raises(ConfigError, match=r"tracking\.uri"):
        store_uri(TrackingConfig(name="server"), tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://other:5000")
    assert store_uri(TrackingConfig(name="server"), tmp_path) == "http://other:5000"
    assert store_uri(TrackingConfig(uri="http://mine"), tmp_path) == "http://mine"


def test_the_ui_command_is_quoted_and_has_no_credentials() -> None:
    local = "mlflow ui --backend-store-uri 'sqlite:////a b/mlflow.db' --host 127.0.0.1"
    assert ui_command("sqlite:////a b/mlflow.db") == local
    assert ui_command("http://me:planted@host:5000") == "open http://host:5000"


def test_credentials_are_taken_out_and_the_rest_is_left() -> None:
    assert without_credentials("see http://u:p@host:1/x?token=t now") == "see http://host:1/x now"
    assert without_credentials("sqlite:////a/b.db") == "sqlite:////a/b.db"
    assert command_line(["dataset.root=/my data"]) == "python -m runner 'dataset.root=/my data'"


def test_a_record_keeps_to_mlflows_limits_and_names_the_failure() -> None:
    failure = {"kind": "signal", "signal": "SIGKILL", "message": "killed", "log_tail": "x" * 9000 + "last"}
    record = record_from_result(make_result({"status": "failed", "config": config_values(), "failure": failure}))
    assert record.status == "FAILED"
    assert record.tags["failure.signal"] == "SIGKILL"
    assert record.tags["failure.log_tail"].endswith("last")
    assert max(map(len, record.tags.values())) <= 5000
    assert record.params["memory.gpu_memory_fraction"] == "0.8"


def read_back(client: MlflowClient) -> list:
    experiment = client.get_experiment_by_name("vggish-runner")
    return client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"])


def check_logged(client: MlflowClient) -> None:
    (run,) = read_back(client)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "cpu-balanced-float32"
    assert run.data.params["dataset.root"] == "/data"
    assert run.data.params["actual.memory.batch_size"] == "64"
    assert run.data.metrics["realtime_factor"] == 100.0
    assert run.data.tags["weights.random"] == "true"
    assert [point.step for point in client.get_metric_history(run.info.run_id, "window_realtime_factor")] == [
        0, 1, 2, 3, 4,
    ]  # fmt: skip
    assert run.inputs.dataset_inputs[0].dataset.digest == "d" * 32
    paths = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert paths == {"config", "runner.log", "result.json"}
    assert "planted" not in str(run.data.params) + str(run.data.tags)


def test_a_run_in_the_local_store(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run")
    open_run(LOCAL, tmp_path, run_dir, replace(info_of(run_dir), run_name="early name"))
    client = MlflowClient(store_uri(LOCAL, tmp_path))
    (early,) = read_back(client)
    assert early.info.status == "RUNNING"
    assert early.data.tags["device.requested"] == "auto"
    assert finish_run(LOCAL, tmp_path, run_dir)
    check_logged(client)
    assert not finish_run(LOCAL, tmp_path, run_dir)  # nothing twice
    check_logged(client)
    assert (tmp_path / "mlartifacts").is_dir()
    assert "planted" not in (run_dir / "tracking.json").read_text()


def test_embeddings_are_logged_where_that_is_asked_for(tmp_path: Path) -> None:
    finish_run(replace(LOCAL, log_embeddings=True), tmp_path, make_run(tmp_path / "run"))
    client = MlflowClient(store_uri(LOCAL, tmp_path))
    (run,) = read_back(client)
    assert [item.path for item in client.list_artifacts(run.info.run_id, "embeddings")] == [
        "embeddings/part-00000.parquet"
    ]


@pytest.mark.parametrize(
    ("statuses", "interrupted", "expected"),
    [(["finished", "finished"], False, "FINISHED"), (["finished", "failed"], False, "FAILED"),
     (["finished", "interrupted"], True, "KILLED")],
)  # fmt: skip
def test_the_parent_of_a_sweep_says_how_its_jobs_went(
    tmp_path: Path, statuses: list[str], interrupted: bool, expected: str
) -> None:
    folder = tmp_path / "sweep"
    folder.mkdir()
    record = {"run_id": None, "overrides": ["device=cpu,gpu"], "jobs": [], "swept": {"device.name": ["cpu", "gpu"]}}
    record |= {"user": "anna", "git": {"commit": "c" * 40}}
    record["fads"] = [{"job": job, "reference": "0", "fad": fad} for job, fad in (("0", 0.0), ("1", 0.0003))]
    (folder / "sweep.json").write_text(json.dumps(record))
    open_sweep(LOCAL, tmp_path, folder, ["device=cpu,gpu"])
    parent_id = json.loads((folder / "sweep.json").read_text())["run_id"]
    jobs = [make_run(folder / str(number), status) for number, status in enumerate(statuses)]
    for job in jobs:
        finish_run(LOCAL, tmp_path, job, parent_run_id=parent_id)
    for _ in range(2):  # as runner.tracking.relog does
        finish_sweep(LOCAL, tmp_path, folder, jobs, interrupted=interrupted)
    runs = read_back(MlflowClient(store_uri(LOCAL, tmp_path)))
    parent = next(run for run in runs if run.info.run_id == parent_id)
    assert parent.info.status == expected
    assert parent.data.tags["sweep.finished"] == str(statuses.count("finished"))
    first = json.loads((jobs[0] / "tracking.json").read_text())["run_id"]
    for job, fad in zip(jobs, (0.0, 0.0003), strict=True):
        run_id = json.loads((job / "tracking.json").read_text())["run_id"]
        data = next(run.data for run in runs if run.info.run_id == run_id)
        assert (data.metrics["sweep_fad"], data.tags["sweep_fad.reference"]) == (fad, first)
    row = f"| [cpu-balanced-float32](#/experiments/{parent.info.experiment_id}/runs/{first}?"
    assert row in parent.data.tags["mlflow.note.content"]
    assert parent.data.tags["best.run_id"] == first
    assert (parent.data.tags["mlflow.user"], parent.data.tags["mlflow.source.git.commit"]) == ("anna", "c" * 40)
    assert parent.data.params["swept.device"] == "cpu, gpu"
    assert parent.data.params.get("actual.memory") == (None if interrupted else "balanced")  # later jobs may differ
    assert [each.dataset.digest for each in parent.inputs.dataset_inputs] == ["d" * 32]
    assert parent.data.metrics["best_realtime_factor"] == 100.0
    assert sum(run.data.tags.get("mlflow.parentRunId") == parent_id for run in runs) == 2


@pytest.mark.slow
def test_a_sweeps_parent_is_taken_up_where_the_store_has_it(tmp_path: Path) -> None:
    path = tmp_path / "sweep.json"
    path.write_text(json.dumps({"run_id": None, "overrides": ["device=cpu,gpu"], "jobs": []}))
    ids = []
    for outputs in (tmp_path, tmp_path, tmp_path / "another"):
        open_sweep(LOCAL, outputs, tmp_path, ["device=cpu,gpu"], "s3://bucket/sweep")
        ids.append(json.loads(path.read_text())["run_id"])
    assert ids[0] == ids[1] != ids[2]
    (parent,) = read_back(MlflowClient(store_uri(LOCAL, tmp_path / "another")))
    assert (parent.info.run_id, parent.data.tags["run_dir"]) == (ids[2], "s3://bucket/sweep")


FINISH = """
import sys
from pathlib import Path
from runner.config.schema import TrackingConfig
from runner.tracking.runs import finish_run
finish_run(TrackingConfig(), Path(sys.argv[1]), Path(sys.argv[2]))
"""


@pytest.mark.slow
def test_four_first_runs_at_once_on_a_fresh_database(tmp_path: Path) -> None:
    (tmp_path / "finish.py").write_text(FINISH)
    outputs, path = tmp_path / "outputs", f"{tmp_path}{os.pathsep}{PROJECT}"
    folders = [make_run(tmp_path / str(number)) for number in range(4)]
    processes = [start(str(outputs), str(folder), command="finish", PYTHONPATH=path) for folder in folders]
    assert [process.wait(timeout=120) for process in processes] == [0, 0, 0, 0]
    assert len(read_back(MlflowClient(store_uri(LOCAL, outputs)))) == 4


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of MLflow's own server."""
    with TrackingServer(tmp_path_factory.mktemp("server")) as server:
        yield server.uri


@pytest.mark.slow
def test_a_run_on_a_real_server(server: str, tmp_path: Path) -> None:
    tracking = TrackingConfig(name="server", uri=server)
    outputs = tmp_path / "outputs"
    finish_run(tracking, outputs, make_run(tmp_path / "run"))
    check_logged(MlflowClient(server))
    assert not (outputs / "mlflow.db").exists()


@pytest.fixture
def mute() -> Iterator[str]:
    """A server that accepts and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://me:planted@127.0.0.1:{listening.getsockname()[1]}"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mute", "closed"])
def test_a_store_that_is_down_costs_seconds(kind: str, mute: str, tmp_path: Path) -> None:
    uri = mute if kind == "mute" else "http://me:planted@127.0.0.1:9"
    tracking = TrackingConfig(name="server", uri=uri, timeout_s=1.0)
    run_dir = make_run(tmp_path / "run")
    started = time.monotonic()
    with pytest.raises(TrackingError) as refused:
        finish_run(tracking, tmp_path, run_dir)
    assert time.monotonic() - started < 20
    assert "planted" not in str(refused.value)
    assert not (run_dir / "tracking.json").exists()


@pytest.mark.slow
def test_a_locked_database_costs_seconds(tmp_path: Path) -> None:
    import sqlite3

    finish_run(LOCAL, tmp_path, make_run(tmp_path / "first"))
    holder = sqlite3.connect(tmp_path / "mlflow.db")
    holder.execute("BEGIN EXCLUSIVE")
    started = time.monotonic()
    with pytest.raises(TrackingError, match="locked"):
        finish_run(replace(LOCAL, timeout_s=1.0), tmp_path, make_run(tmp_path / "second"))
    assert time.monotonic() - started < 20
    holder.rollback()
    assert finish_run(LOCAL, tmp_path, tmp_path / "second")
