"""Logs the exported model with a run (``tracking.log_model``); ``mlflow.pyfunc.load_model`` has it embed waveforms.

The SavedModel is made by a process of its own, ``python -m runner.cli.export_run RUN_DIR FOLDER``: MLflow's side never
imports TensorFlow.
"""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from runner.contract.files import read_result
from runner.core.layout import RunLayout
from runner.core.paths import PACKAGE
from runner.tracking.client import TrackingError

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

_NAME = "vggish"

_CODE = PACKAGE / "cli" / "pyfunc_model.py"

_EXPORT_S = 900.0

SAVED_MODEL = "saved_model"
"""Name of the model's artifact."""


def log_model(client: MlflowClient, experiment_id: str, run_id: str, run_dir: Path) -> None:
    """Export a finished run's model, and log it with its signature as the run's output.

    Raises:
        TrackingError: it can't be exported.
    """
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus

    with TemporaryDirectory(prefix="vggish-model-") as folder:
        saved = Path(folder) / SAVED_MODEL
        _export_apart(run_dir, saved)
        model_id = client.create_logged_model(experiment_id, _NAME, run_id).model_id
        try:
            packages = read_result(RunLayout(run_dir).result).versions
            save(saved, Path(folder) / "model", packages, run_id=run_id, model_id=model_id)
            client.log_model_artifacts(model_id, str(Path(folder) / "model"))
        except BaseException:
            client.finalize_logged_model(model_id, LoggedModelStatus.FAILED)
            raise
        client.finalize_logged_model(model_id, LoggedModelStatus.READY)
        client.log_outputs(run_id, [LoggedModelOutput(model_id, 0)])


def save(saved_model: Path, folder: Path, packages: Mapping[str, str], *, run_id: str, model_id: str) -> None:
    """Make an MLflow model of a SavedModel.

    Args:
        saved_model: as ``vggish-runner export`` writes it.
        folder: where the model goes.
        packages: versions of the run's packages.
        run_id: whose model it is.
        model_id: of the logged model.
    """
    import numpy as np
    from mlflow.models import Model, ModelSignature
    from mlflow.pyfunc import save_model
    from mlflow.types import Schema, TensorSpec

    kind = np.dtype(np.float32)
    waveforms, embeddings = TensorSpec(kind, (-1, -1)), TensorSpec(kind, (-1, -1, 128))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of type hints and examples: the signature is given
        save_model(
            str(folder),
            python_model=str(_CODE),
            artifacts={SAVED_MODEL: str(saved_model)},
            signature=ModelSignature(Schema([waveforms]), Schema([embeddings])),
            pip_requirements=[f"{name}=={packages[name]}" for name in ("tensorflow", "numpy") if name in packages],
            mlflow_model=Model(run_id=run_id, model_id=model_id),
        )


def _export_apart(run_dir: Path, folder: Path) -> None:
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    environment["PYTHONPATH"] = os.pathsep.join([str(PACKAGE.parent), environment.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "runner.cli.export_run", str(run_dir), str(folder)]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_EXPORT_S)
    except subprocess.TimeoutExpired as error:
        raise TrackingError(f"the model is not logged: exporting it took more than {_EXPORT_S:.0f} s") from error
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise TrackingError(f"the model is not logged, as it could not be exported ({said[-1][:300]})")
