"""Kernel Audio Distance: published vectors, and a loop over pairs."""

from __future__ import annotations

import math

import numpy as np
import pytest

from runner.statistics.kernel import kernel_distance, median_distance

X = np.random.default_rng(0).standard_normal((1000, 128))
Y = np.random.default_rng(1).standard_normal((500, 128)) * 1.1 + 0.05


def test_the_published_vectors_come_out() -> None:
    assert median_distance(X) == pytest.approx(15.979953547, abs=1e-9)
    assert median_distance(Y) == pytest.approx(17.471715364, abs=1e-9)
    assert kernel_distance(X, Y, median_distance(X)) == pytest.approx(0.179655707, abs=1e-9)
    assert kernel_distance(X, Y, median_distance(Y)) == pytest.approx(0.143865662, abs=1e-9)


def test_it_is_the_mean_over_pairs_that_it_is_defined_as() -> None:
    first, second = X[:7, :3], Y[:5, :3]

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return math.exp(-float(np.square(a - b).sum()) / (2 * 1.5**2))

    own = np.mean([kernel(a, b) for i, a in enumerate(first) for j, b in enumerate(first) if i != j])
    other = np.mean([kernel(a, b) for i, a in enumerate(second) for j, b in enumerate(second) if i != j])
    cross = np.mean([kernel(a, b) for a in first for b in second])
    assert kernel_distance(first, second, 1.5) == pytest.approx(100 * (own + other - 2 * cross), rel=1e-12)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = median_distance(X[:300]), kernel_distance(X[:300], Y[:100], 16.0)
    monkeypatch.setattr("runner.statistics.kernel._BLOCK", 64)
    assert median_distance(X[:300]) == pytest.approx(whole[0], rel=1e-14)
    assert kernel_distance(X[:300], Y[:100], 16.0) == pytest.approx(whole[1], rel=1e-10)
