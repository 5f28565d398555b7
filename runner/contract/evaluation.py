"""The quality of a run's embeddings in full: the type of evaluation.json, of which result.json has a part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runner.config.groups.evaluate import EvaluateConfig
    from runner.contract.result import Evaluation


@dataclass(frozen=True)
class Confusion:
    """Rows by label (``matrix``'s rows) and by the label predicted (its columns), both in the order of ``labels``."""

    labels: tuple[str, ...]
    matrix: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class EvaluationReport:
    """The outcome of an evaluation.

    Attributes:
        quality: As in result.json: tasks, data, values by fold or experiment, levels by chance.
        config: The settings.
        metrics: The mean of each metric, and its standard deviation, ``NAME_std``.
        per_label: The ``rows`` of each label, and its ``f1`` or, where a row may have several labels,
            ``average_precision``; None without a classifier.
        confusion: Of the classifier, where each row has one label.
    """

    quality: Evaluation
    config: EvaluateConfig
    metrics: Mapping[str, float]
    per_label: Mapping[str, Mapping[str, float]] | None = None
    confusion: Confusion | None = None
