"""Shared fixtures: real audio where it is, and the command line as a user runs it."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sys
from collections.abc import Callable
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import soundfile
from filelock import FileLock

from tests.commands import PROJECT, Done, environment
from tests.commands import run as run_command
from tests.fork_server import SHARED, server_folder

if TYPE_CHECKING:
    from runner.inference.session import EmbeddingSession

__all__ = ["PROJECT", "Done", "environment", "run_command"]
AUDIO = PROJECT.parent / "shared" / "audio"
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # every fresh process would compile the package anew
sys.dont_write_bytecode = False
os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"  # read by gcsfs when imported; it needs gRPC of an emulator


class _KerasLater(MetaPathFinder, Loader):
    """Refuses Keras to TensorFlow's own import, as ``import_tensorflow`` does: it takes nearly as long as all else."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        tensorflow = getattr(sys.modules.get("tensorflow"), "__spec__", None)
        if fullname != "keras" or not getattr(tensorflow, "_initializing", False):
            return None
        if spec := PathFinder.find_spec(fullname, path):  # TensorFlow asks for its folder
            spec.loader = self
        return spec

    def exec_module(self, module: ModuleType) -> None:
        raise ImportError(f"{module.__name__} is not loaded while TensorFlow is imported")


sys.meta_path.insert(0, _KerasLater())


def pytest_configure(config: pytest.Config) -> None:
    """Have all processes of this test session share a fork server."""
    if not hasattr(config, "workerinput"):
        stack = contextlib.ExitStack()
        os.environ[SHARED] = str(stack.enter_context(server_folder()))
        config.add_cleanup(stack.close)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what starts commands as slow; put groups and long files first, so that test processes end together."""
    for item in items:
        if item.path.parent.name == "end_to_end" or item.path.stem.startswith("test_object_"):
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: _turn(item.path))


_TENSORFLOW = (
    ("inference/", "models/", "vggish/"),
    (
        *("stress/test_mutations", "pipeline/test_independence", "pipeline/test_kinds", "yamnet/", "converters/"),
        *("audio/test_resample", "cli/test_fad_selftest", "devices/test_cuda", "end_to_end/test_export"),
        *("output/test_formats", "statistics/test_files", "test_docs", "end_to_end/test_evaluate"),
        *("end_to_end/test_numbers", "cli/test_doctor"),
    ),
)
"""Beginnings of the paths of tests that import TensorFlow into their own process: two halves, which take as long."""

_LONG = (
    *("runs", "resume", "faults", "object_sweep", "arguments", "browser"),
    *("object_merge", "object_input", "object_output", "partitions", "tracking_sessions"),
)
"""Modules that take longest, in that order, besides the groups."""


def _turn(path: Path) -> int:
    if group := _group(path.relative_to(PROJECT).as_posix()):
        return _GROUPS.index(group)
    name = path.stem.removeprefix("test_")
    if name in _LONG:
        return len(_GROUPS) + _LONG.index(name)
    return len(_GROUPS) + len(_LONG) + (path.parent.name != "end_to_end" and not name.startswith("object_"))


_GROUPS = ("ray", *(f"tensorflow {number}" for number in range(len(_TENSORFLOW))))


def _group(file: str) -> str | None:
    """Return the group of a test file that goes to one test process with the others of its group.

    Tests about Ray look for its processes by name; TensorFlow and the first session take six seconds in a process.
    """
    if "ray" in Path(file).stem.split("_"):
        return "ray"
    below = file.removeprefix("tests/")
    halves = (number for number, beginnings in enumerate(_TENSORFLOW) if below.startswith(beginnings))
    return next((f"tensorflow {number}" for number in halves), None)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Distribute files in their order, a group to one test process."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return _group(file) or file

    config.option.loadscopereorder = False  # which would have files of few tests, mostly long ones, come last
    return Scheduling(config, log) if config.option.dist == "loadfile" else None


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
def tf() -> ModuleType:
    """TensorFlow, which takes seconds to import: only where a test needs it."""
    import tensorflow

    return tensorflow


@pytest.fixture
def placeable(tf: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model can be placed in this process although its TensorFlow uses devices: the numbers of threads stay."""
    for name in ("set_intra_op_parallelism_threads", "set_inter_op_parallelism_threads"):
        monkeypatch.setattr(tf.config.threading, name, lambda threads: None)


@pytest.fixture(scope="session")
def weights() -> dict[str, np.ndarray]:
    """Random weights."""
    from runner.vggish.arrays import random_weights

    return random_weights(7)


@pytest.fixture(scope="session")
def vggish(weights: dict[str, np.ndarray]) -> EmbeddingSession:
    """A session on the CPU in float32."""
    from tests.reference import make_session

    return make_session(weights)


@pytest.fixture(scope="session")
def exact(weights: dict[str, np.ndarray]) -> np.ndarray:
    """The reference's embeddings of the fixed signals with these weights, [16, 128], which take two seconds."""
    from runner.models.signals import fixed_signals
    from runner.vggish.reference import reference_embeddings

    return reference_embeddings(weights, fixed_signals())


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for ``paths.models`` with the reference's answers for ``weights.seed=7``, which take 8 s to compute."""
    from runner.core.layout import CACHE
    from runner.models.answers import AnswerCache
    from runner.models.signals import fixed_signals
    from runner.models.vggish.model import VGGish
    from tests import golden

    folder, known = tmp_path_factory.mktemp("models"), golden.load()
    key = f"{VGGish().reference_version} {known['weights']} float32"
    AnswerCache(folder / CACHE).get(key, fixed_signals(), lambda windows: known["embeddings"])
    return folder


@pytest.fixture(scope="session")
def new_outputs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """Makes a folder for ``paths.outputs`` whose MLflow database has its tables: to create them takes seconds."""
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    database = shared / "mlflow.db"

    def make(folder: Path) -> Path:
        with FileLock(shared / "mlflow.lock"):
            if not database.exists():
                from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

                store = SqlAlchemyStore(f"sqlite:///{own}/new.db", str(own / "artifacts"))
                store.engine.dispose()
                (own / "new.db").rename(database)
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
