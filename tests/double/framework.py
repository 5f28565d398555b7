"""What the double puts in the place of TensorFlow, in its worker's process.

The few questions that the runner asks of TensorFlow around a session are answered here: there are no GPUs.  Whatever
else is asked of it is an ``AttributeError`` that names it.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import logging
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from runner.core.cache import remembered
from runner.devices.selection import choose_device
from tests.double.session import (
    FAULT,
    DoubleProgram,
    DoubleSession,
    draw_arrays,
    embed,
    load_checkpoint,
    remembered_log_mel,
    weights_checksum,
)
from tests.double.tfrecords import TFRecordWriter, load_messages

SITE = Path(__file__).parent / "site"
"""Whose ``sitecustomize`` has a Ray's processes take the double, where it is on their ``PYTHONPATH``."""

GPUS = "DOUBLE_GPUS"
"""Environment variable: GPUs that the machine seems to have."""


def take_the_place_of_tensorflow() -> None:
    """Have every session of this process be the double's, and TensorFlow never be imported."""
    from runner.devices import load
    from runner.engines import embedder, embedder_process, local
    from runner.inference import builder, startup
    from runner.models.vggish import model, program
    from runner.vggish import reference

    sys.modules["tensorflow"] = _StandIn("tensorflow")
    sys.meta_path.insert(0, _WithoutPandas())
    model.load_checkpoint, model.random_weights, model.weights_checksum = load_checkpoint, draw_arrays, weights_checksum
    program.VGGishProgram, builder.EmbeddingSession = DoubleProgram, DoubleSession
    reference.reference_embeddings, reference.reference_log_mel = embed, remembered_log_mel
    model.remembered_calibration = lambda folder: (1.0, 1.0)  # the checkout's cache keeps what was measured
    startup.remembered = _apart
    embedder.matmul_peak = lambda session, kind, precision, seconds: 1.0
    if gpus := int(os.environ.get(GPUS, "0")):  # each has its process, whose device is the double's
        local.usable_gpus = lambda: list(range(gpus))
        builder.choose_device = lambda name, devices, **asked: choose_device("cpu", devices)
        embedder_process.embed_main = embed_main
    load.BackgroundLoad.share = lambda self, own_cpu_s: 0.0  # other tests run beside it, and must not keep it unranked


def begin() -> None:
    """Take the place of TensorFlow, and lie as the environment says."""
    take_the_place_of_tensorflow()
    if fault := os.environ.get(FAULT):
        from tests.stress.mutations import install

        install(fault, DoubleSession)


def embed_main(*arguments: Any) -> None:
    """``runner.engines.embedder_process.embed_main`` with the double."""
    from runner.engines import embedder_process

    real = embedder_process.embed_main
    begin()
    real(*arguments)


def take_its_place_in_rays_processes() -> None:
    """Have the actors of a Ray that this process starts do so as well."""
    os.environ["PYTHONPATH"] = os.pathsep.join([str(SITE), os.environ.get("PYTHONPATH", "")])


def _apart(path: Path, *arguments: Any, **options: Any) -> Any:
    """``runner.core.cache.remembered`` in a file of the double's own: real runs must not find its figures."""
    return remembered(path.with_name(f"double-{path.name}"), *arguments, **options)


class _WithoutPandas:
    """Says that there is no pandas: the worker has no need of it, and pyarrow would import it, which takes 0.3 s."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> None:
        if name == "pandas":
            raise ModuleNotFoundError(name, name=name)


class _StandIn(ModuleType):
    """A module ``tensorflow`` on a machine with a CPU alone."""

    __version__ = importlib.metadata.version("tensorflow")
    config = SimpleNamespace(
        list_physical_devices=lambda kind: [],
        set_soft_device_placement=lambda enabled: None,
        set_visible_devices=lambda devices, kind: None,
        threading=SimpleNamespace(
            set_intra_op_parallelism_threads=lambda threads: None,
            set_inter_op_parallelism_threads=lambda threads: None,
        ),
    )
    test = SimpleNamespace(is_built_with_cuda=lambda: False)

    io = SimpleNamespace(TFRecordWriter=TFRecordWriter)

    @functools.cached_property
    def train(self) -> SimpleNamespace:
        return load_messages()

    @staticmethod
    def get_logger() -> logging.Logger:
        return logging.getLogger("tensorflow")

    @staticmethod
    def device(name: str) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()
