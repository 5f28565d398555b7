"""Scores of a fold's predictions, by the field's names, and the level that they have by chance."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from runner.evaluation.data import LabeledData

Scores = dict[str, list[float]]
"""Values of each metric, one a fold or experiment."""

Fitted = Callable[["NDArray[np.int64]", "NDArray[np.int64]"], "NDArray[np.float64]"]
"""From the rows to learn from and to test on to float64 [tests, k]: larger where a label is likelier."""


def cross_validate(data: LabeledData, name: str, predict: Fitted) -> tuple[Scores, NDArray[np.float64]]:
    """Score a classifier in each fold.

    Args:
        data: rows and folds.
        name: the metrics begin with it.
        predict: learns from some rows and rates each label of others.

    Returns:
        ``NAME_accuracy`` and ``NAME_macro_f1``, or of data with several labels a row ``NAME_map`` and ``NAME_auc``, a
        value a fold; and the ratings of each row by the classifier that did not learn from its group, float64 [n, k].
    """
    scores: Scores = {}
    ratings = np.zeros(data.targets.shape)
    for train, test in data.splits():
        rated = predict(train, test)
        ratings[test] = rated
        score = multilabel_scores if data.is_multilabel else single_label_scores
        for metric, value in score(data.targets[test], rated).items():
            scores.setdefault(f"{name}_{metric}", []).append(value)
    return scores, ratings


def single_label_scores(targets: NDArray[np.bool_], rated: NDArray[np.float64]) -> dict[str, float]:
    """Return accuracy and macro F1, the mean over the labels that are there or were predicted."""
    from sklearn.metrics import accuracy_score, f1_score

    true, predicted = targets.argmax(axis=1), rated.argmax(axis=1)
    return {
        "accuracy": float(accuracy_score(true, predicted)),
        "macro_f1": float(f1_score(true, predicted, average="macro", zero_division=0)),
    }


def multilabel_scores(targets: NDArray[np.bool_], rated: NDArray[np.float64]) -> dict[str, float]:
    """Return mAP (macro average precision) and macro ROC AUC over the labels that some rows have and others have not.

    Both are NaN where there is no such label.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    shares = targets.mean(axis=0)
    usable = (shares > 0) & (shares < 1)
    if not usable.any():
        return {"map": float("nan"), "auc": float("nan")}
    return {
        "map": float(average_precision_score(targets[:, usable], rated[:, usable], average="macro")),
        "auc": float(roc_auc_score(targets[:, usable], rated[:, usable], average="macro")),
    }


def chance_levels(data: LabeledData) -> dict[str, float]:
    """Return what predictions that know nothing of a row come to: the largest label's share for accuracy, the labels'
    mean share for mAP, half for AUC."""
    shares = data.targets.mean(axis=0)
    if data.is_multilabel:
        return {"map": float(shares.mean()), "auc": 0.5}
    return {"accuracy": float(shares.max())}


def per_label(data: LabeledData, ratings: NDArray[np.float64]) -> dict[str, dict[str, float]]:
    """Return of each label its rows, and its F1 (of data with several labels a row its average precision) over all
    folds."""
    from sklearn.metrics import average_precision_score, f1_score

    if data.is_multilabel:
        name, values = "average_precision", average_precision_score(data.targets, ratings, average=None)
    else:
        labels = range(len(data.names))
        predicted = ratings.argmax(axis=1)
        name, values = "f1", f1_score(data.classes, predicted, labels=labels, average=None, zero_division=0)
    rows = data.targets.sum(axis=0)
    return {
        label: {"rows": int(count), name: float(value)}
        for label, count, value in zip(data.names, rows, np.atleast_1d(values), strict=True)
    }
