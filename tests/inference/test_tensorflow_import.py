"""The worker's import of TensorFlow."""

from __future__ import annotations

import gc
import os
import sys

import pytest

from runner.core.imports import without_collection
from runner.inference.tensorflow_import import without_library_notes
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


@pytest.mark.slow
def test_parts_that_no_run_uses_are_imported_when_they_are_used() -> None:
    script = """
    import sys
    import tensorflow as tf
    assert tf.reduce_sum(tf.function(lambda x: x + 1)(tf.ones([2]))).numpy() == 4
    assert "tensorflow.python.distribute.combinations" not in sys.modules
    print(tf.distribute.get_strategy().num_replicas_in_sync, tf.compat.v1.Session.__name__)
    """
    assert run_fresh(script) == ["1 Session\n"]


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


def test_the_collector_skips_what_is_frozen() -> None:
    before = gc.get_freeze_count()
    with without_collection(freeze=True):
        assert gc.get_freeze_count() == before
    try:
        assert gc.get_freeze_count() > before
        assert gc.isenabled()
    finally:
        gc.unfreeze()


def test_notes_are_left_out_of_standard_error_and_problems_are_not(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "1")
    with without_library_notes():
        os.write(2, b"WARNING: All log messages before absl::InitializeLog() is called are written to STDERR\n")
        os.write(2, b"I0000 00:00:1796034869.624050    7477 port.cc:153] oneDNN custom operations are on.\n")
        os.write(2, b"E0000 00:00:1796034869.624051    7477 file.cc:88] no space left\n")
        print("a warning of Python", file=sys.stderr)
    os.write(2, b"later\n")
    problem = "E0000 00:00:1796034869.624051    7477 file.cc:88] no space left"
    assert sorted(capfd.readouterr().err.splitlines()) == [problem, "a warning of Python", "later"]
