"""Parity measures: fixed signals, the reference's answers to them, and distances from those."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from runner.core.errors import WeightsError
from runner.vggish.answers import Answers, reference_answers

if TYPE_CHECKING:
    from runner.config.schema import ToleranceConfig
    from runner.weights.loading import LoadedWeights

Array = NDArray[np.float32]

INT16_SIGNALS = 13
"""Number of fixed signals, the first ones, with values of 16-bit samples."""

_RATE, _SAMPLES, _FULL_SCALE = 16_000, 15_600, 32_768
"""Constants of this module: the signals must not change with a fault elsewhere."""

_ROWS_FOR_RATIOS = 12


def fixed_signals() -> Array:
    """Return the signals, one window each, float32 [16, 15600]: the same on every machine.

    The first ``INT16_SIGNALS`` have values of 16-bit samples, so that ``as_int16`` is exact: a tone, two tones 40 dB
    apart, a chirp over the whole band, noise, silence, an impulse, a clipped speech-like signal (voiced harmonics under
    a syllable's envelope), noise at -80 dB, a square wave and clipped noise (both of RMS above 0.9), a tone with a
    constant offset, tones next to either edge of the mel bands.  The others need floats: samples above 1, a decaying
    tone that is finer than 16 bits, noise at -120 dB.
    """
    t = np.arange(_SAMPLES) / _RATE
    turn = 2 * np.pi * t
    rng = np.random.Generator(np.random.PCG64(1))
    impulse = np.zeros(_SAMPLES)
    impulse[_SAMPLES // 3] = 1.0
    chirp_rate = (7800.0 - 50.0) / t[-1]
    voiced = sum(np.sin(turn * 120.0 * k + k * k) / k for k in range(1, 30))
    syllables = 0.5 - 0.5 * np.cos(turn * 4.0)
    noises = [rng.uniform(-1.0, 1.0, _SAMPLES) for _ in range(5)]
    rows = [
        0.5 * np.sin(turn * 1000.0),
        0.9 * np.sin(turn * 220.0) + 0.009 * np.sin(turn * 3520.0),
        0.8 * np.sin(turn * (50.0 + 0.5 * chirp_rate * t)),
        0.3 * noises[0],
        np.zeros(_SAMPLES),
        impulse,
        np.clip(1.5 * voiced * syllables, -1.0, 1.0),
        1e-4 * noises[1],
        0.99 * np.sign(np.sin(turn * 311.0) + 0.01),
        np.clip(8.0 * noises[2], -1.0, 1.0),
        0.4 + 0.3 * np.sin(turn * 660.0),
        0.6 * np.sin(turn * 7470.0) * syllables + 0.3 * np.sin(turn * 135.0),
        0.45 * np.sin(turn * 7530.0) + 0.45 * np.sin(turn * 112.0),
    ]
    exact = np.clip(np.round(np.stack(rows) * _FULL_SCALE), -_FULL_SCALE, _FULL_SCALE - 1) / _FULL_SCALE
    finer = [
        1.8 * np.sin(turn * 523.0) + 0.7 * noises[3],
        0.7 * np.sin(turn * 1760.0) * np.exp(-12.0 * t),
        1e-6 * noises[4],
    ]
    signals: Array = np.concatenate([exact, np.stack(finer)]).astype(np.float32) + np.float32(0)  # no -0
    return signals


def as_int16(signals: Array) -> NDArray[np.int16]:
    """Convert the first ``INT16_SIGNALS`` signals, or others of such values, to 16-bit samples."""
    samples: NDArray[np.int16] = (signals * np.float32(_FULL_SCALE)).astype(np.int16)
    return samples


@dataclass(frozen=True)
class Parity:
    """Distances of a device's embeddings from the reference's.

    NaN or infinity in the embeddings makes all errors infinite and the cosine -1.

    Two ratios tell a small systematic error from a coarse precision's noise.  Their unit is the root mean square of the
    error that rounding alone makes, at least float32's 1.2e-7; both are 0 for fewer rows than ``_ROWS_FOR_RATIOS``.

    Attributes:
        max_abs_err: largest difference.
        rel_err: largest difference relative to the largest expected value.
        min_cosine: least cosine of an embedding with its expected one.
        scale_err: difference from 1 of the best common factor between the two.
        noise_ratio: the whole error.
        bias_ratio: the difference to the rounded answers, averaged over the rows, where rounding errors cancel.
        log_mel_err: largest difference of log-mel, which a coarse precision does not change; 0 where not measured.
    """

    max_abs_err: float
    rel_err: float
    min_cosine: float
    scale_err: float
    noise_ratio: float = 0.0
    bias_ratio: float = 0.0
    log_mel_err: float = 0.0

    def misses(self, tolerance: ToleranceConfig) -> list[str]:
        """Return a message for each measure that is out of tolerance."""
        if not np.isfinite(list(asdict(self).values())).all():
            return ["the device's embeddings hold NaN or infinity"]
        messages = []
        for name in ("rel_err", "scale_err", "noise_ratio", "bias_ratio", "log_mel_err"):
            if not getattr(self, name) <= getattr(tolerance, name):
                messages.append(f"{name} {getattr(self, name):.2g} is above {getattr(tolerance, name):.2g}")
        if not self.min_cosine >= tolerance.min_cosine:
            messages.append(f"min_cosine {self.min_cosine:.7f} is below {tolerance.min_cosine:.7f}")
        return messages

    def metrics(self) -> dict[str, float]:
        """Return the finite measures as metrics, ``parity_…``; JSON has no others."""
        return {f"parity_{name}": value for name, value in asdict(self).items() if np.isfinite(value)}


def worst_of(parities: Iterable[Parity]) -> Parity:
    """Return the worst of each measure."""
    parities = list(parities)
    measures = {field.name: [getattr(parity, field.name) for parity in parities] for field in fields(Parity)}
    return Parity(**{name: min(all_) if name == "min_cosine" else max(all_) for name, all_ in measures.items()})


def compare(embeddings: Array, answers: Answers, signals: NDArray[np.int64] | None = None) -> Parity:
    """Measure embeddings against the reference's answers.

    Args:
        embeddings: float32 [n, 128].
        answers: the reference's.
        signals: number of the signal of each row; all signals in order when None.

    Raises:
        ValueError: the number of rows is another.
    """
    exact = answers.exact if signals is None else answers.exact[signals]
    rounded = answers.rounded if signals is None else answers.rounded[signals]
    if embeddings.shape != exact.shape:
        raise ValueError(f"{list(embeddings.shape)} embeddings were returned where {list(exact.shape)} were expected")
    if not np.isfinite(embeddings).all():
        return Parity(np.inf, np.inf, -1.0, np.inf, np.inf, np.inf)
    actual, expected, coarse = (array.astype(np.float64) for array in (embeddings, exact, rounded))
    worst = float(np.abs(actual - expected).max())
    dots, squares = (actual * expected).sum(axis=1), (expected * expected).sum(axis=1)
    norms = np.linalg.norm(actual, axis=1) * np.sqrt(squares)
    is_equal = np.abs(actual - expected).max(axis=1) == 0
    cosines = np.where(norms > 0, dots / np.where(norms > 0, norms, 1.0), is_equal)
    largest = max(float(np.abs(expected).max()), np.finfo(np.float32).tiny)
    scale = float(dots.sum() / max(float(squares.sum()), np.finfo(np.float64).tiny))
    noise = bias = 0.0
    if len(embeddings) >= _ROWS_FOR_RATIOS:
        unit = max(_rms(coarse - expected), float(np.finfo(np.float32).eps) * _rms(expected), np.finfo(np.float32).tiny)
        noise, bias = _rms(actual - expected) / unit, _rms((actual - coarse).mean(axis=0)) / unit
    return Parity(
        max_abs_err=worst,
        rel_err=worst / largest,
        min_cosine=float(cosines.min()),
        scale_err=abs(scale - 1.0) if squares.any() else worst,
        noise_ratio=noise,
        bias_ratio=bias,
    )


def _rms(values: NDArray[np.float64]) -> float:
    return float(np.sqrt(np.square(values).mean()))


def parity_answers(weights: LoadedWeights, folder: Path, precision: str) -> Answers:
    """Return the reference's answers to the fixed signals for a precision.

    Args:
        weights: with their arrays.
        folder: of cached answers.
        precision: in effect.

    Raises:
        WeightsError: the weights give NaN or infinity.
    """
    signals = fixed_signals()
    exact, is_cached = reference_answers(weights.arrays, weights.checksum, signals, folder)
    if not np.isfinite(exact).all():
        raise WeightsError(f"{weights.choice.path} gives NaN or infinity on ordinary sound: get another checkpoint")
    if precision == "float32":
        return Answers(exact, exact, is_cached)
    rounded, is_rounded_cached = reference_answers(weights.arrays, weights.checksum, signals, folder, precision)
    return Answers(exact, rounded, is_cached and is_rounded_cached)
