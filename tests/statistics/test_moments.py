"""Sums of embeddings: numpy's mean and covariance, whatever they are merged from."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from runner.statistics.moments import BLOCK_ROWS, EmbeddingStatistics, merged

ROWS = (np.random.default_rng(3).standard_normal((3 * BLOCK_ROWS + 17, 128)) * 0.4 + 0.3).astype(np.float32)


def test_mean_and_covariance_are_numpys() -> None:
    statistics = EmbeddingStatistics.of(ROWS)
    assert statistics.n == len(ROWS)
    np.testing.assert_allclose(statistics.mean, ROWS.mean(axis=0, dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(statistics.covariance, np.cov(ROWS.astype(np.float64), rowvar=False), atol=1e-13)


def test_parts_that_are_merged_are_the_whole() -> None:
    whole = EmbeddingStatistics.of(ROWS)
    cuts = [0, 1, 1, 700, 4097, len(ROWS)]
    parts = [EmbeddingStatistics.of(ROWS[first:end]) for first, end in itertools.pairwise(cuts)]
    for order in (parts, parts[::-1]):
        together = merged(order, 128)
        assert together.n == whole.n
        np.testing.assert_allclose(together.mean, whole.mean, rtol=1e-12)
        np.testing.assert_allclose(together.covariance, whole.covariance, rtol=1e-12, atol=1e-15)


def test_one_embedding_adds_to_the_sums_and_has_no_covariance_of_its_own() -> None:
    one = EmbeddingStatistics.of(ROWS[:1])
    assert np.isnan(one.covariance).all()
    one.merge(EmbeddingStatistics.of(ROWS[1:3]))
    np.testing.assert_allclose(one.covariance, np.cov(ROWS[:3].astype(np.float64), rowvar=False), atol=1e-14)


def test_no_embeddings_change_nothing() -> None:
    statistics = EmbeddingStatistics.of(ROWS)
    before = statistics.to_vector()
    statistics.merge(EmbeddingStatistics(128))
    statistics.add(ROWS[:0])
    np.testing.assert_array_equal(statistics.to_vector(), before)
    assert np.isnan(EmbeddingStatistics(128).mean).all()


def test_a_vector_holds_everything() -> None:
    statistics = EmbeddingStatistics.of(ROWS[:, :7])
    back = EmbeddingStatistics.from_vector(statistics.to_vector())
    assert back.n == statistics.n
    np.testing.assert_array_equal(back.products, statistics.products)
    np.testing.assert_array_equal(back.total, statistics.total)
    assert EmbeddingStatistics(128).to_vector().nbytes == 8 * (1 + 128 + 128 * 129 // 2)


@pytest.mark.parametrize("vector", [np.zeros(0), np.zeros(2), np.zeros(8386), np.array([0.5, 1.0, 1.0])])
def test_a_vector_of_something_else_is_refused(vector: np.ndarray) -> None:
    with pytest.raises(ValueError, match="not the statistics"):
        EmbeddingStatistics.from_vector(vector)
