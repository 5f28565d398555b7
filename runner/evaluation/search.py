"""Exact nearest-neighbor search over the embeddings of a run."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from threadpoolctl import threadpool_limits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray

    from runner.output.reader import Block


T = TypeVar("T")


class Similarity(str, Enum):
    """Scores of two embeddings; higher is more alike."""

    COSINE = "cosine"
    DOT = "dot"
    EUCLIDEAN = "euclidean"


@dataclass(frozen=True)
class Match:
    """An example that is like the query.

    Attributes:
        score: cosine or inner product; the negative distance for ``euclidean``.
        clip: Its clip.
        start_s: Where it starts in the clip's file, seconds.
        label: The clip's label, if it has one.
    """

    score: float
    clip: str
    start_s: float
    label: str | None


def search(
    query: NDArray[np.float32],
    blocks: Iterable[Block],
    top: int,
    similarity: Similarity = Similarity.COSINE,
    per_clip: int | None = None,
) -> list[Match]:
    """Return the examples most like the query, the best first; equal scores in the order of the data set.

    Args:
        query: float32 [q, d]; an example's score is that of its most similar row.
        blocks: the examples, with the columns clip, start_s and label.
        top: how many to return.
        similarity: how they are compared. Examples with a NaN score are never returned.
        per_clip: at most this many of one clip; None for no limit.
    """
    prepared = _Query(query, similarity)
    best: list[tuple[float, int, Match]] = []
    with threadpool_limits(1, user_api="blas"):  # threads of BLAS wait for each other in products as small as these
        for block in blocks:
            scores = prepared.scores(block.embeddings)
            worst = -best[-1][0] if len(best) == top else -np.inf
            best += [
                (-float(scores[row]), block.first + row, _match(block, row, float(scores[row])))
                for row in _best_rows(scores, worst, block, top, per_clip)
            ]
            best.sort(key=lambda item: item[:2])
            matches = _at_most(per_clip, best, lambda item: item[2].clip)
            best = list(itertools.islice(matches, top))
    return [match for _, _, match in best]


def _best_rows(
    scores: NDArray[np.float32], worst: float, block: Block, top: int, per_clip: int | None
) -> Iterator[int]:
    """Yield the rows of a block that may be among the best of all, the best first."""
    candidates = np.flatnonzero(scores > worst)  # NaN is not
    if per_clip is None and len(candidates) > top:
        candidates = candidates[np.argpartition(-scores[candidates], top - 1)[:top]]
    order = candidates[np.lexsort((candidates, -scores[candidates]))]
    clips = block.columns["clip"]
    rows = _at_most(per_clip, map(int, order), lambda row: clips[row].as_py())
    return itertools.islice(rows, top)


def _at_most(limit: int | None, items: Iterable[T], clip_of: Callable[[T], str]) -> Iterator[T]:
    """Yield the items, but only the first ``limit`` of each clip."""
    counts: Counter[str] = Counter()
    for item in items:
        if limit is not None:
            counts[clip_of(item)] += 1
            if counts[clip_of(item)] > limit:
                continue
        yield item


def _match(block: Block, row: int, score: float) -> Match:
    clip, start_s, label = (block.columns[name][row].as_py() for name in ("clip", "start_s", "label"))
    return Match(score, clip, start_s, label)


class _Query:
    def __init__(self, query: NDArray[np.float32], similarity: Similarity) -> None:
        self._similarity = similarity
        rows = np.asarray(query, np.float32)
        self._rows = unit(rows) if similarity is Similarity.COSINE else rows
        self._squares = np.einsum("ij,ij->i", self._rows, self._rows)

    def scores(self, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the best score of each row over the query's, float32 [n]."""
        products = embeddings @ self._rows.T
        if self._similarity is Similarity.DOT:
            return np.asarray(products.max(axis=1), np.float32)
        squares = np.einsum("ij,ij->i", embeddings, embeddings)
        if self._similarity is Similarity.COSINE:
            lengths = np.sqrt(squares)
            scores: NDArray[np.float32] = np.zeros(len(lengths), np.float32)
            np.divide(products.max(axis=1), lengths, out=scores, where=lengths != 0)
            return scores
        distances = squares[:, None] + self._squares - 2 * products
        return np.asarray(-np.sqrt(np.maximum(distances.min(axis=1), 0)), np.float32)


def unit(embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale rows to length 1, float32 [n, d]; rows of zeros stay."""
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    scaled: NDArray[np.float32] = np.zeros_like(embeddings)
    np.divide(embeddings, lengths, out=scaled, where=lengths != 0)
    return scaled
