"""The configuration of ``evaluate``: which tasks say how good a run's embeddings are, and where labels come from."""

from __future__ import annotations

from dataclasses import dataclass, field

TASKS = ("probe", "knn", "cluster", "retrieval")
"""Tasks of ``evaluate.tasks``, in the order in which they are carried out."""

UNITS = ("auto", "clip", "window")


@dataclass
class LabelsConfig:
    """Where labels come from: ``path`` is a label file or a folder of them; null: the labels of the run itself.

    ``column`` has the label (null: the usual names), ``fold_column`` a given fold, ``group_column`` what may not be on
    both sides of a fold; ``group_pattern`` is a regular expression over the clip's name whose first group says that
    (null: the recording).  An annotation is a window's label if they overlap by ``min_overlap_s`` seconds.
    """

    path: str | None = None
    column: str | None = None
    fold_column: str | None = None
    group_column: str | None = None
    group_pattern: str | None = None
    min_overlap_s: float = 0.1


@dataclass
class EvaluateConfig:
    """How the quality of a run's embeddings is measured; no ``tasks``: it is not.

    ``unit`` is clip (the mean of its windows), window, or auto: windows where labels have times.  ``folds`` are grouped
    by recording; ``neighbors`` is k of kNN; the few-shot probe takes ``few_shot_samples`` a label in ``experiments``
    draws, and k-means has as many seeds.  Of more than ``max_rows`` clips or windows a sample is drawn by ``seed``.
    """

    tasks: list[str] = field(default_factory=list)
    labels: LabelsConfig = field(default_factory=LabelsConfig)
    unit: str = "auto"
    folds: int = 5
    neighbors: int = 15
    few_shot_samples: int = 8
    experiments: int = 10
    max_rows: int = 20_000
    seed: int = 0
