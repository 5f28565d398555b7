"""The session as it is on CUDA, run here on the CPU by XLA (soft placement puts /GPU:0 there): the same programs.

What only a GPU can show (speed, memory, bits) is measured by ``benchmarks/gpu.py``.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest

from runner.contract.result import Effect
from runner.devices import cuda
from runner.devices.detection import DeviceInfo, DeviceType, GpuDetails
from runner.devices.selection import DeviceChoice
from runner.inference.batch_size import measure_on
from runner.inference.precision import choose_precision
from runner.inference.session import EmbeddingSession
from runner.models.signals import as_int16, fixed_signals
from tests.devices.test_cuda import HostRuntime, noise
from tests.reference import make_program, metadata_of

H100 = DeviceInfo(DeviceType.GPU, True, "H100", "simulated", GpuDetails(compute_capability=(9, 0)))
CHOICE = DeviceChoice(DeviceType.GPU, H100, 0, "", None, [H100])

SIGNALS = fixed_signals()[:8]

pytestmark = pytest.mark.slow


def gpu_session(weights: dict[str, np.ndarray], precision: str = "float32", batch_size: int = 8) -> EmbeddingSession:
    import tensorflow as tf

    tf.config.set_soft_device_placement(True)
    chosen = choose_precision(precision, H100)
    metadata = metadata_of(CHOICE, chosen)
    return EmbeddingSession(make_program(weights, DeviceType.GPU, chosen), batch_size, metadata)


@pytest.fixture(scope="module")
def session(weights: dict[str, np.ndarray]) -> EmbeddingSession:
    return gpu_session(weights)


@pytest.fixture(scope="module")
def expected(vggish: EmbeddingSession) -> np.ndarray:
    return vggish.embed_windows(SIGNALS)


def worst(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


def test_the_xla_program_agrees_with_the_cpus(session: EmbeddingSession, expected: np.ndarray) -> None:
    assert session.compiler.effective == "xla"
    assert worst(session.embed_windows(SIGNALS), expected) < 5e-6


@pytest.fixture(scope="module")
def unharmed(session: EmbeddingSession) -> np.ndarray:
    """Embeddings of the signals."""
    return session.embed_windows(SIGNALS)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e18, 1e38])
def test_a_window_that_is_no_waveform_gives_a_row_of_nan(
    session: EmbeddingSession, unharmed: np.ndarray, value: float
) -> None:
    windows = SIGNALS.copy()
    windows[2, 5000] = value
    embeddings = session.embed_windows(windows)
    assert np.isnan(embeddings[2]).all()
    assert np.array_equal(np.delete(embeddings, 2, axis=0), np.delete(unharmed, 2, axis=0))


def test_int16_samples_give_the_bits_of_the_same_floats(session: EmbeddingSession, vggish: EmbeddingSession) -> None:
    for either in (session, vggish):
        assert np.array_equal(either.embed_windows(as_int16(SIGNALS)), either.embed_windows(SIGNALS))


def test_the_search_measures_batches_that_are_on_the_device(
    weights: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    session = gpu_session(weights)
    copied, copy = [], session._copy.by_tensorflow
    monkeypatch.setattr(session._copy, "by_tensorflow", lambda windows: copied.append(len(windows)) or copy(windows))
    monkeypatch.setattr(session, "memory_peak_mib", lambda: None)  # a GPU that is simulated keeps no account
    step = measure_on(session, "int16")(4)
    assert step is not None
    assert copied == [4, 4]  # to compile, and to measure: not once a call
    assert (step.batch_size, session.effective_batch_size) == (4, 4)
    assert step.examples_per_s > 1


@pytest.mark.parametrize(("precision", "tolerance"), [("bfloat16", 3e-2), ("tf32", 1e-4)])
def test_coarser_precisions_stay_within_parity(
    weights: dict[str, np.ndarray], expected: np.ndarray, precision: str, tolerance: float
) -> None:
    embeddings = gpu_session(weights, precision).embed_windows(SIGNALS)
    assert worst(embeddings, expected) < tolerance
    assert np.abs(embeddings - expected).max() > 0


@pytest.mark.parametrize("rows", [1, 8, 9, 19])
def test_any_number_of_rows_is_filled_up_and_split(
    session: EmbeddingSession, vggish: EmbeddingSession, rows: int
) -> None:
    windows = SIGNALS[np.arange(rows) % 8]
    embeddings = session.embed_windows(windows)
    assert embeddings.shape == (rows, 128)
    assert worst(embeddings, vggish.embed_windows(windows)) < 5e-6


def test_the_end_of_the_copy_is_called_once_a_batch(session: EmbeddingSession) -> None:
    told: list[int] = []
    session.embed_windows(SIGNALS, lambda: told.append(1))
    assert len(told) == 1


def test_batches_from_several_threads_are_copied_each_to_its_own_place(
    weights: dict[str, np.ndarray], session: EmbeddingSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = HostRuntime()
    monkeypatch.setattr(cuda, "_runtime", lambda: runtime)
    own = gpu_session(weights)
    batches = [noise(rows, dtype) for rows in (5, 11) for dtype in ("int16", "float32")]
    batches = [batch / np.float32(32768) if batch.dtype == np.float32 else batch for batch in batches]
    with ThreadPoolExecutor(3) as threads:
        actual = list(threads.map(own.embed_windows, batches))
    assert own.copies.effective == "own_stream"
    assert {size for _, size in runtime.copied} == {8 * 15600 * 2, 8 * 15600 * 4}
    for batch, embeddings in zip(batches, actual, strict=True):
        assert np.array_equal(embeddings, session.embed_windows(batch))


def test_without_a_stream_of_its_own_tensorflow_copies(
    weights: dict[str, np.ndarray], session: EmbeddingSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "_runtime", lambda: HostRuntime("cudaStreamCreateWithFlags"))
    refused = gpu_session(weights)
    assert np.array_equal(refused.embed_windows(noise(9)), session.embed_windows(noise(9)))
    assert refused.copies == Effect("tensorflow", "cudaStreamCreateWithFlags gave error 1")


def out_of_memory_above(session: EmbeddingSession, most: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Have the device run out of memory for more than ``most`` rows; the sizes that were tried."""
    import tensorflow as tf

    tried: list[int] = []
    plain = session.program.function

    def function(kind: str):
        def run(rows):
            tried.append(int(rows.shape[0]))
            if rows.shape[0] > most:
                raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")
            return plain(kind)(rows)

        return run

    monkeypatch.setattr(session.program, "function", function)
    return tried


def test_memory_that_runs_out_halves_the_batch_and_loses_nothing(
    weights: dict[str, np.ndarray], expected: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = gpu_session(weights, batch_size=8)
    tried = out_of_memory_above(session, 2, monkeypatch)
    embeddings = session.embed_windows(SIGNALS)
    assert worst(embeddings, expected) < 5e-6
    assert (session.effective_batch_size, session.min_rows) == (2, 2)
    assert tried == [8, 4, 2, 2, 2, 2]
    assert session.oom_backoffs == [
        "/GPU:0 ran out of memory: batch_size halved from 8",
        "/GPU:0 ran out of memory: batch_size halved from 4",
    ]


def test_memory_that_runs_out_for_one_row_is_an_error(
    weights: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    import tensorflow as tf

    session = gpu_session(weights, batch_size=2)
    out_of_memory_above(session, 0, monkeypatch)
    with pytest.raises(tf.errors.ResourceExhaustedError):
        session.embed_windows(SIGNALS)


def test_without_xla_tensorflows_own_kernels_take_over(
    weights: dict[str, np.ndarray], expected: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tensorflow as tf

    session = gpu_session(weights)
    plain = tf.function

    def no_xla(function=None, *, jit_compile=None, **options):
        if jit_compile:

            def refuse(rows):
                raise tf.errors.UnimplementedError(None, None, "no XLA here")

            return SimpleNamespace(get_concrete_function=lambda: refuse)
        return plain(function, jit_compile=jit_compile, **options)

    monkeypatch.setattr(tf, "function", no_xla)
    session.warm_up()
    assert session.compiler.effective == "graph"
    assert "no XLA here" in session.compiler.reason
    assert worst(session.embed_windows(SIGNALS), expected) < 5e-6
