"""Clustering: whether k-means, without labels, finds the groups that the labels make."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runner.evaluation.data import LabeledData
    from runner.evaluation.scores import Scores


def cluster(data: LabeledData, experiments: int, seed: int) -> Scores:
    """Compare the labels with as many clusters of k-means on scaled embeddings.

    Args:
        data: with one label a row.
        experiments: runs of k-means, each from another start.
        seed: of the first; the others follow.

    Returns:
        ``cluster_ami`` and ``cluster_ari``, which are 0 by chance, and ``cluster_v_measure``, which is not.
    """
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score, v_measure_score
    from sklearn.preprocessing import StandardScaler

    scaled = StandardScaler().fit_transform(data.embeddings)
    scores: Scores = {"cluster_ami": [], "cluster_ari": [], "cluster_v_measure": []}
    for experiment in range(experiments):
        clusters = KMeans(len(data.names), n_init=1, random_state=seed + experiment).fit_predict(scaled)
        scores["cluster_ami"].append(float(adjusted_mutual_info_score(data.classes, clusters)))
        scores["cluster_ari"].append(float(adjusted_rand_score(data.classes, clusters)))
        scores["cluster_v_measure"].append(float(v_measure_score(data.classes, clusters)))
    return scores
