"""Winograd's convolution against the direct one, and which of them is taken."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from runner.devices.detection import DeviceType
from runner.inference.session import EmbeddingSession
from runner.models.signals import fixed_signals
from runner.models.vggish.convolution import calibrate, choose_convolution, remembered_calibration
from runner.models.vggish.program import CPU_CHUNK
from runner.vggish import network, winograd
from tests.reference import make_session


@pytest.mark.slow
@pytest.mark.parametrize("places", [1, 2, 4])
@pytest.mark.parametrize("pool", [False, True])
def test_equals_a_direct_convolution_in_float64(places: int, pool: bool) -> None:
    rng = np.random.default_rng(0)
    batch, height, width, inputs, outputs = 3, 12, 8, 5, 7
    images = rng.standard_normal((batch, height, width, inputs)).astype(np.float32)
    kernel = rng.standard_normal((3, 3, inputs, outputs)).astype(np.float32)
    biases = rng.standard_normal(outputs).astype(np.float32)
    padded = np.pad(images.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    expected = biases + sum(
        padded[:, i : i + height, j : j + width] @ kernel[i, j].astype(np.float64) for i in range(3) for j in range(3)
    )
    tile = 4
    if pool:
        expected = expected.reshape(batch, height // 2, 2, width // 2, 2, outputs).max(axis=(2, 4))
        tile = 2
    expected = np.maximum(expected, 0)

    def by_place(array: np.ndarray, square: int) -> np.ndarray:
        n, h, w, c = array.shape
        cut = array.reshape(n, h // square, square, w // square, square, c)
        return cut.transpose(2, 4, 0, 1, 3, 5).reshape(-1, c)

    convolved = winograd.convolution(
        by_place(images, places), winograd.transform_filters(kernel), biases, (height, width), places, pool=pool
    ).numpy()
    assert np.abs(convolved - by_place(expected, tile)).max() < 1e-5 * np.abs(expected).max()


@pytest.fixture(scope="module")
def fast(weights: dict[str, np.ndarray]) -> EmbeddingSession:
    return make_session(weights, conv="winograd")


@pytest.mark.slow
def test_embeddings_by_winograd_equal_a_float64_forward_pass(fast: EmbeddingSession, forward_pass: np.ndarray) -> None:
    assert np.abs(fast.embed_windows(fixed_signals()) - forward_pass).max() < 1e-5 * np.abs(forward_pass).max()


@pytest.mark.slow
def test_winograd_keeps_a_row_of_nan_to_itself(fast: EmbeddingSession) -> None:
    windows = fixed_signals().copy()
    expected = fast.embed_windows(windows)
    windows[3, 7000] = np.nan
    embeddings = fast.embed_windows(windows)
    assert np.isnan(embeddings[3]).all()
    assert np.array_equal(np.delete(embeddings, 3, axis=0), np.delete(expected, 3, axis=0))


@pytest.mark.slow
@pytest.mark.parametrize("conv", ["direct", "winograd"])
def test_chunks_do_not_show(vggish: EmbeddingSession, fast: EmbeddingSession, conv: str) -> None:
    session = vggish if conv == "direct" else fast
    rng = np.random.default_rng(1)
    windows = rng.uniform(-1, 1, (2 * CPU_CHUNK + 1, 15_600)).astype(np.float32)
    before = session.effective_batch_size
    session.set_batch_size(len(windows))
    try:
        together = session.embed_windows(windows)
        for size in (1, 2, 3, CPU_CHUNK, CPU_CHUNK + 1):
            embeddings = session.embed_windows(windows[-size:])
            assert np.abs(embeddings - together[-size:]).max() <= 1e-6 * np.abs(together).max()
    finally:
        session.set_batch_size(before)


@pytest.mark.parametrize("rows", [1, 2, 7, 8, 9, 15, 16, 17, 100])
def test_no_chunk_is_a_single_row_unless_there_is_but_one(rows: int) -> None:
    import tensorflow as tf

    sizes = []

    def note(chunk):
        tf.py_function(lambda x: sizes.append(len(x)), [chunk], [])
        return chunk + 1

    program = tf.function(lambda x: network.in_chunks(note, x, 8, 3, tf.float32), autograph=False)
    given = np.arange(rows * 3, dtype=np.float32).reshape(rows, 3)
    assert np.array_equal(program(tf.constant(given)).numpy(), given + 1)
    assert sum(sizes) == rows
    assert max(sizes) <= 8
    assert min(sizes) > 1 or rows == 1


@pytest.mark.parametrize(
    ("requested", "device", "precision", "seconds", "effective", "words"),
    [
        ("auto", DeviceType.CPU, "float32", (2.0, 1.0), "winograd", "2.00 × as fast"),
        ("auto", DeviceType.CPU, "float32", (1.05, 1.0), "direct", "1.05 × as fast"),
        ("auto", DeviceType.CPU, "bfloat16", None, "direct", "too coarse in bfloat16"),
        ("auto", DeviceType.GPU, "float32", None, "direct", "the gpu has its own"),
        ("winograd", DeviceType.CPU, "float32", None, "winograd", "was asked for"),
        ("winograd", DeviceType.METAL, "float32", None, "direct", "the metal has its own"),
        ("direct", DeviceType.CPU, "float32", None, "direct", "was asked for"),
    ],
)
def test_the_choice_says_why(
    requested: str,
    device: DeviceType,
    precision: str,
    seconds: tuple[float, float] | None,
    effective: str,
    words: str,
) -> None:
    def stopwatch() -> tuple[float, float]:
        assert seconds, "nothing is to be measured here"
        return seconds

    choice = choose_convolution(requested, device, precision, stopwatch)
    assert (choice.requested, choice.effective) == (requested, effective)
    assert words in choice.reason


def test_the_calibration_measures_both() -> None:
    direct, fast = calibrate()
    assert 0 < direct < 10
    assert 0 < fast < 10


def test_a_calibration_is_made_once_and_a_damaged_one_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = iter([(2.0, 1.0), (4.0, 1.0), (6.0, 1.0), (8.0, 1.0)])
    monkeypatch.setattr("runner.models.vggish.convolution.calibrate", lambda: next(made))
    folder = tmp_path / "new"
    assert [remembered_calibration(folder) for _ in range(2)] == [(2.0, 1.0), (2.0, 1.0)]
    (folder / "calibration.json").write_text("{half")
    assert remembered_calibration(folder) == (4.0, 1.0)
    monkeypatch.setattr("runner.models.vggish.convolution.cpu_name", lambda: "another processor")
    assert remembered_calibration(folder) == (6.0, 1.0)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "avx2")
    assert remembered_calibration(folder) == (8.0, 1.0)
