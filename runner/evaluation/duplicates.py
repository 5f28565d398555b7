"""Groups of near-duplicate clips, exact: no pair above the threshold is missed."""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from runner.core.lookahead import map_ahead
from runner.evaluation.search import unit

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from runner.output.reader import Block

_TILE = 512
"""Clips compared at once with as many others: 1 MiB of bounds, which stay in a core's cache."""

_TILES_AT_ONCE = 16
"""Tiles that a thread compares in one call: two milliseconds, and 80 MiB of pairs where all are similar."""

_COMPONENTS = 16
"""Principal components of the bound: an eighth of the arithmetic of a product of 128 values."""

_ROUNDING = 1e-5
"""Several times the float32 error of a bound, of a projection, and of a similarity."""

_PAIRS = 1_000_000
"""Pairs held in memory until their groups are joined."""


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


class _Pairs(NamedTuple):
    """Similar clips: the numbers of both, int64 [m], and their similarities, float32 [m]."""

    left: NDArray[np.int64]
    right: NDArray[np.int64]
    scores: NDArray[np.float32]


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

    Groups are the connected components of such pairs, the largest first.  A pair's similarity is computed only
    where an upper bound reaches ``above``: with unit vectors split into their first principal components and the rest,
    a = (a₁, a₂), the Cauchy–Schwarz inequality gives ``a·b ≤ a₁·b₁ + ‖a₂‖ ‖b₂‖``, an inner product of 17 values.
    Clips are compared in the order of the first component, only as far as two unit vectors of that similarity can lie
    apart: ``|p·a − p·b| ≤ ‖a − b‖ = sqrt(2 − 2 a·b)``.

    Args:
        clips: float32 [n, d]; a clip with a NaN is in no group.
        above: cosine similarity, at most 1.
    """
    numbers = np.flatnonzero(np.isfinite(clips.means).all(axis=1))
    if not len(numbers):
        return []
    vectors = unit(clips.means[numbers])
    rotated = vectors @ _principal_axes(vectors)
    order = np.argsort(rotated[:, 0], kind="stable")
    vectors, rotated = vectors[order], rotated[order]
    groups = _Groups(len(clips.clips))
    for pairs in _similar_pairs(vectors, rotated, above):
        groups.add(numbers[order[pairs.left]], numbers[order[pairs.right]], pairs.scores)
    return groups.result(clips.clips)


def _principal_axes(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return an orthonormal basis, float32 [d, d], a column an axis.

    The first axis is that of the largest variance, on which clips lie furthest apart; the others are those of the
    largest second moments of the rest.
    """
    centered = vectors - vectors.mean(axis=0)
    _, directions = np.linalg.eigh((centered.T @ centered).astype(np.float64))
    first = directions[:, -1:]
    others = directions[:, :-1]  # a basis of the rest
    moments = others.T @ (vectors.T @ vectors).astype(np.float64) @ others
    _, turn = np.linalg.eigh(moments)
    return np.hstack([first, others @ turn[:, ::-1]]).astype(np.float32)


def _similar_pairs(vectors: NDArray[np.float32], rotated: NDArray[np.float32], above: float) -> Iterator[_Pairs]:
    """Yield rows, later rows and similarities of pairs that are similar.

    Args:
        vectors: of length 1 or 0, sorted by their first principal component.
        rotated: the same on the principal axes.
        above: the least similarity.
    """
    rest = np.linalg.norm(rotated[:, _COMPONENTS:], axis=1, keepdims=True)
    parts = np.hstack([rotated[:, :_COMPONENTS], rest])
    transposed = np.ascontiguousarray(parts.T)  # NumPy is slow at the product of an array with its own transpose
    is_later = ~np.tri(_TILE, dtype=bool)

    def compare(tile: tuple[int, int]) -> _Pairs | None:
        first, other = tile
        bounds = parts[first : first + _TILE] @ transposed[:, other : other + _TILE]
        if bounds.max() < above - _ROUNDING:
            return None
        is_candidate = bounds >= above - _ROUNDING
        if first == other:  # each pair once, and none with itself
            is_candidate &= is_later[: len(bounds), : len(bounds)]
        left, right = (np.flatnonzero(is_candidate.any(axis=axis)) for axis in (1, 0))
        scores = vectors[first + left] @ vectors[other + right].T
        similar = np.flatnonzero(is_candidate[np.ix_(left, right)] & (scores >= above))
        at = np.unravel_index(similar, scores.shape)
        return _Pairs(first + left[at[0]], other + right[at[1]], scores[at])

    def compare_all(tiles: list[tuple[int, int]]) -> list[_Pairs]:
        return [pairs for pairs in map(compare, tiles) if pairs is not None]

    reach = float(np.sqrt(max(0.0, 2 - 2 * above))) + _ROUNDING
    tiles = _tiles_within(rotated[:, 0], reach)
    batches = iter(lambda: list(itertools.islice(tiles, _TILES_AT_ONCE)), [])
    threads = os.cpu_count() or 1
    with threadpool_limits(1, user_api="blas"):  # threads of BLAS wait for each other in products as small as these
        for pairs in map_ahead(compare_all, batches, threads, 2 * threads):
            yield from pairs


def _tiles_within(positions: NDArray[np.float32], reach: float) -> Iterator[tuple[int, int]]:
    """Yield the first row and the first column of tiles on and above the diagonal, as far as ``reach``."""
    for first in range(0, len(positions), _TILE):
        last = positions[first : first + _TILE][-1]
        end = int(np.searchsorted(positions, last + reach, side="right"))
        yield from ((first, other) for other in range(first, end, _TILE))


class _Groups:
    """Connected clips, and the smallest and largest similarity of a pair of each clip.

    Args:
        clips: how many.
    """

    def __init__(self, clips: int) -> None:
        self._roots = np.arange(clips)
        self._least = np.full(clips, np.inf, np.float32)
        self._most = np.full(clips, -np.inf, np.float32)
        self._pairs: list[NDArray[np.int64]] = []
        self._count = 0

    def add(self, left: NDArray[np.int64], right: NDArray[np.int64], scores: NDArray[np.float32]) -> None:
        """Add pairs of clips by their numbers, with their similarities."""
        np.minimum.at(self._least, left, scores)
        np.maximum.at(self._most, left, scores)
        np.maximum.at(self._most, right, scores)
        self._pairs.append(np.stack([left, right]))
        self._count += len(left)
        if self._count >= _PAIRS:
            self._join()

    def result(self, names: list[str]) -> list[DuplicateGroup]:
        """Return the groups, the largest first."""
        self._join()
        paired = np.flatnonzero(self._most > -np.inf)
        members = paired[np.argsort(self._roots[paired], kind="stable")]
        cuts = np.flatnonzero(np.diff(self._roots[members])) + 1
        groups = [
            DuplicateGroup(
                tuple(names[clip] for clip in group),
                min(float(self._least[group].min()), 1.0),
                min(float(self._most[group].max()), 1.0),
            )
            for group in np.split(members, cuts)
            if len(group)
        ]
        return sorted(groups, key=lambda group: -len(group.clips))

    def _join(self) -> None:
        """Give connected clips one root, the first of them."""
        if not self._pairs:
            return
        left, right = np.concatenate(self._pairs, axis=1)
        self._pairs, self._count = [], 0
        while (is_apart := self._roots[left] != self._roots[right]).any():
            left, right = left[is_apart], right[is_apart]
            roots = self._roots[left], self._roots[right]
            np.minimum.at(self._roots, np.maximum(*roots), np.minimum(*roots))
            while (self._roots[self._roots] != self._roots).any():
                self._roots = self._roots[self._roots]
