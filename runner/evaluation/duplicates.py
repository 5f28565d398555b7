"""Groups of near-duplicate clips, exact: no pair above the threshold is missed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from runner.evaluation.search import unit

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from runner.output.reader import Block

_TILE = 2048
"""Clips compared at once with as many others: 16 MiB of scores."""

_ROUNDING = 1e-5
"""Twice the error of a float32 product of unit vectors of 128 values."""


@dataclass(frozen=True)
class ClipMeans:
    """The mean embedding of each clip.

    Attributes:
        clips: Their names, [n].
        examples: How many examples each has, int64 [n].
        means: float32 [n, d].
    """

    clips: list[str]
    examples: NDArray[np.int64]
    means: NDArray[np.float32]


@dataclass(frozen=True)
class DuplicateGroup:
    """Clips of which each is similar to at least one other.

    Attributes:
        clips: Their names, in the order of the data set.
        least: The smallest similarity of a pair above the threshold.
        most: The largest one.
    """

    clips: tuple[str, ...]
    least: float
    most: float


def clip_means(blocks: Iterable[Block]) -> ClipMeans:
    """Average the embeddings of each clip, in float64; the examples of a clip are consecutive."""
    clips: list[str] = []
    sums: list[NDArray[np.float64]] = []
    counts: list[int] = []
    for block in blocks:
        names = block.columns["clip"].combine_chunks().dictionary_encode()
        codes = names.indices.to_numpy()
        starts = np.flatnonzero(np.r_[True, codes[1:] != codes[:-1]])
        totals = np.add.reduceat(block.embeddings, starts, axis=0, dtype=np.float64)
        lengths = np.diff(np.r_[starts, len(codes)])
        for name, total, length in zip(names.dictionary.take(codes[starts]).to_pylist(), totals, lengths, strict=True):
            if clips and clips[-1] == name:  # a clip goes on in the next block
                sums[-1] += total
                counts[-1] += int(length)
            else:
                clips.append(name)
                sums.append(total)
                counts.append(int(length))
    examples = np.array(counts, np.int64)
    return ClipMeans(clips, examples, (np.array(sums) / examples[:, None]).astype(np.float32))


def find_duplicates(clips: ClipMeans, above: float) -> list[DuplicateGroup]:
    """Group clips whose mean embeddings have a cosine similarity of at least ``above``.

    Groups are the connected components of such pairs, the largest first.  Clips are compared in the order of their
    projection on the first principal component, only as far as two unit vectors of that similarity can lie apart:
    ``|p·a − p·b| ≤ ‖a − b‖ = sqrt(2 − 2 a·b)``.

    Args:
        clips: float32 [n, d].
        above: cosine similarity, at most 1.
    """
    vectors = unit(clips.means)
    order, positions = _along_first_component(vectors)
    reach = float(np.sqrt(max(0.0, 2 - 2 * above))) + _ROUNDING
    roots = np.arange(len(vectors))
    pairs: list[tuple[int, int, float]] = []
    for left, right, score in _similar_pairs(vectors[order], positions, reach, above):
        pairs.append((int(order[left]), int(order[right]), score))
        _join(roots, int(order[left]), int(order[right]))
    return _groups(clips.clips, roots, pairs)


def _along_first_component(vectors: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the order along the first principal component, and the sorted projections."""
    centered = vectors - vectors.mean(axis=0)
    _, directions = np.linalg.eigh((centered.T @ centered).astype(np.float64))
    projections = (vectors @ directions[:, -1].astype(np.float32)).astype(np.float32)
    order = np.argsort(projections, kind="stable")
    return order, projections[order]


def _similar_pairs(
    vectors: NDArray[np.float32], positions: NDArray[np.float32], reach: float, above: float
) -> Iterator[tuple[int, int, float]]:
    """Yield (row, later row, similarity) of pairs that are similar; rows are sorted by ``positions``."""
    for first in range(0, len(vectors), _TILE):
        rows = slice(first, first + _TILE)
        end = int(np.searchsorted(positions, positions[rows][-1] + reach, side="right"))
        for other in range(first, end, _TILE):
            scores = vectors[rows] @ vectors[other : min(other + _TILE, end)].T
            for left, right in np.argwhere(scores >= above):
                if first + left < other + right:
                    yield first + int(left), other + int(right), min(float(scores[left, right]), 1.0)


def _join(roots: NDArray[np.int64], left: int, right: int) -> None:
    left, right = _root(roots, left), _root(roots, right)
    roots[max(left, right)] = min(left, right)


def _root(roots: NDArray[np.int64], clip: int) -> int:
    while roots[clip] != clip:
        roots[clip] = roots[roots[clip]]
        clip = int(roots[clip])
    return clip


def _groups(names: list[str], roots: NDArray[np.int64], pairs: list[tuple[int, int, float]]) -> list[DuplicateGroup]:
    members: dict[int, set[int]] = {}
    scores: dict[int, list[float]] = {}
    for left, right, score in pairs:
        root = _root(roots, left)
        members.setdefault(root, set()).update((left, right))
        scores.setdefault(root, []).append(score)
    groups = [
        DuplicateGroup(tuple(names[clip] for clip in sorted(members[root])), min(scores[root]), max(scores[root]))
        for root in sorted(members)
    ]
    return sorted(groups, key=lambda group: -len(group.clips))
