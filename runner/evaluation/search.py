"""Exact nearest-neighbor search over the embeddings of a run."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from threadpoolctl import threadpool_limits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

    from runner.output.reader import Block, EmbeddingReader


T = TypeVar("T")
F = TypeVar("F", np.float32, np.float64)


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
    reader: EmbeddingReader,
    top: int,
    similarity: Similarity = Similarity.COSINE,
    per_clip: int | None = None,
) -> list[Match]:
    """Return the examples most like the query, the best first; equal scores in the order of the data set.

    Scores are computed in float32, and those that may be among the best within the error of that in float64.

    Args:
        query: float32 [q, d]; an example's score is that of its most similar row.
        reader: of the run.
        top: how many to return.
        similarity: how they are compared. Examples with a NaN score are never returned.
        per_clip: at most this many of one clip; None for no limit.
    """
    prepared, best = _Query(query, similarity), _Best(top, per_clip)
    with threadpool_limits(1, user_api="blas"):  # the reader's threads are enough
        for _ in reader.map_blocks(lambda block: best.add(block, prepared), ("clip", "start_s", "label")):
            pass
    return best.matches()


class _Best:
    """The best examples so far, of blocks in any order and from any thread.

    Args:
        top: how many to keep.
        per_clip: at most this many of one clip; None for no limit.
    """

    def __init__(self, top: int, per_clip: int | None) -> None:
        self._top, self._per_clip = top, per_clip
        self._items: list[tuple[float, int, Match]] = []
        self._lock = threading.Lock()
        self._worst = -np.inf

    def add(self, block: Block, query: _Query) -> None:
        """Add the best rows of a block."""
        rows = query.candidates(block.embeddings, self._worst, self._top if self._per_clip is None else None)
        if not len(rows):
            return
        scores, clips = query.scores(block.embeddings[rows]), block.columns["clip"]
        order = np.lexsort((rows, -scores))
        pairs = zip(rows[order].tolist(), scores[order].tolist(), strict=True)
        found = [
            (-score, block.first + row, _match(block, row, score))
            for row, score in self._chosen(pairs, lambda pair: clips[pair[0]].as_py())
        ]
        with self._lock:
            items = sorted(self._items + found, key=lambda item: item[:2])
            self._items = self._chosen(items, lambda item: item[2].clip)
            if len(self._items) == self._top:
                self._worst = -self._items[-1][0]

    def matches(self) -> list[Match]:
        """Return them, the best first."""
        return [match for _, _, match in self._items]

    def _chosen(self, items: Iterable[T], clip_of: Callable[[T], str]) -> list[T]:
        """Return the first ``top`` of sorted items with at most ``per_clip`` of each clip."""
        if self._per_clip is None:
            return list(itertools.islice(items, self._top))
        counts: Counter[str] = Counter()
        chosen = []
        for item in items:
            clip = clip_of(item)
            counts[clip] += 1
            if counts[clip] <= self._per_clip:
                chosen.append(item)
            if len(chosen) == self._top:
                break
        return chosen


def _match(block: Block, row: int, score: float) -> Match:
    clip, start_s, label = (block.columns[name][row].as_py() for name in ("clip", "start_s", "label"))
    return Match(score, clip, start_s, label)


class _Query:
    def __init__(self, query: NDArray[np.float32], similarity: Similarity) -> None:
        self._similarity = similarity
        rows = np.asarray(query, np.float64)
        self._rows = unit(rows) if similarity is Similarity.COSINE else rows
        self._lengths = _lengths(self._rows)

    def scores(self, embeddings: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the best score of each row over the query's, float64 [n]; equal rows have equal scores."""
        rows = embeddings.astype(np.float64)
        if self._similarity is Similarity.EUCLIDEAN:
            distances: NDArray[np.float64] = np.min([_lengths(rows - row) for row in self._rows], axis=0)
            return -distances
        # not with BLAS, whose rounding of a row depends on its place among the others
        products: NDArray[np.float64] = np.max([np.einsum("ij,j->i", rows, row) for row in self._rows], axis=0)
        return _quotients(products, _lengths(rows)) if self._similarity is Similarity.COSINE else products

    def candidates(self, embeddings: NDArray[np.float32], worst: float, top: int | None) -> NDArray[np.int64]:
        """Return the rows, in their order, that may be better than ``worst`` and among the ``top`` best of such rows.

        Args:
            embeddings: float32 [n, d].
            worst: a score; minus infinity for all rows whose score is a number.
            top: how many; None for all that may be better.
        """
        estimates, error = self._estimates(embeddings)
        least = -worst * worst if self._similarity is Similarity.EUCLIDEAN else worst
        rows = np.flatnonzero(estimates >= least - error)  # NaN is not
        if top is not None and len(rows) > top:
            least = float(np.partition(estimates[rows], -top)[-top])
            rows = rows[estimates[rows] >= least - 2 * error]
        return rows

    def _estimates(self, embeddings: NDArray[np.float32]) -> tuple[NDArray[np.float32], float]:
        """Return the scores in float32, of ``euclidean`` the negative squares, and the largest error of one.

        The error of a sum of d products is at most d · ε / 2 of the product of the lengths (Higham, Accuracy and
        Stability of Numerical Algorithms, 3.1).  That of the length below a cosine adds half as much.
        """
        error = embeddings.shape[1] * float(np.finfo(np.float32).eps)
        products = embeddings @ self._rows.T.astype(np.float32)
        lengths = _lengths(embeddings)
        if self._similarity is Similarity.COSINE:
            return _quotients(products.max(axis=1), lengths), error
        longest, own = float(np.fmax.reduce(lengths, initial=0)), float(self._lengths.max())
        if self._similarity is Similarity.DOT:
            return products.max(axis=1), error * longest * own
        squares = lengths[:, None] ** 2 + (self._lengths**2).astype(np.float32) - 2 * products
        return -squares.min(axis=1), error * (longest + own) ** 2


def _lengths(rows: NDArray[F]) -> NDArray[F]:
    lengths: NDArray[F] = np.sqrt(np.einsum("ij,ij->i", rows, rows))
    return lengths


def _quotients(products: NDArray[F], lengths: NDArray[F]) -> NDArray[F]:
    """Divide; 0 where the length is."""
    quotients = np.zeros_like(products)
    np.divide(products, lengths, out=quotients, where=lengths != 0)
    return quotients


def unit(embeddings: NDArray[F]) -> NDArray[F]:
    """Scale rows to length 1, [n, d] of the same type; rows of zeros stay."""
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    scaled = np.zeros_like(embeddings)
    np.divide(embeddings, lengths, out=scaled, where=lengths != 0)
    return scaled
