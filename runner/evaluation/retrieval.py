"""Retrieval: whether the rows most similar to a row, of other recordings, have its label."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from runner.evaluation.data import LabeledData

_QUERIES = 512
"""Rows compared with all others at a time: 20 MB of similarities with 10,000 rows."""


def average_precision_at_r(data: LabeledData) -> NDArray[np.float64]:
    """Return each row's average precision at R, float64 [n]; NaN where no other recording has its label.

    Every row is a query by cosine among the rows of other groups; R is how many of them have its label, and AP@R is
    (1/R) Σ over the first R results of precision@i where result i has the label (Musgrave et al. 2020, "A metric
    learning reality check").
    """
    norms = np.linalg.norm(data.embeddings, axis=1, keepdims=True)
    vectors = data.embeddings / np.where(norms > 0, norms, np.float32(1))
    classes = data.classes
    precisions = np.full(len(vectors), np.nan)
    for first in range(0, len(vectors), _QUERIES):
        queries = slice(first, first + _QUERIES)
        similarity = vectors[queries] @ vectors.T
        similarity[data.groups[queries, None] == data.groups] = -np.inf
        relevant = (classes[queries, None] == classes) & (similarity > -np.inf)
        counts = relevant.sum(axis=1)
        most = int(counts.max())
        if not most:
            continue
        nearest = np.argpartition(-similarity, min(most, len(vectors) - 1), axis=1)[:, :most]
        order = np.argsort(-np.take_along_axis(similarity, nearest, axis=1), axis=1, kind="stable")
        nearest = np.take_along_axis(nearest, order, axis=1)
        hits = np.take_along_axis(relevant, nearest, axis=1)
        ranks = np.arange(1, most + 1)
        hits &= ranks <= counts[:, None]
        sums = (hits * hits.cumsum(axis=1) / ranks).sum(axis=1)
        precisions[queries] = np.divide(sums, counts, out=np.full(len(counts), np.nan), where=counts > 0)
    return precisions


def retrieve(data: LabeledData) -> dict[str, list[float]]:
    """Return ``retrieval_map_at_r``, the mean of AP@R over the queries of each fold (all rows are searched)."""
    precisions = average_precision_at_r(data)
    folds = [precisions[test] for _, test in data.splits()]
    return {"retrieval_map_at_r": [float(np.nanmean(fold)) for fold in folds if np.isfinite(fold).any()]}


def chance_map_at_r(data: LabeledData) -> float:
    """Return what mAP@R is on average where results come in a random order.

    Of N rows in random order, R of them relevant, result i is one with probability R/N, and then each of the i − 1
    before it with probability (R − 1)/(N − 1): E[AP@R] = (1/R) Σ over i ≤ R of R/N · (1 + (i − 1)(R − 1)/(N − 1)) / i.
    """
    classes, groups = data.classes, data.groups
    own = np.bincount(groups)
    pairs, pair_of = np.unique(np.stack([groups, classes]), axis=1, return_inverse=True)
    same = np.bincount(pair_of.ravel(), minlength=pairs.shape[1])
    per_class = np.bincount(classes)
    total, count = 0.0, 0
    for (group, label), queries in zip(pairs.T, same, strict=True):
        n, r = len(classes) - own[group], per_class[label] - queries
        if r:
            ranks = np.arange(1, r + 1)
            level = (r / n * (1 + (ranks - 1) * (r - 1) / max(n - 1, 1)) / ranks).mean()
            total, count = total + level * queries, count + queries
    return float(total / count)
