"""The parity gate: honest sessions pass, lying ones do not; the reference's answers are kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from runner.compose import compose_config
from runner.config import ToleranceConfig
from runner.parity import AnswerCache, compare, fixed_signals, measure
from runner.vggish.reference import reference_embeddings, reference_log_mel
from runner.vggish.session import VGGishSession
from tests import reference


@pytest.fixture(scope="module")
def tolerances() -> dict[str, ToleranceConfig]:
    return compose_config([]).parity.tolerances


@pytest.fixture(scope="module")
def expected(weights: dict[str, np.ndarray]) -> np.ndarray:
    return reference_embeddings(weights, fixed_signals())


def test_the_signals_are_eight_different_ones_in_range() -> None:
    signals = fixed_signals()
    assert (signals.shape, signals.dtype) == ((8, 15_600), np.float32)
    assert np.abs(signals).max() <= 1
    assert len({signal.tobytes() for signal in signals}) == 8
    assert np.array_equal(signals, fixed_signals())


@pytest.mark.slow
def test_the_reference_equals_a_float64_forward_pass(weights: dict[str, np.ndarray], expected: np.ndarray) -> None:
    signals = fixed_signals().astype(np.float64)
    log_mel = np.stack([reference.reference_log_mel(signal) for signal in signals])
    assert np.abs(reference_log_mel(fixed_signals()) - log_mel).max() < 1e-9
    exact = reference.reference_network(weights, log_mel)
    assert np.abs(expected - exact).max() < 1e-5 * np.abs(exact).max()


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_an_honest_session_passes(
    weights: dict[str, np.ndarray], expected: np.ndarray, tolerances: dict[str, ToleranceConfig], precision: str
) -> None:
    session = reference.make_session(weights, precision)
    for rows in (8, 20):
        parity = measure(session.embed_windows, expected, rows)
        assert parity.misses(tolerances[precision]) == []
    if precision == "bfloat16":
        assert parity.misses(tolerances["float32"])  # the gate knows the two apart


def one_per_cent(embeddings: np.ndarray) -> np.ndarray:
    return embeddings * np.float32(1.01)


def shifted_by_one(embeddings: np.ndarray) -> np.ndarray:
    return np.roll(embeddings, 1, axis=0)


def with_relu(embeddings: np.ndarray) -> np.ndarray:
    return np.maximum(embeddings, 0)


def one_row_wrong(embeddings: np.ndarray) -> np.ndarray:
    wrong = embeddings.copy()
    wrong[-1] = wrong[0]
    return wrong


def nan_somewhere(embeddings: np.ndarray) -> np.ndarray:
    wrong = embeddings.copy()
    wrong[3, 7] = np.nan
    return wrong


@pytest.mark.slow
@pytest.mark.parametrize("lie", [one_per_cent, shifted_by_one, with_relu, one_row_wrong, nan_somewhere])
def test_a_lying_device_misses_in_every_precision(
    vggish: VGGishSession, expected: np.ndarray, tolerances: dict[str, ToleranceConfig], lie
) -> None:
    parity = measure(lambda windows: lie(vggish.embed_windows(windows)), expected)
    for tolerance in tolerances.values():
        assert parity.misses(tolerance)
    assert all(np.isfinite(list(parity.metrics().values())))


@pytest.mark.slow
@pytest.mark.parametrize("bias", ["vggish/fc2/biases", "vggish/fc1/fc1_1/biases"])
def test_a_session_that_drops_a_bias_misses(
    weights: dict[str, np.ndarray], expected: np.ndarray, tolerances: dict[str, ToleranceConfig], bias: str
) -> None:
    dropped = reference.make_session(weights | {bias: np.zeros_like(weights[bias])})
    assert measure(dropped.embed_windows, expected).misses(tolerances["float32"])


def test_too_few_embeddings_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"\[7, 128\] embeddings were returned where \[8, 128\]"):
        compare(np.zeros((7, 128), np.float32), np.zeros((8, 128), np.float32))


def test_the_reference_is_computed_once_for_a_checksum(tmp_path: Path) -> None:
    calls = []

    def compute(signals: np.ndarray) -> np.ndarray:
        calls.append(signals)
        return np.full((8, 128), len(calls), np.float32)

    cache = AnswerCache(tmp_path / "new" / "folder")
    first, known = cache.get("abc", compute)
    assert not known
    again, known = AnswerCache(tmp_path / "new" / "folder").get("abc", compute)
    assert known
    assert np.array_equal(first, again)
    other, known = cache.get("other weights", compute)
    assert not known
    assert other[0, 0] == 2
    for path in (tmp_path / "new" / "folder").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    damaged, known = cache.get("abc", compute)
    assert (damaged[0, 0], known) == (3, False)


def test_a_folder_that_cannot_be_written_costs_only_time(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found, known = AnswerCache(tmp_path / "file" / "below").get("abc", lambda _: np.ones((8, 128), np.float32))
    assert (found.sum(), known) == (1024, False)
