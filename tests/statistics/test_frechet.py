"""The Fréchet distance: published vectors, closed forms, SciPy's square root, and sets without full rank."""

from __future__ import annotations

import numpy as np
import pytest

from runner.statistics.frechet import Gaussian, bootstrap_interval, frechet_distance, frechet_limit, paired_interval
from runner.statistics.moments import EmbeddingStatistics

X = np.random.default_rng(0).standard_normal((1000, 128))
Y = np.random.default_rng(1).standard_normal((500, 128)) * 1.1 + 0.05


def by_square_root(first: np.ndarray, second: np.ndarray) -> float:
    from scipy.linalg import sqrtm

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


def changed(clips: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The same clips in a coarser precision, with a small shift."""
    rounded: np.ndarray = clips * (1 + rng.standard_normal(clips.shape) * 0.03) + 0.02
    return rounded


def drawn_clips(rng: np.random.Generator, count: int) -> np.ndarray:
    """Clips of ten examples each, [count, 10, 16]."""
    clips: np.ndarray = rng.standard_normal((count, 10, 16)) + rng.standard_normal((count, 1, 16)) + 1
    return clips


def of_clips(first: np.ndarray, second: np.ndarray) -> float:
    return frechet_distance(*(Gaussian.of_rows(clips.reshape(-1, 16)) for clips in (first, second)))


def test_an_interval_of_pairs_is_as_wide_as_the_distances_of_other_clips_are_apart() -> None:
    rng = np.random.default_rng(0)
    distances = [of_clips(clips, changed(clips, rng)) for clips in (drawn_clips(rng, 60) for _ in range(300))]
    low, high = np.quantile(distances, (0.025, 0.975))
    widths = []
    for _ in range(5):
        clips = drawn_clips(rng, 60)
        other = changed(clips, rng)
        groups = [[EmbeddingStatistics.of(clip) for clip in side] for side in (clips, other)]
        interval = paired_interval(*groups, rng)
        assert interval is not None
        assert interval[0] < of_clips(clips, other) < interval[1]
        widths.append(interval[1] - interval[0])
    assert np.mean(widths) == pytest.approx(high - low, rel=0.3)


def test_an_interval_of_pairs_is_that_of_scipys_paired_bootstrap_around_the_value() -> None:
    from scipy.stats import bootstrap

    rng = np.random.default_rng(1)
    clips = drawn_clips(rng, 60)
    other = changed(clips, rng)
    value = of_clips(clips, other)
    found = bootstrap(
        (np.arange(60), np.arange(60)),
        lambda first, second: of_clips(clips[first], other[second]),
        paired=True,
        vectorized=False,
        n_resamples=1000,
        method="percentile",
        random_state=0,
    )
    shift = value - found.bootstrap_distribution.mean()
    expected = [end + shift for end in found.confidence_interval]
    groups = [[EmbeddingStatistics.of(clip) for clip in side] for side in (clips, other)]
    interval = paired_interval(*groups, rng, resamples=1000)
    assert interval is not None
    np.testing.assert_allclose(np.array(interval) - value, np.array(expected) - value, rtol=0.2)


def test_clips_that_are_all_scaled_alike_have_the_closed_forms_interval() -> None:
    rng = np.random.default_rng(2)
    clips = rng.standard_normal((50, 10, 16)) + rng.standard_normal((50, 1, 16))
    groups = [[EmbeddingStatistics.of(clip) for clip in side] for side in (clips, 1.01 * clips)]
    interval = paired_interval(*groups, np.random.default_rng(3), resamples=200)

    def scaled(rows: np.ndarray) -> float:  # d² = 0.01² (|μ|² + tr Σ)
        return 1e-4 * float(np.square(rows.mean(axis=0)).sum() + np.cov(rows, rowvar=False).trace())

    counts = np.random.default_rng(3).multinomial(50, np.full(50, 1 / 50), size=200)
    values = [scaled(np.concatenate(np.repeat(clips, count, axis=0))) for count in counts]
    expected = scaled(np.concatenate(clips)) + np.quantile(values, (0.025, 0.975)) - np.mean(values)
    assert interval == pytest.approx(tuple(expected), rel=1e-9)


def test_equal_sets_of_the_same_clips_have_an_interval_of_0() -> None:
    groups = [EmbeddingStatistics.of(Y[first : first + 10]) for first in range(0, 500, 10)]
    assert paired_interval(groups, groups, np.random.default_rng(0), resamples=20) == (0.0, 0.0)
    assert paired_interval(groups[:1], groups[:1], np.random.default_rng(0)) is None


def test_one_group_of_clips_has_no_interval() -> None:
    assert bootstrap_interval(Gaussian.of_rows(X), [EmbeddingStatistics.of(Y)], np.random.default_rng(0)) is None


def test_clips_of_single_examples_draw_into_an_interval() -> None:
    groups = [EmbeddingStatistics.of(Y[number : number + 1]) for number in range(50)]
    low, high = bootstrap_interval(Gaussian.of_rows(X), groups, np.random.default_rng(0)) or (0, 0)
    assert 0 < low < high
