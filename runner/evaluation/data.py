"""The labeled rows as arrays, and the folds: a fold is a property of a group, so that none is on both sides."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from runner.core.errors import EvaluationError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from runner.evaluation.sample import Sample

_TOO_FEW = 2
"""A label of fewer groups can't be both learned and tested."""


@dataclass(frozen=True)
class LabeledData:
    """Rows that tasks work on.

    Args:
        embeddings: float32 [n, d].
        targets: bool [n, k], the labels of each row.
        names: of the k labels, sorted.
        groups: int [n]; rows of one group are never in two folds.
        folds: int [groups], each group's fold.
        left_out: labels of a single group, with their rows.
        has_labeled_folds: whether the labels' files name them; otherwise they are drawn.
    """

    embeddings: NDArray[np.float32]
    targets: NDArray[np.bool_]
    names: list[str]
    groups: NDArray[np.int64]
    folds: NDArray[np.int64]
    left_out: dict[str, int]
    has_labeled_folds: bool

    @property
    def is_multilabel(self) -> bool:
        """Whether a row has no label, or several."""
        return bool((self.targets.sum(axis=1) != 1).any())

    @property
    def classes(self) -> NDArray[np.int64]:
        """Each row's label, int [n], where it has exactly one."""
        classes: NDArray[np.int64] = self.targets.argmax(axis=1)
        return classes

    @property
    def row_folds(self) -> NDArray[np.int64]:
        """Each row's fold, int [n]: that of its group."""
        return self.folds[self.groups]

    def splits(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Yield the rows to learn from and to test on, fold after fold."""
        yield from splits_of(self.row_folds)

    def only(self, rows: NDArray[np.bool_]) -> LabeledData:
        """Return the data of some rows, with the labels that they have."""
        targets = self.targets[rows]
        used = np.asarray(targets.any(axis=0))
        return LabeledData(
            self.embeddings[rows],
            targets[:, used],
            [name for name, is_used in zip(self.names, used.tolist(), strict=True) if is_used],
            self.groups[rows],
            self.folds,
            self.left_out,
            self.has_labeled_folds,
        )


def splits_of(folds: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield for each fold the rows outside of it and in it."""
    for fold in np.unique(folds):
        yield np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)


def prepare(sample: Sample, folds: int, seed: int) -> LabeledData:
    """Make arrays and folds of a sample.

    Args:
        sample: of the run.
        folds: how many, where none are given with the labels.
        seed: of their draw.

    Raises:
        EvaluationError: fewer than two labels or groups, or given folds that split a group.
    """
    pairs = {(label, group) for labels, group in zip(sample.labels, sample.groups, strict=True) for label in labels}
    spread = Counter(label for label, _ in pairs)
    names = sorted(label for label, count in spread.items() if count >= _TOO_FEW)
    rows_of = Counter(label for labels in sample.labels for label in labels)
    left_out = {label: rows_of[label] for label in sorted(spread) if spread[label] < _TOO_FEW}
    columns = {name: column for column, name in enumerate(names)}
    is_multilabel = any(len(labels) != 1 for labels in sample.labels)
    rows = [row for row, labels in enumerate(sample.labels) if is_multilabel or labels[0] in columns]
    targets = np.zeros((len(rows), len(names)), bool)
    for index, row in enumerate(rows):
        targets[index, [columns[label] for label in sample.labels[row] if label in columns]] = True
    group_names = sorted({sample.groups[row] for row in rows})
    numbers = {name: number for number, name in enumerate(group_names)}
    groups = np.array([numbers[sample.groups[row]] for row in rows], np.int64)
    if len(names) < 2 - is_multilabel or len(group_names) < 2:
        raise EvaluationError(
            f"{len(names)} labels of at least two recordings can't be told apart (of {len(spread)} in "
            f"{len(group_names) or len(set(sample.groups))} recordings or groups): "
            "give more labeled recordings, or other labels with evaluate.labels"
        )
    has_folds = {sample.folds[row] for row in rows} != {None}
    return LabeledData(
        embeddings=sample.embeddings[rows],
        targets=targets,
        names=names,
        groups=groups,
        folds=_folds_of_labels(sample, rows, group_names) if has_folds else draw_folds(targets, groups, folds, seed),
        left_out=left_out,
        has_labeled_folds=has_folds,
    )


def _folds_of_labels(sample: Sample, rows: Sequence[int], group_names: Sequence[str]) -> NDArray[np.int64]:
    folds: dict[str, str] = {}
    for row in rows:
        group, fold = sample.groups[row], sample.folds[row]
        if fold is None:
            raise EvaluationError(f"{sample.clips[row]} has no fold: give each recording one, or no fold column")
        if folds.setdefault(group, fold) != fold:
            raise EvaluationError(f"{group} is in folds {folds[group]} and {fold}: give all of it one fold")
    numbers = {fold: number for number, fold in enumerate(sorted(set(folds.values())))}
    if len(numbers) < 2:
        raise EvaluationError(f"all recordings are in fold {next(iter(numbers))}: give at least two folds")
    return np.array([numbers[folds[group]] for group in group_names], np.int64)


def draw_folds(targets: NDArray[np.bool_], groups: NDArray[np.int64], count: int, seed: int) -> NDArray[np.int64]:
    """Draw each group's fold, int [groups], with each label spread over the folds as evenly as its groups allow.

    Args:
        targets: bool [n, k]; a row with several labels counts as its rarest.
        groups: int [n], from 0 without gaps.
        count: of folds; fewer where there are not so many groups.
        seed: of the draw.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    rarity = np.where(targets, targets.sum(axis=0), np.iinfo(np.int64).max)
    strata = np.where(targets.any(axis=1), rarity.argmin(axis=1), targets.shape[1])
    count = min(count, int(groups.max()) + 1, len(strata))
    if np.bincount(strata).max() < count:  # fewer rows a label than folds: nothing to spread evenly
        strata = np.zeros_like(strata)
    folds = np.zeros(int(groups.max()) + 1, np.int64)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        splitter = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
        for fold, (_, test) in enumerate(splitter.split(targets, strata, groups)):
            folds[groups[test]] = fold
    return folds


def digest_of(sample: Sample, settings: Mapping[str, int | str]) -> str:
    """Return a SHA-256 that runs share whose figures are of the same rows, labels, folds and settings."""
    rows = [sample.clips, sample.starts, sample.groups, sample.folds, sample.labels]
    return hashlib.sha256(json.dumps([rows, settings]).encode()).hexdigest()
