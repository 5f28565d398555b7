"""The worker's import of TensorFlow."""

from __future__ import annotations

import gc

import pytest

from runner.core.imports import without_collection
from tests.fresh_tensorflow import run_fresh


@pytest.mark.slow
def test_keras_is_imported_when_it_is_used() -> None:
    script = """
    import gc, sys
    assert gc.isenabled()
    import tensorflow as tf
    assert tf.constant(1.0).numpy() == 1.0
    assert "keras" not in sys.modules
    print(tf.keras.layers.Dense(2)(tf.ones([1, 3])).shape)
    """
    assert run_fresh(script) == ["(1, 2)\n"]  # after ``import_tensorflow``


def test_the_collector_is_as_it_was_after_an_import() -> None:
    with without_collection(), without_collection():
        assert not gc.isenabled()
    assert gc.isenabled()
    gc.disable()
    try:
        with without_collection():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
