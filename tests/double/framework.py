"""What the double puts in the place of TensorFlow, in its worker's process.

The few questions that the runner asks of TensorFlow around a session are answered here: there are no GPUs.  Whatever
else is asked of it is an ``AttributeError`` that names it.  TFRecords are TensorFlow's own, which they alone import.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import logging
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from runner.core.cache import remembered
from tests.double.session import DoubleProgram, DoubleSession, draw_arrays, embed


def take_the_place_of_tensorflow() -> None:
    """Have every session of this process be the double's, and TensorFlow never be imported."""
    from runner.devices import load
    from runner.engines import local
    from runner.inference import builder, startup
    from runner.output import writer
    from runner.vggish import answers
    from runner.weights import loading
    from runner.weights.loading import RandomInit
    from runner.weights.selection import WeightsChoice

    def init_random_weights(choice: WeightsChoice) -> RandomInit | None:
        if choice.source != "random":
            return None
        seed = choice.seed or 0
        return RandomInit(draw_arrays(seed), f"{seed:064x}")

    sys.modules["tensorflow"] = _StandIn("tensorflow")
    writer.TfrecordShards = _with_tensorflow(writer.TfrecordShards)
    startup.init_random_weights = loading.init_random_weights = init_random_weights
    builder.Program, builder.VGGishSession = DoubleProgram, DoubleSession
    answers.reference_embeddings = embed
    startup.remembered_calibration = lambda folder: (1.0, 1.0)  # the checkout's cache keeps what was measured
    startup.remembered = _apart
    local.matmul_peak = lambda session, kind, precision, seconds: 1.0
    load.BackgroundLoad.share = lambda self, own_cpu_s: 0.0  # other tests run beside it, and must not keep it unranked


def take_its_place_in_rays_processes() -> None:
    """Have the actors of a Ray that this process starts do so as well."""
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent / "site"), os.environ.get("PYTHONPATH", "")])


def _apart(path: Path, *arguments: Any, **options: Any) -> Any:
    """``runner.core.cache.remembered`` in a file of the double's own: real runs must not find its figures."""
    return remembered(path.with_name(f"double-{path.name}"), *arguments, **options)


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

    @staticmethod
    def get_logger() -> logging.Logger:
        return logging.getLogger("tensorflow")

    @staticmethod
    def device(name: str) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


def _with_tensorflow(kind: Any) -> Any:
    """The format that writes TFRecords, made where the real TensorFlow is the module of that name."""

    def make(*arguments: Any, **options: Any) -> Any:
        if isinstance(sys.modules["tensorflow"], _StandIn):
            del sys.modules["tensorflow"]
            importlib.import_module("tensorflow")
        return kind(*arguments, **options)

    return make
