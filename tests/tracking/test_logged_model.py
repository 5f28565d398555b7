"""The exported model logged with its run, without TensorFlow: the SavedModel is a stand-in."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow.models import Model
from mlflow.tracking import MlflowClient

from runner.cli.export_run import config_of, main
from runner.config.schema import RandomWeights
from runner.core.errors import ConfigError
from runner.tracking import logged_model
from runner.tracking.client import TrackingError, store_uri
from runner.tracking.logged_model import SAVED_MODEL
from runner.tracking.runs import finish_run
from tests.results import make_result
from tests.tracking.test_tracking import LOCAL, make_run, read_back

pytestmark = pytest.mark.usefixtures("prepared_database")

WITH_MODEL = replace(LOCAL, log_model=True)


@pytest.mark.slow
def test_a_finished_runs_model_is_logged_with_its_signature(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    def export(run_dir: Path, folder: Path) -> None:
        folder.mkdir()
        (folder / "saved_model.pb").write_bytes(b"graph")

    monkeypatch.setattr(logged_model, "_export_apart", export)
    monkeypatch.setitem(sys.modules, "tensorflow", None)  # to import it would be an error
    versions = {"tensorflow": "2.21.0", "numpy": "2.0.0"}
    finish_run(WITH_MODEL, tmp_path, make_run(tmp_path / "run", versions=versions))
    finish_run(WITH_MODEL, tmp_path, make_run(tmp_path / "stopped", "interrupted", versions=versions))
    client = MlflowClient(store_uri(LOCAL, tmp_path))
    outputs = {run.info.status: [each.model_id for each in run.outputs.model_outputs] for run in read_back(client)}
    assert outputs["KILLED"] == []
    model = client.get_logged_model(outputs["FINISHED"][0])
    assert model.status == "READY"
    folder = Path(model.artifact_location.removeprefix("file://"))
    assert (folder / "artifacts" / SAVED_MODEL / "saved_model.pb").read_bytes() == b"graph"
    told = Model.load(str(folder))
    assert (told.run_id, told.model_id) == (model.source_run_id, model.model_id)
    assert json.loads(told.signature.to_dict()["outputs"])[0]["tensor-spec"] == {
        "dtype": "float32",
        "shape": [-1, -1, 128],
    }
    assert "tensorflow==2.21.0" in (folder / "requirements.txt").read_text()
    told = " ".join(str(each.message) for each in recwarn)  # a person would see that
    assert "predict function" not in told, told
    assert "nput example was not" not in told, told


def test_a_model_that_can_not_be_exported_is_tried_again_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(run_dir: Path, folder: Path) -> None:
        raise TrackingError("the model is not logged")

    monkeypatch.setattr(logged_model, "_export_apart", refuse)
    run_dir = make_run(tmp_path / "run")
    with pytest.raises(TrackingError, match="not logged"):
        finish_run(WITH_MODEL, tmp_path, run_dir)
    (run,) = read_back(MlflowClient(store_uri(LOCAL, tmp_path)))
    assert run.info.status == "FINISHED"  # all else is there
    assert finish_run(LOCAL, tmp_path, run_dir)
    assert len(read_back(MlflowClient(store_uri(LOCAL, tmp_path)))) == 1


def test_what_is_exported_is_what_the_run_embedded_with(tmp_path: Path) -> None:
    chosen = {"precision": {"effective": "bfloat16"}, "weights": {"source": "random", "seed": 7}}
    config = config_of(make_result(chosen), tmp_path / "model")
    assert (config.weights, config.precision.name) == (RandomWeights(seed=7), "bfloat16")
    assert config.output.dir == str(tmp_path / "model")


def test_an_export_that_fails_says_why_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(config: object) -> None:
        raise ConfigError("weights=file needs weights.path")

    monkeypatch.setattr("runner.inference.saved_model.export", refuse)
    assert main(str(make_run(tmp_path / "run")), str(tmp_path / "model")) == 1
    assert capsys.readouterr().err == "weights=file needs weights.path\n"
