"""The parity gate: before any clip, each session must answer fixed signals as the reference does.

A session is measured in the way that the run will use it: each type of windows that is expected, full batches, a ragged
one and a single row, rows in a shuffled order, from as many threads as the run has.  On a CPU, where a full batch can
take a second, those are left to the run's own first one (``runner.inference.canary``), and so is a type that was not
expected.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from runner.contract.result import ParityReport
from runner.inference.parity import Parity, compare, worst_of
from runner.models.signals import INT16_SIGNALS, as_int16, fixed_signals

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from runner.audio.framing import Windows
    from runner.config.schema import ParityConfig
    from runner.core.model_spec import ModelSpec
    from runner.inference.session import EmbeddingSession
    from runner.models.answers import Answers

log = logging.getLogger(__name__)

_RAGGED = 43
"""Rows of the ragged batch: no multiple of anything, and two chunks of a CPU's."""


def signals_of(spec: ModelSpec, dtype: str) -> Windows:
    """Return the fixed signals as a model's windows of a type: [16, samples] of float32, or [13, samples] of int16."""
    signals = fixed_signals(spec.sample_rate, spec.window_samples)
    return as_int16(signals[:INT16_SIGNALS]) if dtype == "int16" else signals


def measure_session(session: EmbeddingSession, answers: Answers, dtype: str = "float32") -> Parity:
    """Return the worst of each measure over all calls, in windows of one type; see the module.

    Args:
        session: compiled or not.
        answers: the reference's.
        dtype: float32 or int16.
    """
    signals = signals_of(session.spec, dtype)
    calls = [_shuffled(rows, len(signals), seed) for seed, rows in enumerate(_rows(session, len(signals)))]
    calls.append(np.array([INT16_SIGNALS // 2]))

    def ask(rows: NDArray[np.int64]) -> Parity:
        return compare(session.embed_windows(signals[rows]), answers, rows)

    with ThreadPoolExecutor(session.in_flight) as threads:
        worst = worst_of(threads.map(ask, calls))
    log_mel = session.log_mel(signals)
    if answers.log_mel is None or log_mel is None:
        return worst
    return _with_log_mel(worst, log_mel, answers.log_mel[: len(signals)])


def _rows(session: EmbeddingSession, signals: int) -> list[int]:
    """Rows of the batches that hold all signals."""
    full = session.effective_batch_size
    if not session.fills_batches:
        return [max(min(full, _RAGGED), signals)]
    return [max(full, signals)] * max(session.in_flight - 2, 1) + [max(min(full * 5 // 8 | 1, full), signals)]


def _shuffled(rows: int, signals: int, seed: int) -> NDArray[np.int64]:
    """Return numbers of signals, each about equally often, in an order that ``seed`` decides."""
    return np.random.Generator(np.random.PCG64(seed)).permutation(np.arange(rows) % signals)


def _with_log_mel(parity: Parity, log_mel: NDArray[np.float32], expected: NDArray[np.float64]) -> Parity:
    if log_mel.shape != expected.shape:
        raise ValueError(f"log-mel is {list(log_mel.shape)} where {list(expected.shape)} was expected")
    worst = float(np.abs(log_mel - expected).max())
    return worst_of([parity, Parity(0.0, 0.0, 1.0, 0.0, log_mel_err=worst if np.isfinite(worst) else np.inf)])


@dataclass(frozen=True)
class GateResult:
    """The gate's verdict on all sessions, the worst of each measure as metrics, and the sentence for a failure."""

    report: ParityReport
    metrics: Mapping[str, float]
    failure: str | None


def run_parity_gate(
    sessions: Sequence[EmbeddingSession],
    answers: Answers,
    config: ParityConfig,
    dtypes: Sequence[str] = ("float32",),
) -> GateResult:
    """Measure every session in windows of every type.

    Args:
        sessions: of one precision, compiled or not.
        answers: the reference's.
        config: tolerances, and what follows a failure.
        dtypes: of windows: float32, int16 or both.
    """
    tolerance = config.tolerances[sessions[0].metadata.precision.effective]
    measured, failed = [], []
    for session in sessions:
        own = worst_of(measure_session(session, answers, dtype) for dtype in dtypes)
        log.info("parity of %s in %s: %s", session.device_name, " and ".join(dtypes), own)
        measured.append(own)
        if own.misses(tolerance):
            failed.append(session.device_name)
    parity = worst_of(measured)
    misses = parity.misses(tolerance)
    report = ParityReport(
        passed=not misses,
        misses=tuple(misses),
        action=config.name,
        tolerance=tolerance,
        dtypes=tuple(dtypes),
        reference=f"{answers.reference}, {'from the cache' if answers.cached else 'computed now'}",
        measured_by=f"{socket.gethostname()}:{os.getpid()}",
    )
    failure = message_of(sessions[0], misses) if misses else None
    if failure and len(sessions) > 1:
        failure += f" ({', '.join(failed)})"
    return GateResult(report, parity.metrics(), failure)


def message_of(session: EmbeddingSession, misses: Sequence[str]) -> str:
    """Tell the user which device misses what, and the ways out."""
    device, precision = session.metadata.device, session.metadata.precision.effective
    return (
        f"{device.name} ({device.effective}, {precision}) gives other embeddings than the reference: "
        f"{', '.join(misses)}. Use device=cpu or precision=float32, or parity=warn to go on all the same"
    )
