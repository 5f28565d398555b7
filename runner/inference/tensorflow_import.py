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
from types import ModuleType

from runner.core.imports import without_collection
from runner.devices.instruction_sets import prefer_onednn

_KERAS = "keras"

_NOTE = re.compile(rb"I\d{4} |WARNING: All log messages before absl::InitializeLog")
"""The beginning of a line that says nothing of a problem."""


def import_tensorflow() -> None:
    """Import TensorFlow without Keras, which nothing here uses, and which takes nearly as long as all the rest.

    TensorFlow imports Keras for the sake of its optimizers, and goes on where that fails. ``tf.keras`` imports it when
    it is used.  On CPUs it computes with oneDNN: see ``prefer_onednn``.
    """
    prefer_onednn()
    refusal = _Refusal()
    sys.meta_path.insert(0, refusal)
    try:
        with without_collection():
            importlib.import_module("tensorflow")
    finally:
        sys.meta_path.remove(refusal)


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


class _Refusal(MetaPathFinder, Loader):
    """Finds Keras, whose folder TensorFlow asks for, and does not load it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return Keras's own specification with this loader; None for other modules."""
        spec = PathFinder.find_spec(fullname, path, target) if fullname == _KERAS else None
        if spec is not None:
            spec.loader = self
        return spec

    def exec_module(self, module: ModuleType) -> None:
        """Raise ``ImportError``."""
        raise ImportError(f"{module.__name__} is not loaded while TensorFlow is imported")
