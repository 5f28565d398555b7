"""The Fréchet distance between two sets of embeddings, its limit for infinitely many, and its uncertainty.

d² = |μ₁ − μ₂|² + tr Σ₁ + tr Σ₂ − 2 tr (Σ₁Σ₂)^½ (Dowson and Landau 1982; Kilgour et al., arXiv 1812.08466).  With
factors Fᵢᵀ Fᵢ = Σᵢ the last trace is the sum of the singular values of F₁ F₂ᵀ: real by construction, and exact for
singular covariances, where a matrix square root of Σ₁Σ₂ turns complex or loses six digits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runner.statistics.moments import EmbeddingStatistics, Matrix, Rows, Vector

STEPS, SMALLEST = 25, 500
"""Subsets that FAD∞ is fitted to, and the size of the smallest one; fadtk's defaults."""


@dataclass(frozen=True)
class Gaussian:
    """A set of embeddings as the Fréchet distance sees it.

    ``mean`` is float64 [size]; ``factor`` is float64 [rank, size] with factorᵀ · factor = covariance.
    """

    mean: Vector
    factor: Matrix

    @classmethod
    def of_covariance(cls, mean: Vector, covariance: Matrix, n: int | None = None) -> Gaussian:
        """From a mean [size] and a covariance [size, size] of ``n`` embeddings, whose rank is n − 1 at most."""
        values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
        rank = len(values) if n is None else max(0, min(len(values), n - 1))
        first = len(values) - rank
        roots = np.sqrt(np.clip(values[first:], 0.0, None))
        return cls(mean, roots[:, None] * vectors[:, first:].T)

    @classmethod
    def of_statistics(cls, statistics: EmbeddingStatistics) -> Gaussian:
        """From sums.

        Raises:
            ValueError: they are of fewer than two embeddings, which have no covariance.
        """
        if statistics.n < 2:
            raise ValueError(f"{statistics.n} embeddings have no covariance: two are needed at least")
        return cls.of_covariance(statistics.mean, statistics.covariance, statistics.n)

    @classmethod
    def of_rows(cls, rows: Rows) -> Gaussian:
        """From embeddings [n, size], of up to ``size`` without a covariance; raises as ``of_statistics``."""
        if 2 <= len(rows) <= rows.shape[1]:
            mean = rows.mean(axis=0, dtype=np.float64)
            return cls(mean, (rows - mean) / np.sqrt(len(rows) - 1))
        return cls.of_statistics(EmbeddingStatistics.of(rows))


def frechet_distance(first: Gaussian, second: Gaussian) -> float:
    """The squared Fréchet distance; symmetric, never below 0, and 0 where it is within rounding of it."""
    shift = first.mean - second.mean
    traces = np.square(first.factor).sum() + np.square(second.factor).sum()
    cross = np.linalg.svd(first.factor @ second.factor.T, compute_uv=False).sum()
    distance = float(shift @ shift + traces - 2 * cross)
    return distance if distance > len(shift) * np.finfo(float).eps * traces else 0.0


@dataclass(frozen=True)
class Limit:
    """FAD∞: the intercept of a straight line through (1/n, FAD of n embeddings), with its slope and R²."""

    value: float
    slope: float
    r2: float
    points: tuple[tuple[int, float], ...]


def frechet_limit(reference: Gaussian, rows: Rows, rng: np.random.Generator, *, replace: bool = False) -> Limit:
    """FAD∞ of embeddings against a reference (Chong and Forsyth, arXiv 1911.07023; Gui et al., arXiv 2311.01616).

    Args:
        reference: the other set, taken as it is.
        rows: the embeddings [n, size].
        rng: draws the subsets.
        replace: draw with replacement, as fadtk does; then the rows that are drawn twice count as fewer, and the
            intercept comes out too high.
    """
    smallest = min(SMALLEST, len(rows) // 2)
    sizes = np.unique(np.linspace(smallest, len(rows), STEPS).astype(int))
    points = []
    for size in sizes:
        subset = rows[rng.choice(len(rows), size, replace=replace)]
        points.append(frechet_distance(reference, Gaussian.of_rows(subset)))
    inverse, values = 1 / sizes, np.array(points)
    slope, intercept = np.polyfit(inverse, values, 1)
    residual = np.square(values - slope * inverse - intercept).sum()
    spread = np.square(values - values.mean()).sum()
    r2 = 1 - residual / spread if spread else 1.0
    return Limit(float(intercept), float(slope), float(r2), tuple(zip(sizes.tolist(), points, strict=True)))


def bootstrap_interval(
    reference: Gaussian,
    groups: Sequence[EmbeddingStatistics],
    rng: np.random.Generator,
    *,
    resamples: int = 200,
    level: float = 0.95,
) -> tuple[float, float] | None:
    """How far the distance of these embeddings would move with other clips: an interval around its value.

    Groups of clips are drawn with replacement, because the examples of a clip are alike.  A resample repeats groups,
    which raises its distance; so the quantiles are taken around the resamples' mean and put around the value itself.
    The bias that comes of too few embeddings is no part of it: see ``frechet_limit``.

    Args:
        reference: the other set, taken as it is.
        groups: the sums of disjoint groups of clips.
        rng: draws.
        resamples: how many times.
        level: the share of resamples within the interval.

    Returns:
        Its two ends; None with fewer than two groups.
    """
    sums = _stacked(groups)
    return _interval(lambda counts: _distance(reference, counts @ sums), len(sums), rng, resamples, level)


def paired_interval(
    first: Sequence[EmbeddingStatistics],
    second: Sequence[EmbeddingStatistics],
    rng: np.random.Generator,
    *,
    resamples: int = 200,
    level: float = 0.95,
) -> tuple[float, float] | None:
    """How far the distance of two embeddings of the same clips would move with other clips, drawn for both alike.

    As ``bootstrap_interval``, but a resample has the same clips on both sides, as ``scipy.stats.bootstrap`` with
    ``paired``: what one clip differs in from another is common to both, so that only the difference between the two
    embeddings of a clip widens the interval.

    Args:
        first: the sums of disjoint groups of clips in one set.
        second: those of the same groups in the other set.
        rng: draws.
        resamples: how many times.
        level: the share of resamples within the interval.

    Returns:
        Its two ends, both 0 for equal sets; None with fewer than two groups.
    """
    pairs = np.stack([_stacked(first), _stacked(second)], axis=1)

    def distance(counts: NDArray[np.int64]) -> float:
        sums = np.tensordot(counts, pairs, axes=1)
        return frechet_distance(*map(Gaussian.of_statistics, map(EmbeddingStatistics.from_vector, sums)))

    return _interval(distance, len(pairs), rng, resamples, level)


def _stacked(groups: Sequence[EmbeddingStatistics]) -> Matrix:
    return np.array([group.to_vector() for group in groups])


def _interval(
    distance: Callable[[NDArray[np.int64]], float], groups: int, rng: np.random.Generator, resamples: int, level: float
) -> tuple[float, float] | None:
    """The interval of a distance that depends on how often each group of clips is drawn."""
    if groups < 2:
        return None
    value = distance(np.ones(groups, np.int64))
    counts = rng.multinomial(groups, np.full(groups, 1 / groups), size=resamples)
    drawn = np.array([distance(count) for count in counts])
    tail = (1 - level) / 2
    low, high = value + np.quantile(drawn, (tail, 1 - tail)) - drawn.mean()
    return max(0.0, float(low)), float(high)


def _distance(reference: Gaussian, sums: Vector) -> float:
    """The distance of what ``EmbeddingStatistics.to_vector`` gave; by eigenvalues, which is faster and off by 1e-6."""
    statistics = EmbeddingStatistics.from_vector(sums)
    shift, covariance = reference.mean - statistics.mean, statistics.covariance
    squares = np.linalg.eigvalsh(reference.factor @ covariance @ reference.factor.T)
    cross = np.sqrt(np.clip(squares, 0.0, None)).sum()
    return float(shift @ shift + np.square(reference.factor).sum() + np.trace(covariance) - 2 * cross)
