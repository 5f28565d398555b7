"""The Fréchet distance: published vectors, closed forms, SciPy's square root, and sets without full rank."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import sqrtm

from runner.statistics.frechet import Gaussian, bootstrap_interval, frechet_distance, frechet_limit
from runner.statistics.moments import EmbeddingStatistics

X = np.random.default_rng(0).standard_normal((1000, 128))
Y = np.random.default_rng(1).standard_normal((500, 128)) * 1.1 + 0.05


def by_square_root(first: np.ndarray, second: np.ndarray) -> float:
    shift = first.mean(axis=0) - second.mean(axis=0)
    a, b = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    return float(shift @ shift + np.trace(a) + np.trace(b) - 2 * np.trace(sqrtm(a @ b).real))


def by_cross_product(first: np.ndarray, second: np.ndarray) -> float:
    """Exact for singular sets: the trace is the sum of the singular values of A_c B_cᵀ, scaled."""
    a, b = (rows - rows.mean(axis=0) for rows in (first, second))
    scale = np.sqrt((len(a) - 1) * (len(b) - 1))
    cross = np.linalg.svd(a @ b.T, compute_uv=False).sum() / scale
    shift = first.mean(axis=0) - second.mean(axis=0)
    return float(shift @ shift + np.square(a).sum() / (len(a) - 1) + np.square(b).sum() / (len(b) - 1) - 2 * cross)


def test_the_published_vector_comes_out_to_nine_digits_in_both_directions() -> None:
    x, y = Gaussian.of_rows(X), Gaussian.of_rows(Y)
    assert frechet_distance(x, y) == pytest.approx(15.465548112559, abs=1e-9)
    assert frechet_distance(y, x) == pytest.approx(15.465548112559, abs=1e-9)
    assert frechet_distance(x, y) == pytest.approx(by_square_root(X, Y), abs=1e-9)


def test_a_set_has_no_distance_from_itself() -> None:
    for rows in (X, Y, X[:60]):
        assert 0.0 <= frechet_distance(Gaussian.of_rows(rows), Gaussian.of_rows(rows)) < 1e-12 * np.square(rows).sum()


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 2.0), (0.5, 1.0), (0.3, 0.1)])
def test_two_gaussians_have_the_closed_form(shift: float, scale: float) -> None:
    mean = np.full(128, shift)
    first = Gaussian.of_covariance(np.zeros(128), np.eye(128))
    second = Gaussian.of_covariance(mean, scale**2 * np.eye(128))
    expected = 128 * shift**2 + 128 * (1 - scale) ** 2
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize(("m", "n"), [(110, 55), (31, 1000), (2, 2), (128, 129)])
def test_sets_without_full_rank_are_as_exact_as_others(m: int, n: int) -> None:
    first, second = X[:m], np.random.default_rng(5).standard_normal((n, 128)) * 0.3 + 0.1
    expected = by_cross_product(first, second)
    from_rows = frechet_distance(Gaussian.of_rows(first), Gaussian.of_rows(second))
    sums = [EmbeddingStatistics.of(rows) for rows in (first, second)]
    from_sums = frechet_distance(*map(Gaussian.of_statistics, sums))
    assert from_rows == pytest.approx(expected, rel=1e-12)
    assert from_sums == pytest.approx(expected, rel=1e-9)


def test_a_single_embedding_has_no_distance() -> None:
    with pytest.raises(ValueError, match="1 embeddings have no covariance"):
        Gaussian.of_rows(X[:1])


@pytest.mark.slow
def test_the_limit_takes_the_bias_of_few_embeddings_out() -> None:
    rng = np.random.default_rng(0)
    reference = Gaussian.of_covariance(np.zeros(128), np.eye(128))
    rows = rng.standard_normal((4000, 128)) * 1.1 + 0.05  # 128 · (0.05² + 0.1²) = 1.6
    limit = frechet_limit(reference, rows, rng)
    assert limit.points[-1] == (4000, pytest.approx(frechet_distance(reference, Gaussian.of_rows(rows))))
    assert limit.points[-1][1] > 2.2
    assert limit.value == pytest.approx(1.6, abs=0.15)
    assert limit.r2 > 0.99
    assert limit.slope > 0
    with_repeats = frechet_limit(reference, rows, np.random.default_rng(0), replace=True)
    assert with_repeats.value > limit.value + 0.3


def test_the_interval_holds_the_distance_and_narrows_with_more_clips() -> None:
    rng = np.random.default_rng(0)
    reference = Gaussian.of_covariance(np.zeros(16), np.eye(16))
    widths = []
    for clips in (40, 4000):
        rows = rng.standard_normal((clips, 10, 16)) + rng.standard_normal((clips, 1, 16)) + 1
        groups = [EmbeddingStatistics.of(rows[first::40].reshape(-1, 16)) for first in range(40)]
        interval = bootstrap_interval(reference, groups, rng)
        assert interval is not None
        assert interval[0] < frechet_distance(reference, Gaussian.of_rows(rows.reshape(-1, 16))) < interval[1]
        widths.append(interval[1] - interval[0])
    assert widths[0] == pytest.approx(10 * widths[1], rel=0.5)


def test_one_group_of_clips_has_no_interval() -> None:
    assert bootstrap_interval(Gaussian.of_rows(X), [EmbeddingStatistics.of(Y)], np.random.default_rng(0)) is None


def test_clips_of_single_examples_draw_into_an_interval() -> None:
    groups = [EmbeddingStatistics.of(Y[number : number + 1]) for number in range(50)]
    low, high = bootstrap_interval(Gaussian.of_rows(X), groups, np.random.default_rng(0)) or (0, 0)
    assert 0 < low < high
