"""Parity measures: distances of a device's embeddings from the reference's answers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from runner.config.schema import ToleranceConfig
    from runner.models.answers import Answers

Array = NDArray[np.float32]

_ROWS_FOR_RATIOS = 12


@dataclass(frozen=True)
class Parity:
    """Distances of a device's embeddings from the reference's.

    NaN or infinity in the embeddings makes all errors infinite and the cosine -1.

    Two ratios tell a small systematic error from a coarse precision's noise.  Their unit is the root mean square of the
    error that rounding alone makes, at least float32's 1.2e-7; both are 0 for fewer rows than ``_ROWS_FOR_RATIOS``, and
    where the reference can't round.

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
    """Measure embeddings against the reference's answers: each output by itself, and the worst of each measure.

    Args:
        embeddings: float32 [n, width].
        answers: the reference's.
        signals: number of the signal of each row; all signals in order when None.

    Raises:
        ValueError: the number of rows is another.
    """
    rows = slice(None) if signals is None else signals
    exact, rounded = answers.exact[rows], None if answers.rounded is None else answers.rounded[rows]
    if embeddings.shape != exact.shape:
        raise ValueError(f"{list(embeddings.shape)} embeddings were returned where {list(exact.shape)} were expected")
    if not np.isfinite(embeddings).all():
        return Parity(np.inf, np.inf, -1.0, np.inf, np.inf, np.inf)
    ends = np.cumsum([output.width for output in answers.outputs])[:-1]
    parts = [np.split(rows, ends, axis=1) for rows in (embeddings, exact, exact if rounded is None else rounded)]
    return worst_of(_compare(*part, has_rounded=rounded is not None) for part in zip(*parts, strict=True))


def _compare(embeddings: Array, exact: Array, rounded: Array, *, has_rounded: bool) -> Parity:
    """Measure one output, [n, width] each."""
    actual, expected, coarse = (array.astype(np.float64) for array in (embeddings, exact, rounded))
    worst = float(np.abs(actual - expected).max())
    dots, squares = (actual * expected).sum(axis=1), (expected * expected).sum(axis=1)
    norms = np.linalg.norm(actual, axis=1) * np.sqrt(squares)
    is_equal = np.abs(actual - expected).max(axis=1) == 0
    cosines = np.where(norms > 0, dots / np.where(norms > 0, norms, 1.0), is_equal)
    largest = max(float(np.abs(expected).max()), np.finfo(np.float32).tiny)
    scale = float(dots.sum() / max(float(squares.sum()), np.finfo(np.float64).tiny))
    noise = bias = 0.0
    if has_rounded and len(embeddings) >= _ROWS_FOR_RATIOS:
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
