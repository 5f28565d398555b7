"""What a device is held to: the signals, the measures, and the reference's answers, which are kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from runner.config.schema import ToleranceConfig
from runner.inference.gate import measure_session
from runner.inference.parity import compare, worst_of
from runner.models.answers import AnswerCache, Answers
from runner.models.base import LoadedWeights
from runner.models.signals import INT16_SIGNALS, as_int16, fixed_signals
from runner.models.vggish.model import VGGish
from runner.vggish import reference as own
from runner.vggish.reference import reference_embeddings, reference_log_mel
from runner.weights.selection import WeightsChoice
from tests import reference
from tests.configs import make_config


@pytest.fixture(scope="module")
def tolerances() -> dict[str, ToleranceConfig]:
    return make_config([]).parity.tolerances


@pytest.fixture(scope="module")
def answers(weights: dict[str, np.ndarray], exact: np.ndarray) -> dict[str, Answers]:
    rounded = reference_embeddings(weights, fixed_signals(), "bfloat16")
    return {"float32": Answers(exact, exact), "bfloat16": Answers(exact, rounded)}


def test_the_signals_are_different_ones_loud_ones_and_some_above_one() -> None:
    signals = fixed_signals()
    assert (signals.shape, signals.dtype) == ((16, 15_600), np.float32)
    assert len({signal.tobytes() for signal in signals}) == 16
    assert np.array_equal(signals, fixed_signals())
    as_floats = as_int16(signals[:INT16_SIGNALS]) / np.float32(32768)
    assert np.array_equal(as_floats, signals[:INT16_SIGNALS])
    loud = np.sqrt(np.square(signals[:INT16_SIGNALS]).mean(axis=1)) >= 0.9
    assert loud.sum() >= 2
    assert np.abs(signals[INT16_SIGNALS:]).max() > 2
    assert np.any(signals[INT16_SIGNALS + 1] * 32768 % 1)


@pytest.mark.slow
def test_the_reference_equals_another_float64_forward_pass(
    exact: np.ndarray, log_mels: np.ndarray, forward_pass: np.ndarray
) -> None:
    assert np.abs(reference_log_mel(fixed_signals()) - log_mels).max() < 1e-9
    assert np.abs(exact - forward_pass).max() < 1e-6 * np.abs(forward_pass).max()


def test_the_reference_shares_nothing_with_what_it_judges() -> None:
    source = Path(own.__file__).read_text(encoding="utf-8")
    assert "runner" not in "".join(line for line in source.splitlines() if line.startswith(("import", "from")))


@pytest.mark.parametrize(("precision", "bits"), [("bfloat16", 7), ("float16", 10)])
def test_rounding_is_to_the_nearest_value_of_the_precision(precision: str, bits: int) -> None:
    rng = np.random.default_rng(0)
    values = rng.standard_normal(1000).astype(np.float32).astype(np.float64)
    rounded = own.ROUNDING[precision](values)
    assert np.abs(rounded / values - 1).max() <= 2.0 ** -(bits + 1)
    if precision == "float16":
        assert np.array_equal(rounded[np.abs(values) > 1e-3], values.astype(np.float16)[np.abs(values) > 1e-3])
    middle = np.array([1 + 2.0 ** -(bits + 1), 1 + 3 * 2.0 ** -(bits + 1), 0.0, -1.0])
    assert np.array_equal(own.ROUNDING[precision](middle), [1, 1 + 2.0 ** -(bits - 1), 0, -1])


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_an_honest_session_passes(
    weights: dict[str, np.ndarray], answers: dict[str, Answers], tolerances: dict[str, ToleranceConfig], precision: str
) -> None:
    session = reference.make_session(weights, precision)
    for dtype in ("int16", "float32"):
        parity = measure_session(session, answers[precision], dtype)
        assert parity.misses(tolerances[precision]) == []
    if precision == "bfloat16":
        assert parity.misses(tolerances["float32"])  # the gate knows the two apart


@pytest.mark.slow
@pytest.mark.parametrize("layer", ["conv1", "conv3/conv3_2", "fc1/fc1_1", "fc2"])
def test_a_bias_that_is_lost_is_told_from_bfloat16s_noise(
    weights: dict[str, np.ndarray], answers: dict[str, Answers], tolerances: dict[str, ToleranceConfig], layer: str
) -> None:
    bias = f"vggish/{layer}/biases"
    lost = reference.make_session(weights | {bias: np.zeros_like(weights[bias])}, "bfloat16")
    parity = measure_session(lost, answers["bfloat16"])
    assert parity.rel_err < tolerances["bfloat16"].rel_err  # by its largest error nobody would see it
    assert [miss for miss in parity.misses(tolerances["bfloat16"]) if miss.startswith(("noise_ratio", "bias_ratio"))]


def test_the_worst_of_each_measure_counts() -> None:
    exact = np.random.default_rng(0).standard_normal((16, 128)).astype(np.float32)
    one, other = (
        compare(exact * np.float32(1.5), Answers(exact, exact)),
        compare(np.roll(exact, 1, 0), Answers(exact, exact)),
    )
    worst = worst_of([one, other])
    assert (worst.scale_err, worst.min_cosine) == (max(one.scale_err, other.scale_err), other.min_cosine)
    (missed,) = worst.misses(ToleranceConfig(9, -1, 9, float("nan"), 1e9, 1))
    assert missed.startswith("noise_ratio")  # NaN lets nothing pass


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
    exact: np.ndarray, tolerances: dict[str, ToleranceConfig], lie
) -> None:
    parity = compare(lie(exact), Answers(exact, exact))
    for tolerance in tolerances.values():
        assert parity.misses(tolerance)
    assert all(np.isfinite(list(parity.metrics().values())))


@pytest.mark.slow
@pytest.mark.parametrize("bias", ["vggish/fc2/biases", "vggish/fc1/fc1_1/biases"])
def test_a_session_that_drops_a_bias_misses(
    weights: dict[str, np.ndarray], answers: dict[str, Answers], tolerances: dict[str, ToleranceConfig], bias: str
) -> None:
    dropped = reference.make_session(weights | {bias: np.zeros_like(weights[bias])})
    assert measure_session(dropped, answers["float32"]).misses(tolerances["float32"])


def test_too_few_embeddings_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"\[7, 128\] embeddings were returned where \[8, 128\]"):
        compare(np.zeros((7, 128), np.float32), Answers(np.zeros((8, 128), np.float32), np.zeros((8, 128), np.float32)))


WINDOWS = np.ones((2, 15_600), np.float32)
CHOICE = WeightsChoice("random", "random", None, None, 7, "for tests", is_random=True)


def test_the_reference_is_computed_once_for_weights_precision_and_windows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[np.ndarray] = []

    def compute(windows: np.ndarray) -> np.ndarray:
        calls.append(windows)
        return np.full((2, 128), len(calls), np.float32)

    def ask(checksum: str = "abc", windows: np.ndarray = WINDOWS, precision: str = "float32") -> tuple[float, bool]:
        model, loaded = VGGish(), LoadedWeights(CHOICE, {}, checksum)
        monkeypatch.setattr(model, "reference", lambda weights, windows, precision: compute(windows))
        actual, known = model.remembered_rows(loaded, windows, tmp_path / "new" / "folder", precision)
        return float(actual[0, 0]), known

    assert ask() == (1, False)
    assert ask() == (1, True)
    assert ask("other weights") == (2, False)
    assert ask(precision="bfloat16") == (3, False)
    assert ask(windows=WINDOWS / 2) == (4, False)
    assert ask() == (1, True)
    with monkeypatch.context() as patch:
        patch.setattr(own, "version", lambda: "another reference")
        assert ask() == (5, False)
    for path in (tmp_path / "new" / "folder").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    assert ask() == (6, False)
    for path in (tmp_path / "new" / "folder").iterdir():
        path.write_bytes(path.read_bytes().replace(np.float32(6).tobytes(), np.float32(7).tobytes()))
    assert ask() == (7, False)


def test_a_change_of_the_references_code_is_another_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = own.version()
    changed = tmp_path / "reference.py"
    changed.write_text(Path(own.__file__).read_text(encoding="utf-8").replace("7500.0", "7501.0"), encoding="utf-8")
    monkeypatch.setattr(own, "__file__", str(changed))
    assert own.version() != before


def test_a_folder_that_cannot_be_written_costs_only_time(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = AnswerCache(tmp_path / "file" / "below")
    actual, known = cache.get("abc", WINDOWS, lambda _: np.ones((2, 128), np.float32))
    assert (actual.sum(), known) == (256, False)
