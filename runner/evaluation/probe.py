"""Linear probes: logistic regression on frozen embeddings, with all labels and with a few."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from runner.evaluation.data import draw_folds
from runner.evaluation.scores import cross_validate, single_label_scores

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from runner.evaluation.data import LabeledData
    from runner.evaluation.scores import Scores

_ITERATIONS = 1000

_FEW_SHOT_ITERATIONS = 100
"""As in mteb's classification tasks."""


def probe(data: LabeledData) -> tuple[Scores, NDArray[np.float64]]:
    """Score logistic regression in each fold, on embeddings scaled to the mean and spread of what it learns from.

    Returns:
        As ``cross_validate``, named ``probe``.
    """

    def predict(train: NDArray[np.int64], test: NDArray[np.int64]) -> NDArray[np.float64]:
        from sklearn.preprocessing import StandardScaler

        scaler = StandardScaler().fit(data.embeddings[train])
        learned, tested = (scaler.transform(data.embeddings[rows]) for rows in (train, test))
        if not data.is_multilabel:
            return _rate(learned, data.classes[train], tested, len(data.names), _ITERATIONS)
        rated = np.zeros((len(test), len(data.names)))
        for column, targets in enumerate(data.targets[train].T):
            rated[:, column] = _rate(learned, targets.astype(np.int64), tested, 2, _ITERATIONS)[:, 1]
        return rated

    return cross_validate(data, "probe", predict)


def few_shot(data: LabeledData, folds: int, samples: int, experiments: int, seed: int) -> Scores:
    """Score logistic regression that learns from ``samples`` rows a label, as mteb's classification tasks do.

    Each experiment draws folds anew (or takes the next of those given), and learns from rows outside of one of them.

    Args:
        data: with one label a row.
        folds: how many.
        samples: of each label; fewer where there are not so many.
        experiments: draws.
        seed: of the first draw; the others follow.

    Returns:
        ``few_shot_accuracy`` and ``few_shot_macro_f1``, a value an experiment.
    """
    scores: Scores = {"few_shot_accuracy": [], "few_shot_macro_f1": []}
    for experiment in range(experiments):
        rng = np.random.default_rng(seed + experiment)
        if data.has_labeled_folds:
            row_folds = data.row_folds
            held_out = np.unique(row_folds)[experiment % len(np.unique(row_folds))]
        else:
            row_folds = draw_folds(data.targets, data.groups, folds, seed + experiment)[data.groups]
            held_out = row_folds[0]
        pool, test = np.flatnonzero(row_folds != held_out), np.flatnonzero(row_folds == held_out)
        of_label = (rng.permutation(pool[data.targets[pool, column]])[:samples] for column in range(len(data.names)))
        train = np.concatenate([*of_label])
        rated = _rate(
            *(data.embeddings[train], data.classes[train], data.embeddings[test]),
            len(data.names),
            _FEW_SHOT_ITERATIONS,
        )
        for metric, value in single_label_scores(data.targets[test], rated).items():
            scores[f"few_shot_{metric}"].append(value)
    return scores


def _rate(learned: Any, classes: NDArray[np.int64], tested: Any, count: int, iterations: int) -> NDArray[np.float64]:
    """Return each class's probability, float64 [tests, count]; 0 for classes that are not in what is learned from."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    rated = np.zeros((len(tested), count))
    known = np.unique(classes)
    if len(known) < 2:
        rated[:, known] = 1.0
        return rated
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = LogisticRegression(max_iter=iterations).fit(learned, classes)
    rated[:, known] = model.predict_proba(tested)
    return rated
