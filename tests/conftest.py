"""Shared fixtures: real audio where it is, and the command line as a user runs it."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import soundfile
from filelock import FileLock

from tests.commands import PROJECT, Done, environment
from tests.commands import run as run_command

if TYPE_CHECKING:
    from runner.inference.session import VGGishSession

__all__ = ["PROJECT", "Done", "environment", "run_command"]
AUDIO = PROJECT.parent / "shared" / "audio"
if (
    "PYTEST_XDIST_WORKER" in os.environ
):  # several processes share the cores: TensorFlow's and NumPy's threads don't add up
    os.environ |= dict.fromkeys(("TF_NUM_INTRAOP_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # every fresh process would compile the package anew
sys.dont_write_bytecode = False
os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"  # read by gcsfs when imported; it needs gRPC of an emulator


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What starts commands is slow; what takes longest comes first."""
    for item in items:
        if item.path.parent.name == "end_to_end" or item.path.stem.startswith("test_object_"):
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: item.path.parent.name != "end_to_end")


@pytest.fixture(scope="module", autouse=True)
def _one_ray_at_a_time(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Modules about Ray look for its processes by their names: in test processes at once they take turns."""
    if "PYTEST_XDIST_WORKER" not in os.environ or "ray" not in request.path.stem.split("_"):
        yield
        return
    with FileLock(tmp_path_factory.getbasetemp().parent / "ray.lock"):
        yield


@pytest.fixture(autouse=True)
def _streams_stay_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Hydra sets logging up it shuts all handlers down, and absl's (TensorFlow's) closes pytest's own stream."""
    monkeypatch.setattr(logging, "shutdown", lambda handlers=(): None)


@pytest.fixture(scope="session")
def audio() -> Path:
    """The folder of real audio beside the checkout."""
    if not AUDIO.is_dir():
        pytest.skip(f"no real audio at {AUDIO}")
    return AUDIO


@pytest.fixture(scope="session")
def few_clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six clips of two seconds at 16 kHz in two folders: 12 examples, decoded in no time."""
    folder = tmp_path_factory.mktemp("few") / "clips"
    random = np.random.default_rng(0)
    for number in range(6):
        path = folder / "ab"[number % 2] / f"{number}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, random.uniform(-0.5, 0.5, 32_000), 16_000)
    return folder


@pytest.fixture(scope="session")
def weights() -> dict[str, np.ndarray]:
    """Random weights."""
    from runner.vggish.arrays import random_weights

    return random_weights(7)


@pytest.fixture(scope="session")
def vggish(weights: dict[str, np.ndarray]) -> VGGishSession:
    """A session on the CPU in float32."""
    from tests.reference import make_session

    return make_session(weights)


@pytest.fixture(scope="session")
def new_outputs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """Makes a folder for ``paths.outputs`` whose MLflow database has its tables: to create them takes seconds."""
    database = tmp_path_factory.mktemp("mlflow") / "mlflow.db"

    def make(folder: Path) -> Path:
        if not database.exists():
            from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

            store = SqlAlchemyStore(f"sqlite:///{database}", str(database.parent / "artifacts"))
            store.engine.dispose()
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(database, folder / database.name)
        return folder

    return make


@pytest.fixture
def outputs(tmp_path: Path, new_outputs: Callable[[Path], Path]) -> Path:
    """A test's own folder for ``paths.outputs``, with a prepared MLflow database."""
    return new_outputs(tmp_path / "outputs")


@pytest.fixture
def prepared_database(tmp_path: Path, new_outputs: Callable[[Path], Path]) -> None:
    """A test's folder is one for ``paths.outputs``, with a prepared MLflow database."""
    new_outputs(tmp_path)
