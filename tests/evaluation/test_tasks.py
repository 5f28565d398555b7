"""The tasks against scikit-learn's own loops and the formulas, on data whose answer is known, and at chance."""

from __future__ import annotations

import math
from unittest import mock

import numpy as np
import pytest

from runner.evaluation import probe as probes
from runner.evaluation.clustering import cluster
from runner.evaluation.data import LabeledData, prepare
from runner.evaluation.knn import knn
from runner.evaluation.probe import few_shot, probe
from runner.evaluation.retrieval import average_precision_at_r, chance_map_at_r, retrieve
from runner.evaluation.scores import chance_levels, multilabel_scores, per_label
from tests.evaluation.labeled_runs import sample_of


def clips(labels: int = 4, recordings: int = 60, takes: int = 2, distance: float = 0.25, seed: int = 0) -> LabeledData:
    """Takes of recordings; the nearer the labels' means, the more the tasks get wrong."""
    rng = np.random.default_rng(seed)
    means = distance * rng.standard_normal((labels, 128))
    number = np.repeat(np.arange(recordings), takes)
    embeddings = means[number % labels] + rng.standard_normal((len(number), 128))
    names = [(f"label {each % labels}",) for each in number]
    return prepare(sample_of(embeddings, names, [f"recording {each}" for each in number]), 5, seed)


def with_permuted_labels(seed: int, multilabel: bool = False) -> LabeledData:
    """300 recordings of two alike windows each, whose labels say nothing of them."""
    rng = np.random.default_rng(seed)
    number = np.repeat(np.arange(300), 2)
    embeddings = rng.standard_normal((300, 128))[number] + 0.01 * rng.standard_normal((600, 128))
    names = [(f"label {each}",) for each in rng.permutation(np.arange(300) % 3)]
    if multilabel:
        names = [names[each] if each % 4 else () for each in range(300)]
    return prepare(sample_of(embeddings, [names[each] for each in number], [str(each) for each in number]), 5, seed)


@pytest.mark.parametrize("task", ["probe", "knn"])
def test_a_classifier_scores_what_scikit_learns_own_loop_over_the_folds_does(task: str) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import PredefinedSplit, cross_val_score
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    data = clips()
    scores, _ = probe(data) if task == "probe" else knn(data, 15)
    classifier = LogisticRegression(max_iter=1000) if task == "probe" else KNeighborsClassifier(15)
    model, folds = make_pipeline(StandardScaler(), classifier), PredefinedSplit(data.row_folds)
    for metric, scoring in (("accuracy", "accuracy"), ("macro_f1", "f1_macro")):
        expected = cross_val_score(model, data.embeddings, data.classes, cv=folds, scoring=scoring)
        (name,) = [name for name in scores if name.endswith(metric)]
        np.testing.assert_allclose(scores[name], expected, atol=1e-12)
        assert 0.3 < expected.mean() < 0.98


def test_every_row_is_rated_by_a_classifier_that_did_not_learn_from_its_recording() -> None:
    data = clips()
    seen = []
    rate = probes._rate

    def noting(learned: np.ndarray, classes: np.ndarray, tested: np.ndarray, *more: int) -> np.ndarray:
        seen.append((len(learned), len(tested)))
        return rate(learned, classes, tested, *more)

    with mock.patch.object(probes, "_rate", noting):
        _, ratings = probe(data)
    assert [*map(sum, seen)] == [len(data.classes)] * 5
    assert sum(tested for _, tested in seen) == len(data.classes)
    np.testing.assert_allclose(ratings.sum(axis=1), 1, rtol=1e-5)
    accuracy = (ratings.argmax(axis=1) == data.classes).mean()
    assert {label: each["rows"] for label, each in per_label(data, ratings).items()} == dict.fromkeys(data.names, 30)
    assert 0.3 < accuracy < 1


def test_the_few_shot_probe_learns_from_eight_rows_a_label_outside_of_the_tested_recordings() -> None:
    from sklearn.linear_model import LogisticRegression

    data = clips()
    row_of = {row.tobytes(): number for number, row in enumerate(data.embeddings)}
    learned_from, expected = [], []
    rate = probes._rate

    def noting(learned: np.ndarray, classes: np.ndarray, tested: np.ndarray, *more: int) -> np.ndarray:
        train, test = ([row_of[row.tobytes()] for row in rows] for rows in (learned, tested))
        assert not {*data.groups[train]} & {*data.groups[test]}
        assert [*np.bincount(data.classes[train])] == [8] * 4
        learned_from.append(frozenset(train))
        model = LogisticRegression(max_iter=100).fit(learned, classes)
        expected.append(model.score(tested, data.classes[test]))
        return rate(learned, classes, tested, *more)

    with mock.patch.object(probes, "_rate", noting):
        scores = few_shot(data, folds=5, samples=8, experiments=10, seed=0)
    assert scores["few_shot_accuracy"] == pytest.approx(expected)
    assert len({*learned_from}) == 10
    assert few_shot(data, folds=5, samples=8, experiments=10, seed=0) == scores


def test_a_label_of_fewer_rows_gives_all_of_them_to_the_few_shot_probe() -> None:
    scores = few_shot(clips(recordings=12, distance=3.0), folds=3, samples=100, experiments=2, seed=0)
    assert scores["few_shot_accuracy"] == [1.0, 1.0]


def test_a_recordings_own_windows_teach_nothing_of_it() -> None:
    """Windows of a recording are nearly equal: with one of them on each side of a fold accuracy would be 100 %."""
    from sklearn.model_selection import PredefinedSplit, cross_val_score
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    data = with_permuted_labels(0)
    scores, _ = knn(data, 1)
    assert np.mean(scores["knn_accuracy"]) < 0.5
    rng = np.random.default_rng(0)
    leaking = np.zeros(len(data.classes), int)
    leaking[rng.permutation(len(leaking))[: len(leaking) // 2]] = 1
    model = make_pipeline(StandardScaler(), KNeighborsClassifier(1))
    assert cross_val_score(model, data.embeddings, data.classes, cv=PredefinedSplit(leaking)).mean() > 0.6
    assert chance_map_at_r(data) == pytest.approx(np.mean(retrieve(data)["retrieval_map_at_r"]), abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_permuted_labels_come_out_at_chance(seed: int) -> None:
    """Each of 300 recordings is guessed at random: accuracy is within four standard errors of 1/3, for two alike
    windows of a recording count once; of retrieval and clustering the spread is smaller than of that."""
    data = with_permuted_labels(seed)
    bound = 4 * math.sqrt(1 / 3 * 2 / 3 / 300)
    assert chance_levels(data) == {"accuracy": pytest.approx(1 / 3)}
    for scores in (probe(data)[0], knn(data, 15)[0]):
        (accuracy,) = [np.mean(values) for name, values in scores.items() if name.endswith("accuracy")]
        assert abs(accuracy - 1 / 3) < bound
    # Ten draws with tests of 60 recordings each: their mean can't vary more than that of one
    few = few_shot(data, folds=5, samples=8, experiments=10, seed=seed)["few_shot_accuracy"]
    assert abs(np.mean(few) - 1 / 3) < 4 * math.sqrt(1 / 3 * 2 / 3 / 60)
    assert abs(np.mean(cluster(data, 10, seed)["cluster_ami"])) < 0.03
    assert abs(np.mean(retrieve(data)["retrieval_map_at_r"]) - chance_map_at_r(data)) < 0.02


def test_permuted_labels_of_which_a_row_may_have_none_come_out_at_chance() -> None:
    """The standard error of AUC without skill is √((p + n + 1)/(12 p n)) (Hanley and McNeil 1982), of a macro mean of
    three labels at most that; recordings count once."""
    data = with_permuted_labels(0, multilabel=True)
    assert data.is_multilabel
    assert chance_levels(data) == {"map": pytest.approx(0.25, abs=0.01), "auc": 0.5}
    positives, negatives = 75, 225
    bound = 4 * math.sqrt((positives + negatives + 1) / (12 * positives * negatives))
    for scores in (probe(data)[0], knn(data, 15)[0]):
        means = {name.partition("_")[2]: np.mean(values) for name, values in scores.items()}
        assert abs(means["auc"] - 0.5) < bound
        assert abs(means["map"] - 0.25) < 0.1


def test_scores_of_several_labels_a_row_are_scikit_learns_over_labels_that_tell_rows_apart() -> None:
    from sklearn.metrics import average_precision_score, roc_auc_score

    rng = np.random.default_rng(0)
    targets = rng.random((50, 4)) < [0.3, 0.6, 0.0, 1.0]
    rated = rng.random((50, 4)) + targets
    found = multilabel_scores(targets, rated)
    assert found["map"] == pytest.approx(np.mean([average_precision_score(targets[:, n], rated[:, n]) for n in (0, 1)]))
    assert found["auc"] == pytest.approx(np.mean([roc_auc_score(targets[:, n], rated[:, n]) for n in (0, 1)]))
    assert all(map(math.isnan, multilabel_scores(targets[:, 2:], rated[:, 2:]).values()))


def test_labels_that_can_be_told_apart_are_learned_where_a_row_has_several() -> None:
    from sklearn.metrics import average_precision_score

    rng = np.random.default_rng(0)
    has = rng.random((200, 3)) < 0.3
    embeddings = has @ (4 * rng.standard_normal((3, 128))) + rng.standard_normal((200, 128))
    names = [tuple(f"label {label}" for label in np.flatnonzero(row)) for row in has]
    data = prepare(sample_of(embeddings, names, [str(number // 2) for number in range(200)]), 5, 0)
    scores, ratings = probe(data)
    assert np.mean(scores["probe_map"]) > 0.95
    assert np.mean(knn(data, 15)[0]["knn_auc"]) > 0.95
    of_label = per_label(data, ratings)["label 1"]
    assert of_label["rows"] == has[:, 1].sum()
    assert of_label["average_precision"] == average_precision_score(has[:, 1], ratings[:, 1])


def test_clusters_are_the_labels_where_these_lie_apart() -> None:
    scores = cluster(clips(distance=3.0), experiments=10, seed=0)
    assert max(scores["cluster_ami"]) == max(scores["cluster_ari"]) == pytest.approx(1.0)
    assert {name: len(values) for name, values in scores.items()} == dict.fromkeys(
        ("cluster_ami", "cluster_ari", "cluster_v_measure"), 10
    )


@pytest.mark.parametrize("queries", [512, 7])
def test_retrieval_is_the_definition_of_map_at_r_among_other_recordings(
    queries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runner.evaluation.retrieval._QUERIES", queries)
    data = clips(labels=3, recordings=31)
    unit = data.embeddings / np.linalg.norm(data.embeddings, axis=1, keepdims=True)
    expected = []
    for query, group in enumerate(data.groups):
        others = np.flatnonzero(data.groups != group)
        ranked = others[np.argsort(-unit[others] @ unit[query], kind="stable")]
        r = int((data.classes[others] == data.classes[query]).sum())
        is_relevant = data.classes[ranked[:r]] == data.classes[query]
        expected.append(sum(is_relevant[: i + 1].mean() for i in range(r) if is_relevant[i]) / r)
    np.testing.assert_allclose(average_precision_at_r(data), expected, atol=1e-6)
    by_fold = [np.mean(np.array(expected)[test]) for _, test in data.splits()]
    np.testing.assert_allclose(retrieve(data)["retrieval_map_at_r"], by_fold, atol=1e-6)


def test_the_chance_level_of_retrieval_is_the_mean_over_random_orders() -> None:
    data = clips(labels=3, recordings=12)
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(400):
        shuffled = LabeledData(rng.standard_normal((24, 128)).astype(np.float32), data.targets, data.names, data.groups,
                               data.folds, {}, False)  # fmt: skip
        drawn.append(np.mean(average_precision_at_r(shuffled)))
    error = np.std(drawn) / math.sqrt(len(drawn))
    assert abs(np.mean(drawn) - chance_map_at_r(data)) < 4 * error
