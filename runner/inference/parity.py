"""What a device is held to: fixed signals, the reference's answers to them, and how far from those it may be."""

from __future__ import annotations

import logging
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

log = logging.getLogger(__name__)

Array = NDArray[np.float32]

INT16_SIGNALS = 13
"""So many of the fixed signals have the values of 16-bit samples."""

_RATE, _SAMPLES, _FULL_SCALE = 16_000, 15_600, 32_768
"""Written out, as in the reference: the signals must not change with a fault elsewhere."""

_ROWS_FOR_RATIOS = 12


def fixed_signals() -> Array:
    """The signals, one window each, float32 [16, 15600]: the same everywhere, always.

    The first ``INT16_SIGNALS`` have the values of 16-bit samples, so that ``as_int16`` has the same ones: a tone, two
    tones 40 dB apart, a chirp over the whole band, noise, silence, an impulse, clipped speech-like (voiced harmonics
    under a syllable's envelope), noise at -80 dB, a square wave and clipped noise (both of RMS above 0.9), a constant
    with a tone on it, tones beside either edge of the mel bands.  The others only floats can be: samples above 1, a
    decaying tone that is finer than 16 bits, noise at -120 dB.
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
    """Signals as 16-bit samples, of those that have such values."""
    samples: NDArray[np.int16] = (signals * np.float32(_FULL_SCALE)).astype(np.int16)
    return samples


@dataclass(frozen=True)
class Parity:
    """How far a device's embeddings are from the expected ones.

    ``max_abs_err``: the largest difference; ``rel_err``: that over the largest expected value; ``min_cosine``: the
    least cosine of an embedding with its expected one; ``scale_err``: how far the best common factor between the two
    is from 1.  NaN or infinity anywhere makes all of them infinite and the cosine -1.

    Two more tell a small systematic error from a coarse precision's noise, in units of the error that rounding alone
    makes (root mean square; never less than float32's own 1.2e-7): ``noise_ratio``, the whole error; ``bias_ratio``,
    what is left of the difference to the rounded answers when it is averaged over the rows, as rounding's own hardly
    is.  Both are 0 for fewer rows than ``_ROWS_FOR_RATIOS``.

    ``log_mel_err``: the largest difference of log-mel, which no coarse precision touches; 0 where it was not looked at.
    """

    max_abs_err: float
    rel_err: float
    min_cosine: float
    scale_err: float
    noise_ratio: float = 0.0
    bias_ratio: float = 0.0
    log_mel_err: float = 0.0

    def misses(self, tolerance: ToleranceConfig) -> list[str]:
        """What is out of tolerance, in words; empty if nothing is."""
        if not np.isfinite(list(asdict(self).values())).all():
            return ["the device's embeddings hold NaN or infinity"]
        found = []
        for name in ("rel_err", "scale_err", "noise_ratio", "bias_ratio", "log_mel_err"):
            if not getattr(self, name) <= getattr(tolerance, name):
                found.append(f"{name} {getattr(self, name):.2g} is above {getattr(tolerance, name):.2g}")
        if not self.min_cosine >= tolerance.min_cosine:
            found.append(f"min_cosine {self.min_cosine:.7f} is below {tolerance.min_cosine:.7f}")
        return found

    def metrics(self) -> dict[str, float]:
        """The measures as metrics, ``parity_…``; those that are finite, since JSON has no others."""
        return {f"parity_{name}": value for name, value in asdict(self).items() if np.isfinite(value)}


def worst_of(found: Iterable[Parity]) -> Parity:
    """The worst of each measure."""
    each = list(found)
    values = {field.name: [getattr(parity, field.name) for parity in each] for field in fields(Parity)}
    return Parity(**{name: min(of) if name == "min_cosine" else max(of) for name, of in values.items()})


def compare(found: Array, answers: Answers, which: NDArray[np.int64] | None = None) -> Parity:
    """Measure embeddings against the expected ones.

    Args:
        found: float32 [n, 128].
        answers: the reference's.
        which: of the signals, in the order of ``found``; all of them when None.

    Raises:
        ValueError: there are not as many.
    """
    expected = answers.exact if which is None else answers.exact[which]
    rounded = answers.rounded if which is None else answers.rounded[which]
    if found.shape != expected.shape:
        raise ValueError(f"{list(found.shape)} embeddings were returned where {list(expected.shape)} were expected")
    if not np.isfinite(found).all():
        return Parity(np.inf, np.inf, -1.0, np.inf, np.inf, np.inf)
    got, want, near = (array.astype(np.float64) for array in (found, expected, rounded))
    worst = float(np.abs(got - want).max())
    dots, squares = (got * want).sum(axis=1), (want * want).sum(axis=1)
    norms = np.linalg.norm(got, axis=1) * np.sqrt(squares)
    cosines = np.where(norms > 0, dots / np.where(norms > 0, norms, 1.0), np.abs(got - want).max(axis=1) == 0)
    largest = max(float(np.abs(want).max()), np.finfo(np.float32).tiny)
    scale = float(dots.sum() / max(float(squares.sum()), np.finfo(np.float64).tiny))
    noise = bias = 0.0
    if len(found) >= _ROWS_FOR_RATIOS:
        unit = max(_rms(near - want), float(np.finfo(np.float32).eps) * _rms(want), np.finfo(np.float32).tiny)
        noise, bias = _rms(got - want) / unit, _rms((got - near).mean(axis=0)) / unit
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
    """What a device is expected to answer on the fixed signals in a precision.

    Args:
        weights: with their arrays.
        folder: where answers are kept.
        precision: in effect.

    Raises:
        WeightsError: the weights give NaN or infinity.
    """
    signals = fixed_signals()
    exact, known = reference_answers(weights.arrays, weights.checksum, signals, folder)
    if not np.isfinite(exact).all():
        raise WeightsError(f"{weights.choice.path} gives NaN or infinity on ordinary sound: get another checkpoint")
    if precision == "float32":
        return Answers(exact, exact, known)
    rounded, also = reference_answers(weights.arrays, weights.checksum, signals, folder, precision)
    return Answers(exact, rounded, known and also)
