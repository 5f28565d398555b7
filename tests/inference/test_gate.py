"""The parity gate: every session, in all that the run will ask of it; and what its verdict says."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from runner.config.schema import ParityConfig
from runner.config.validation import validate
from runner.core.errors import ConfigError
from runner.inference.gate import measure_session, run_parity_gate, signals_of
from runner.models.answers import Answers
from runner.models.signals import fixed_signals
from runner.vggish.reference import reference_log_mel
from runner.vggish.spec import VGGISH
from tests.configs import make_config

CONFIG = ParityConfig()
EXACT = np.random.default_rng(0).standard_normal((16, 128)).astype(np.float32)
ANSWERS = Answers(EXACT, EXACT, log_mel=reference_log_mel(fixed_signals()))
_NUMBERS = {signal.tobytes(): number for number, signal in enumerate(fixed_signals())}
LOG_MEL = np.asarray(ANSWERS.log_mel, np.float32)


class FakeSession:
    """Answers as the reference does, by looking the signals up; keeps what it was asked."""

    device_name = "/GPU:0"
    spec = VGGISH

    def __init__(self, rows: int = 64, threads: int = 4, *, fills: bool = True) -> None:
        self.effective_batch_size, self.in_flight, self.fills_batches = rows, threads, fills
        self.asked: list[tuple[str, list[int], str]] = []
        self.metadata = SimpleNamespace(
            device=SimpleNamespace(effective="gpu", name="a GPU"), precision=SimpleNamespace(effective="float32")
        )

    def embed_windows(self, windows: np.ndarray, copied: Any = None) -> np.ndarray:
        floats = windows.astype(np.float32) / np.float32(32768) if windows.dtype == np.int16 else windows
        which = [_NUMBERS.get(row.tobytes(), -1) for row in floats]
        self.asked.append((windows.dtype.name, which, threading.current_thread().name))
        return self.answer(which, windows)

    def answer(self, which: list[int], windows: np.ndarray) -> np.ndarray:
        return np.where(np.array(which)[:, None] < 0, np.float32(0.5), EXACT[which])

    def log_mel(self, windows: np.ndarray) -> np.ndarray:
        return LOG_MEL[: len(windows)]


@pytest.mark.parametrize(("dtype", "signals"), [("int16", 13), ("float32", 16)])
def test_a_gpu_is_asked_full_ragged_and_single_batches_of_all_signals_in_disorder(dtype: str, signals: int) -> None:
    session = FakeSession()
    measure_session(session, ANSWERS, dtype)  # type: ignore[arg-type]
    assert sorted(len(which) for _, which, _ in session.asked) == [1, 41, 64, 64]
    for kind, which, _ in session.asked:
        assert kind == dtype
        assert min(which) >= 0
        if len(which) > 1:
            assert set(which) == set(range(signals))
            assert which != sorted(which)
    assert len({tuple(which) for _, which, _ in session.asked}) == 4


def test_as_many_calls_are_under_way_as_the_run_has_threads() -> None:
    session, together = FakeSession(), threading.Barrier(4)
    plain = session.answer
    session.answer = lambda *asked: (together.wait(20), plain(*asked))[1]  # type: ignore[method-assign]
    assert measure_session(session, ANSWERS).misses(CONFIG.tolerances["float32"]) == []  # type: ignore[arg-type]


@pytest.mark.parametrize(("rows", "expected"), [(256, [1, 43]), (20, [1, 20]), (4, [1, 16])])
def test_a_cpu_is_asked_what_it_can_answer_in_half_a_second(rows: int, expected: list[int]) -> None:
    session = FakeSession(rows, 1, fills=False)
    measure_session(session, ANSWERS)  # type: ignore[arg-type]
    assert sorted(len(which) for _, which, _ in session.asked) == expected


def test_every_session_and_type_is_measured_and_the_wrong_one_named() -> None:
    sessions = [FakeSession(), FakeSession()]
    sessions[1].device_name = "/GPU:1"
    kinds = ("int16", "float32")
    passed = run_parity_gate(sessions, ANSWERS, CONFIG, kinds)  # type: ignore[arg-type]
    assert passed.failure is None
    assert all({kind for kind, _, _ in session.asked} == set(kinds) for session in sessions)
    assert (passed.report.passed, passed.report.dtypes) == (True, kinds)
    assert ":" in passed.report.measured_by

    def float32_only(windows: np.ndarray) -> np.ndarray:
        embeddings = FakeSession.embed_windows(sessions[1], windows)
        return embeddings * np.float32(1.05) if windows.dtype == np.float32 else embeddings

    sessions[1].embed_windows = float32_only  # type: ignore[method-assign,assignment]
    failed = run_parity_gate(sessions, ANSWERS, CONFIG, kinds)  # type: ignore[arg-type]
    assert failed.failure is not None
    assert "a GPU (gpu, float32) gives other embeddings than the reference" in failed.failure
    assert failed.failure.endswith("(/GPU:1)")
    assert not failed.report.passed


def test_signals_of_a_type_are_those_that_have_it() -> None:
    assert np.array_equal(signals_of(VGGISH, "int16") / np.float32(32768), fixed_signals()[:13])
    assert signals_of(VGGISH, "float32").dtype == np.float32


@pytest.mark.parametrize("name", ["rel_err", "min_cosine", "scale_err", "noise_ratio", "bias_ratio", "log_mel_err"])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "-2"])
def test_a_tolerance_that_nothing_can_miss_is_refused(name: str, value: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"parity\.tolerances\.float32\.{name}=.* is not a (tolerance|finite number)"
    ):
        validate(make_config([f"parity.tolerances.float32.{name}={value}", "dataset=demo"]))
