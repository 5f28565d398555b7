"""The network against a Keras definition and the reference, and rows that are no audio."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from runner.yamnet.reference import reference_outputs
from tests.yamnet.keras_yamnet import keras_yamnet

pytestmark = pytest.mark.slow

Embed = Callable[[np.ndarray], np.ndarray]


def compiled(arrays: dict[str, np.ndarray], precision: str = "float32", **options: Any) -> Embed:
    """Return the function of windows, in the form for CPUs, or with ``jit_compile`` in that for GPUs."""
    import tensorflow as tf

    from runner.yamnet import forward, network

    weights = network.variables(arrays, precision)
    function = tf.function(
        lambda windows: forward.outputs_of_windows(weights, windows, precision, is_cpu=not options),
        input_signature=[tf.TensorSpec([None, 15_600])],
        autograph=False,
        **options,
    )
    return lambda windows: function(tf.constant(windows)).numpy()


@pytest.fixture(scope="module")
def yamnet(yamnet_arrays: dict[str, np.ndarray]) -> Embed:
    return compiled(yamnet_arrays)


@pytest.fixture(scope="module")
def few(signals: np.ndarray) -> np.ndarray:
    """A tone, noise, a speech-like signal and samples above 1."""
    return signals[[0, 3, 6, 13]]


@pytest.fixture(scope="module")
def exact(yamnet_arrays: dict[str, np.ndarray], few: np.ndarray) -> np.ndarray:
    return reference_outputs(yamnet_arrays, few)


def errors(outputs: np.ndarray, expected: np.ndarray) -> tuple[float, float]:
    """Return the largest error of embeddings, over the largest of them, and of scores."""
    difference = np.abs(outputs - expected)
    return float(difference[:, :1024].max() / np.abs(expected[:, :1024]).max()), float(difference[:, 1024:].max())


def test_a_keras_definition_gives_the_same(yamnet_arrays: dict[str, np.ndarray], exact_log_mel: np.ndarray) -> None:
    import tensorflow as tf

    from runner.yamnet import network

    examples = exact_log_mel.astype(np.float32)
    expected = np.concatenate(keras_yamnet(yamnet_arrays).predict(examples, verbose=0), axis=1)
    outputs = network.embed(network.variables(yamnet_arrays, "float32"), examples, tf.float32).numpy()
    assert max(errors(outputs, expected)) < 5e-6
    assert expected[:, :1024].std(axis=0).mean() > 0.1  # the signals differ
    assert expected[:, 1024:].std(axis=0).mean() > 0.03


def test_the_reference_gives_the_same(yamnet: Embed, exact: np.ndarray, few: np.ndarray) -> None:
    assert max(errors(yamnet(few), exact)) < 5e-6


@pytest.mark.parametrize(("precision", "tolerance"), [("bfloat16", 3e-2), ("float16", 4e-3)])
def test_a_coarse_precision_errs_as_rounding_alone_does(
    yamnet_arrays: dict[str, np.ndarray], exact: np.ndarray, few: np.ndarray, precision: str, tolerance: float
) -> None:
    of_program = errors(compiled(yamnet_arrays, precision)(few), exact)
    of_rounding = errors(reference_outputs(yamnet_arrays, few, precision), exact)
    assert max(of_program) < tolerance
    for program, rounding in zip(of_program, of_rounding, strict=True):
        assert rounding / 3 < program < 3 * rounding


def test_tf32_is_rounded_as_float16(yamnet_arrays: dict[str, np.ndarray], few: np.ndarray) -> None:
    tf32, float16 = (reference_outputs(yamnet_arrays, few[:1], precision) for precision in ("tf32", "float16"))
    assert np.array_equal(tf32, float16)


def test_xla_compiles_the_form_for_gpus(
    yamnet_arrays: dict[str, np.ndarray], exact: np.ndarray, few: np.ndarray
) -> None:
    assert max(errors(compiled(yamnet_arrays, jit_compile=True)(few), exact)) < 1e-5


def test_outputs_do_not_depend_on_the_batch(yamnet: Embed, signals: np.ndarray) -> None:
    rows = np.tile(signals, (9, 1))  # more than a chunk
    expected = yamnet(rows)
    for count in (2, 3, 17, 100):
        assert np.array_equal(yamnet(rows[:count]), expected[:count])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 2000.0])
def test_only_a_row_that_is_no_audio_is_nan(yamnet: Embed, signals: np.ndarray, bad: float) -> None:
    windows = signals[:4].copy()
    windows[2, 777] = bad
    outputs = yamnet(windows)
    assert np.isnan(outputs[2]).all()
    assert np.array_equal(outputs[[0, 1, 3]], yamnet(signals[:4])[[0, 1, 3]])


def test_a_layer_that_overflows_gives_nan(yamnet_arrays: dict[str, np.ndarray], signals: np.ndarray) -> None:
    broken = yamnet_arrays | {"layer14/pointwise_conv/bn/beta": np.full(1024, np.inf, np.float32)}
    assert np.isnan(compiled(broken)(signals[:2])).all()
