"""One reading of a set's embeddings: sums of groups of its clips, a sample of its rows, its clips' own distances."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from runner.core.errors import RunnerError
from runner.evaluation.locations import RowBlock
from runner.evaluation.sources import EmbeddingSet
from runner.statistics.frechet import Gaussian, frechet_distance
from runner.statistics.moments import EmbeddingStatistics, Rows

GROUPS = 100
"""Groups of clips that are drawn for the interval: a clip's number modulo this."""


class ClipScore(NamedTuple):
    """A clip's own FAD against the reference."""

    clip: str
    examples: int
    fad: float


class OtherClips(Exception):
    """Two sets are not of the same clips; the message completes "not paired, as …"."""


@dataclass(frozen=True)
class Clips:
    """The clips of a set, in its order.

    Attributes:
        hashes: Of their names by Python's ``hash``, of this process, int64 [clips].
        examples: How many each has, int64 [clips].
    """

    hashes: NDArray[np.int64]
    examples: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.hashes)

    def numbers_of(self, hashes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the numbers of clips in this set by their names' hashes, int64 [n].

        Raises:
            OtherClips: one is not in the set.
        """
        at = np.searchsorted(self._sorted, hashes).clip(max=len(self) - 1)
        if (self._sorted[at] != hashes).any():
            raise OtherClips("its clips are not the reference's")
        numbers: NDArray[np.int64] = self._order[at]
        return numbers

    def check_pairs(self, reference: Clips) -> None:
        """Check that both sets have the same names, each once, and as many examples in each clip.

        Raises:
            OtherClips: they do not.
        """
        for clips in (self, reference):
            if (clips._sorted[1:] == clips._sorted[:-1]).any():
                raise OtherClips("several clips have one name")
        if not np.array_equal(self._sorted, reference._sorted):
            raise OtherClips("its clips are not the reference's")
        if not np.array_equal(self.examples[self._order], reference.examples[reference._order]):
            raise OtherClips("its clips have other numbers of examples than the reference's")

    @cached_property
    def _order(self) -> NDArray[np.int64]:
        return np.argsort(self.hashes, kind="stable")

    @cached_property
    def _sorted(self) -> NDArray[np.int64]:
        return self.hashes[self._order]


@dataclass(frozen=True)
class ScanRequest:
    """What to gather while the embeddings are read.

    Attributes:
        sample: How many rows to draw, at most.
        seed: Of the rows drawn.
        has_groups: Whether to sum groups of clips.
        base: The reference, for each clip's own distance from it; None for none.
    """

    sample: int = 0
    seed: int = 0
    has_groups: bool = True
    base: Gaussian | None = None


@dataclass(frozen=True)
class Scan:
    """What one reading gathered.

    Attributes:
        clips: Those of the set.
        groups: The sums of groups of clips, in the order of the groups' numbers; empty ones are left out.
        sample: The rows drawn, float32 [n, size], in the order of the set.
        scores: The distance of each clip of two examples or more.
        left_out: How many clips have a single example.
    """

    clips: Clips
    groups: list[EmbeddingStatistics]
    sample: Rows
    scores: list[ClipScore]
    left_out: int


def scan(embeddings: EmbeddingSet, request: ScanRequest, reference: Clips | None = None) -> Scan:
    """Read a set's embeddings once.

    Args:
        embeddings: the set.
        request: what to gather.
        reference: clips by which this set's are put into groups, whatever their order; None for the set's own order.

    Raises:
        OtherClips: the set's clips are not those of ``reference``.
        RunnerError: there are no embeddings, or as many as the set's statistics are not of.
    """
    summary = embeddings.summary
    if embeddings.blocks is None or summary.n is None:
        raise RunnerError(
            f"{embeddings.name} is a file of statistics, without the embeddings that this needs: give the run's folder "
            "or URL, or leave out --infinity, --kad and --per-clip"
        )
    chosen = np.arange(summary.n)
    if summary.n > request.sample:
        chosen = np.sort(np.random.default_rng(request.seed).choice(summary.n, request.sample, replace=False))
    groups = {number: EmbeddingStatistics(len(summary.mean)) for number in range(GROUPS * request.has_groups)}
    sample = [np.empty((0, len(summary.mean)), np.float32)]
    names, own = _Names(), _ClipScores(request.base) if request.base is not None else None
    first = 0
    for block in embeddings.blocks():
        hashes, numbers = names.add(block)
        if reference is not None:
            numbers = reference.numbers_of(hashes)
        drawn = chosen[np.searchsorted(chosen, first) : np.searchsorted(chosen, first + len(block.rows))]
        sample.append(block.rows[drawn - first])
        first += len(block.rows)
        if groups:
            _add_groups(groups, np.repeat(numbers % GROUPS, np.diff(block.ends, prepend=0)), block.rows)
        if own:
            own.add(block)
    if first != summary.n:
        raise RunnerError(
            f"{embeddings.name} has {first:,} examples, and its statistics are of {summary.n:,}: rerun its command"
        )
    clips = names.clips()
    if reference is not None:
        clips.check_pairs(reference)
    scores, left_out = own.finish() if own else ([], 0)
    return Scan(clips, [group for group in groups.values() if group.n], np.concatenate(sample), scores, left_out)


def _add_groups(groups: dict[int, EmbeddingStatistics], numbers: NDArray[np.int64], rows: Rows) -> None:
    order = np.argsort(numbers, kind="stable")
    present, firsts = np.unique(numbers[order], return_index=True)
    for number, places in zip(present, np.split(order, firsts[1:]), strict=True):
        groups[int(number)].add(rows[places])


class _Names:
    """The clips' names and examples, which come block by block."""

    def __init__(self) -> None:
        self._last: str | None = None
        self._count = 0
        self._hashes = [np.empty(0, np.int64)]
        self._examples = [np.empty(0, np.int64)]

    def add(self, block: RowBlock) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Add the clips of a block; return the hashes of their names, and their numbers."""
        hashes = np.fromiter(map(hash, block.clips), np.int64, len(block.clips))
        examples = np.diff(block.ends, prepend=0)
        continued = int(block.clips[0] == self._last)  # begun in the block before
        self._examples[-1][-1:] += examples[:continued].sum()
        self._hashes.append(hashes[continued:])
        if len(hashes) > continued:
            self._examples.append(examples[continued:])
        numbers = self._count - continued + np.arange(len(hashes))
        self._count, self._last = int(numbers[-1]) + 1, block.clips[-1]
        return hashes, numbers

    def clips(self) -> Clips:
        """Return all of them."""
        return Clips(np.concatenate(self._hashes), np.concatenate(self._examples))


class _ClipScores:
    """Distances of clips from the reference, whose rows come block by block."""

    def __init__(self, base: Gaussian) -> None:
        self._base = base
        self._scores: list[ClipScore] = []
        self._left_out = 0
        self._name: str | None = None
        self._rows: list[Rows] = []

    def add(self, block: RowBlock) -> None:
        """Add the next embeddings."""
        for name, rows in zip(block.clips, np.split(block.rows, block.ends[:-1]), strict=True):
            if name != self._name:
                self._end()
                self._name = name
            self._rows.append(rows)

    def finish(self) -> tuple[list[ClipScore], int]:
        """Return the clips' scores, and how many have none, as they have a single example."""
        self._end()
        return self._scores, self._left_out

    def _end(self) -> None:
        if self._name is None:
            return
        rows = np.concatenate(self._rows)
        if len(rows) < 2:
            self._left_out += 1
        else:
            self._scores.append(ClipScore(self._name, len(rows), frechet_distance(self._base, Gaussian.of_rows(rows))))
        self._rows = []
