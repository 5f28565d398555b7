"""Nearest neighbors: each row gets the labels of those nearest to it among other recordings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from runner.evaluation.scores import cross_validate

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from runner.evaluation.data import LabeledData
    from runner.evaluation.scores import Scores


def knn(data: LabeledData, neighbors: int) -> tuple[Scores, NDArray[np.float64]]:
    """Score a vote of the nearest rows in each fold, by Euclidean distance of embeddings scaled as for the probe.

    Args:
        data: rows and folds.
        neighbors: that vote; all rows to learn from where they are fewer.

    Returns:
        As ``cross_validate``, named ``knn``.
    """

    def predict(train: NDArray[np.int64], test: NDArray[np.int64]) -> NDArray[np.float64]:
        from sklearn.neighbors import NearestNeighbors
        from sklearn.preprocessing import StandardScaler

        scaler = StandardScaler().fit(data.embeddings[train])
        search = NearestNeighbors(n_neighbors=min(neighbors, len(train)), algorithm="brute")
        search.fit(scaler.transform(data.embeddings[train]))
        nearest = search.kneighbors(scaler.transform(data.embeddings[test]), return_distance=False)
        votes: NDArray[np.float64] = data.targets[train][nearest].mean(axis=1)
        return votes

    return cross_validate(data, "knn", predict)
