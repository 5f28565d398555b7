"""The import of TensorFlow, the longest step of a worker's start."""

from __future__ import annotations

import importlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import LazyLoader
from types import ModuleType

from runner.core.imports import without_collection
from runner.devices.instruction_sets import prefer_onednn

_KERAS = "keras"

_LATER = frozenset(f"tensorflow._api.v2.{name}" for name in ("__internal__", "compat", "distribute", "feature_column"))
"""Parts that TensorFlow imports at once, and no run uses: an eighth of its modules, a fifth of the import's time."""

_NOTE = re.compile(rb"I\d{4} |WARNING: All log messages before absl::InitializeLog")
"""The beginning of a line that says nothing of a problem."""


def import_tensorflow(*, freeze: bool = False) -> None:
    """Import TensorFlow without Keras, which nothing here uses, and which takes nearly as long as all the rest.

    TensorFlow imports Keras for the sake of its optimizers, and goes on where that fails. ``tf.keras`` imports it when
    it is used, as ``tf.compat`` and a few more parts are.  On CPUs it computes with oneDNN: see ``prefer_onednn``.

    Args:
        freeze: as ``without_collection``'s.
    """
    prefer_onednn()
    postponing = _Postponing()
    sys.meta_path.insert(0, postponing)
    try:
        with without_collection(freeze=freeze):
            importlib.import_module("tensorflow")
    finally:
        sys.meta_path.remove(postponing)


@contextmanager
def without_library_notes() -> Iterator[None]:
    """Leave TensorFlow's notes out of the standard error of a command, whose reader they do not concern.

    Its libraries print notes on the processor and absent GPUs while they load, before they know of
    ``TF_CPP_MIN_LOG_LEVEL``.  Whatever is printed is held back; at the end all but the notes is printed.
    ``TF_CPP_MIN_LOG_LEVEL`` is set to fatal errors, unless it is set: others are exceptions.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
            held.seek(0)
            for line in held:
                if not _NOTE.match(line):
                    os.write(2, line)


class _Postponing(MetaPathFinder, Loader):
    """Finds Keras, whose folder TensorFlow asks for, and does not load it; loads the parts of ``_LATER`` when they are
    used."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the module's own specification with another loader; None for other modules."""
        if fullname != _KERAS and fullname not in _LATER:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = self if fullname == _KERAS else LazyLoader(spec.loader)
        return spec

    def exec_module(self, module: ModuleType) -> None:
        """Raise ``ImportError``."""
        raise ImportError(f"{module.__name__} is not loaded while TensorFlow is imported")
