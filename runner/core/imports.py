"""Imports of large libraries."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collection(*, freeze: bool = False) -> Iterator[None]:
    """Pause the garbage collector: modules make objects that stay, which it would look at again and again.

    It takes about a fifth of the processor time of MLflow's and TensorFlow's imports.

    Args:
        freeze: have it skip for good what is in memory at the end, which takes it 0.5 s to look at after an import of
            TensorFlow.  For processes that are the runner's: cycles among a user's objects would never be freed.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if freeze:
            gc.freeze()
        if was_enabled:
            gc.enable()
