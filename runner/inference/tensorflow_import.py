"""The import of TensorFlow, the longest step of a worker's start."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

from runner.core.imports import without_collection

_KERAS = "keras"


def import_tensorflow() -> None:
    """Import TensorFlow without Keras, which nothing here uses, and which takes nearly as long as all the rest.

    TensorFlow imports Keras for the sake of its optimizers, and goes on where that fails. ``tf.keras`` imports it when
    it is used.
    """
    refusal = _Refusal()
    sys.meta_path.insert(0, refusal)
    try:
        with without_collection():
            importlib.import_module("tensorflow")
    finally:
        sys.meta_path.remove(refusal)


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
