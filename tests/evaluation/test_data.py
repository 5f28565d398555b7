"""Folds: no group is on both sides of one, whatever the labels, the groups and the folds given."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.core.errors import EvaluationError
from runner.evaluation.data import digest_of, prepare
from tests.evaluation.labeled_runs import sample_of


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 12), st.sets(st.integers(0, 3), max_size=2)), min_size=4, max_size=60),
    folds=st.integers(2, 7),
    seed=st.integers(0, 5),
)
def test_no_group_is_on_both_sides_of_a_fold(rows: list[tuple[int, set[int]]], folds: int, seed: int) -> None:
    labels = [tuple(sorted(map(str, names))) for _, names in rows]
    groups = [f"recording {group}" for group, _ in rows]
    try:
        data = prepare(sample_of(np.zeros((len(rows), 128)), labels, groups), folds, seed)
    except EvaluationError:  # too few of them
        return
    tested = []
    for train, test in data.splits():
        assert not {*data.groups[train]} & {*data.groups[test]}
        assert sorted([*train, *test]) == [*range(len(data.groups))]
        assert len(test)
        tested += [*test]
    assert sorted(tested) == [*range(len(data.groups))]


def test_every_label_is_spread_over_the_folds() -> None:
    labels = [(f"label {number % 3}",) for number in range(60)]
    groups = [f"recording {number // 6}-{number % 3}" for number in range(60)]  # two rows of a label in each
    data = prepare(sample_of(np.zeros((60, 128)), labels, groups), 5, 0)
    for _, test in data.splits():
        assert [*data.targets[test].sum(axis=0)] == [4, 4, 4]


def test_given_folds_are_kept() -> None:
    labels = [(f"label {number % 2}",) for number in range(12)]
    folds = [str(1 + number // 4) for number in range(12)]
    data = prepare(sample_of(np.zeros((12, 128)), labels, [str(number) for number in range(12)], folds), 5, 0)
    assert data.has_labeled_folds
    assert [[*test] for _, test in data.splits()] == [[*range(4)], [*range(4, 8)], [*range(8, 12)]]


def test_given_folds_that_split_a_recording_are_refused() -> None:
    labels = [("a",), ("b",)] * 3
    groups = ["x", "y", "x", "y", "z", "z"]
    with pytest.raises(EvaluationError, match="x is in folds 1 and 2"):
        prepare(sample_of(np.zeros((6, 128)), labels, groups, ["1", "1", "2", "1", "2", "2"]), 5, 0)
    with pytest.raises(EvaluationError, match=r"00005\.wav has no fold"):
        prepare(sample_of(np.zeros((6, 128)), labels, groups, ["1", "1", "1", "1", "2", None]), 5, 0)
    with pytest.raises(EvaluationError, match="all recordings are in fold 1"):
        prepare(sample_of(np.zeros((6, 128)), labels, groups, ["1"] * 6), 5, 0)


def test_labels_of_a_single_recording_are_left_out_and_counted() -> None:
    labels = [("a",), ("b",), ("a",), ("b",), ("rare",), ("rare",)]
    data = prepare(sample_of(np.arange(6 * 128).reshape(6, 128), labels, ["1", "2", "3", "4", "5", "5"]), 5, 0)
    assert data.names == ["a", "b"]
    assert data.left_out == {"rare": 2}
    assert len(data.embeddings) == 4
    with pytest.raises(EvaluationError, match="1 labels of at least two recordings"):
        prepare(sample_of(np.zeros((3, 128)), [("a",), ("a",), ("b",)], ["1", "2", "3"]), 5, 0)


def test_folds_and_digest_are_the_same_for_runs_of_the_same_data() -> None:
    rng = np.random.default_rng(0)
    labels = [(str(number % 4),) for number in range(40)]
    groups = [str(number // 2) for number in range(40)]
    one, other = (sample_of(rng.standard_normal((40, 128)), labels, groups) for _ in range(2))
    np.testing.assert_array_equal(prepare(one, 5, 0).folds, prepare(other, 5, 0).folds)
    relabeled = sample_of(one.embeddings, labels[::-1], groups)
    digests = [digest_of(one, {"seed": 0}), digest_of(other, {"seed": 0}), digest_of(relabeled, {"seed": 0}),
               digest_of(one, {"seed": 1})]  # fmt: skip
    assert digests[0] == digests[1]
    assert all(before != after for before, after in pairwise(digests[1:]))
