"""Uncertainty of speeds: 95 % intervals by the bootstrap, of a run and of the ratio of two.

A run's speed is made of blocks: its repeated passes, or ten equal parts of its first pass (neighbouring windows are
alike, so that single ones would promise too much).  Runs of the same setting (rounds) are drawn first, then blocks in
them.  Percentiles are widened for few blocks (Hesterberg, "What Teachers Should Know About the Bootstrap", 2015); of
three blocks the interval is all that they reach.  Draws are seeded: the same speeds give the same interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from runner.reporting.comparability import FIRST_PASS, REPEATS

if TYPE_CHECKING:
    from runner.contract.result import WorkerResult

Blocks = Sequence[Sequence[float]]
"""The speeds of blocks, run by run."""

Interval = tuple[float, float]

_DRAWS = 4000

_BLOCKS = 10

_FEWEST = 3
"""Blocks (or runs) that an interval takes."""

_T = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)
"""Student's t at 97.5 % for 1, 2, … degrees of freedom."""


def blocks_of(result: WorkerResult, metric: str) -> tuple[float, ...]:
    """Return the blocks of a run's speed; none where it was too short for an interval."""
    if metric == REPEATS:
        return tuple(own["realtime_factor"] for own in (result.repeats.passes if result.repeats else ()))
    if metric == FIRST_PASS:
        return of_windows([window["realtime_factor"] for window in result.stats.throughput_series])
    return ()


def of_windows(speeds: Sequence[float]) -> tuple[float, ...]:
    """Return ten blocks of a run's windows over time, each of as many examples, without the first (warm-up).

    Args:
        speeds: of windows of equally many examples, in order; fewer than thirty give none.
    """
    if len(speeds) < 3 * _BLOCKS or min(speeds) <= 0:
        return ()
    parts = np.array_split(np.asarray(speeds, np.float64), _BLOCKS)
    return tuple(float(1.0 / np.mean(1.0 / part)) for part in parts[1:])


def interval_metrics(result: WorkerResult) -> dict[str, float]:
    """Return the intervals of a run's speeds as metrics, as far as there are any."""
    metrics: dict[str, float] = {}
    for metric in (FIRST_PASS, REPEATS):
        value = result.metrics.get(metric)
        ends = interval(value, [blocks_of(result, metric)]) if value else None
        if ends:
            metrics |= dict(zip(ENDS[metric], ends, strict=True))
    return metrics


ENDS = {metric: (f"{metric}_low", f"{metric}_high") for metric in (FIRST_PASS, REPEATS)}
"""The metrics that are the ends of a speed's interval."""


def interval(value: float, blocks: Blocks) -> Interval | None:
    """Return the interval of a speed that is made of these blocks; None where they are too few."""
    drawn, n = _draw(blocks, 0)
    return None if drawn is None else _ends(value * drawn, n)


def ratio(one: float, blocks: Blocks, other: float, other_blocks: Blocks) -> Interval | None:
    """Return the interval of the ratio of two speeds; None where the blocks of either are too few."""
    (drawn, n), (other_drawn, other_n) = _draw(blocks, 1), _draw(other_blocks, 2)
    if drawn is None or other_drawn is None or not other:
        return None
    return _ends(one / other * drawn / other_drawn, min(n, other_n))


def _draw(blocks: Blocks, seed: int) -> tuple[NDArray[np.float64] | None, int]:
    """Resampled speeds over the observed one, [draws], and how many independent values they are of."""
    runs = [np.asarray(run, np.float64) for run in blocks if len(run)]
    if not runs or (len(runs) < _FEWEST and min(map(len, runs)) < _FEWEST):
        return None, 0
    rng = np.random.default_rng(seed)
    means = np.stack([run[rng.integers(0, len(run), (_DRAWS, len(run)))].mean(axis=1) for run in runs])
    chosen = rng.integers(0, len(runs), (len(runs), _DRAWS))
    drawn = np.take_along_axis(means, chosen, axis=0).mean(axis=0)
    return drawn / np.mean([run.mean() for run in runs]), len(runs) if len(runs) > 1 else len(runs[0])


def _ends(drawn: NDArray[np.float64], n: int) -> Interval:
    t = _T[n - 2] if n - 2 < len(_T) else 1.96 + 2.6 / (n - 1)
    tail = 100 * NormalDist().cdf(-math.sqrt(n / (n - 1)) * t)
    low, high = np.percentile(drawn, [tail, 100 - tail])
    return float(low), float(high)
