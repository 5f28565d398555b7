"""Read a run's embeddings and labels, in bounded memory: of too many clips or windows a seeded sample is taken."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from runner.output.run_blocks import read_blocks

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from runner.evaluation.labels import ClipLabels, Labels
    from runner.output.reader import EmbeddedClip


@dataclass(frozen=True)
class Sample:
    """Clips or windows with their labels, in the order of their names: the same rows for every run of the same data.

    ``labels`` has each row's labels, sorted; ``embeddings`` is float32 [n, d].  Of clips ``starts`` is 0.  ``seen``
    counts the labeled rows that it was taken from, ``unlabeled`` the clips that nothing is known of.
    """

    clips: list[str]
    starts: list[float]
    groups: list[str]
    folds: list[str | None]
    labels: list[tuple[str, ...]]
    embeddings: NDArray[np.float32]
    unit: str
    seen: int
    unlabeled: int


def read_clips(location: str, output: str | None = None) -> Iterator[EmbeddedClip]:
    """Yield a run's embeddings, clip after clip; a long clip in several pieces.

    Args:
        location: the run's folder or URL.
        output: of the run's model; None for the first.

    Raises:
        RunnerError: the run has neither Parquet nor npz files, its model no such output, or they can't be read.
    """
    for block in read_blocks(location, output=output):
        yield from block.clips()


def draw_sample(
    clips: Iterable[EmbeddedClip], labels: Labels, *, unit: str, window_s: float, max_rows: int, seed: int
) -> Sample:
    """Take the labeled rows, or ``max_rows`` of them drawn by their names, so that neither order nor shards matter.

    Args:
        clips: of the run; the pieces of a clip follow each other.
        labels: their source.
        unit: clip (a row is the mean of its windows) or window.
        window_s: seconds of audio of a window.
        max_rows: rows kept; up to twice as many are in memory.
        seed: of the draw.

    Raises:
        EvaluationError: no clip has labels, or as ``labels``.
    """
    draw = _Draw(max_rows)
    add = _add_clip if unit == "clip" else _add_windows
    unlabeled = 0
    for name, pieces in itertools.groupby(clips, key=lambda piece: piece.name):
        key = int.from_bytes(hashlib.blake2b(f"{seed}:{name}".encode(errors="replace"), digest_size=8).digest(), "big")
        unlabeled += not add(draw, key, name, _labeled(pieces, labels, window_s))
    labels.check()
    rows = draw.rows()
    return Sample(
        clips=[row.clip for row in rows],
        starts=[row.start_s for row in rows],
        groups=[row.known.group for row in rows],
        folds=[row.known.fold for row in rows],
        labels=[row.labels for row in rows],
        embeddings=np.stack([row.embedding for row in rows]),
        unit=unit,
        seen=draw.seen,
        unlabeled=unlabeled,
    )


class _Row(NamedTuple):
    clip: str
    start_s: float
    known: ClipLabels
    labels: tuple[str, ...]
    embedding: NDArray[np.float32]


class _Draw:
    """The rows with the smallest keys: a sample without replacement in one pass."""

    def __init__(self, max_rows: int) -> None:
        self._max_rows = max_rows
        self._kept: list[tuple[int, _Row]] = []
        self.limit = 1 << 64
        """A row with a larger key is not among them, whatever comes."""
        self.seen = 0

    def add(self, key: int, row: _Row) -> None:
        self._kept.append((key, row))
        if len(self._kept) >= 2 * self._max_rows:
            self._cut()

    def rows(self) -> list[_Row]:
        """Return the sample in the order of names."""
        self._cut()
        return sorted((row for _, row in self._kept), key=lambda row: row[:2])

    def _cut(self) -> None:
        self._kept.sort(key=lambda pair: pair[0])
        del self._kept[self._max_rows :]
        if len(self._kept) == self._max_rows:
            self.limit = self._kept[-1][0]


def _labeled(
    pieces: Iterable[EmbeddedClip], labels: Labels, window_s: float
) -> Iterator[tuple[EmbeddedClip, ClipLabels]]:
    for piece in pieces:
        if (known := labels.of(piece.name, piece.label, piece.starts_s, window_s)) is not None:
            yield piece, known


def _add_clip(draw: _Draw, key: int, clip: str, pieces: Iterable[tuple[EmbeddedClip, ClipLabels]]) -> bool:
    """Add the mean of a clip's windows; False if it has no labels."""
    is_drawn = key <= draw.limit
    known, names, count, total = None, set[str](), 0, np.zeros(1)
    for piece, known in pieces:
        if is_drawn:
            names.update(*known.windows)
            total = total + piece.embeddings.sum(axis=0, dtype=np.float64)
            count += len(piece.embeddings)
    if known is None:
        return False
    draw.seen += 1
    if is_drawn:
        draw.add(key, _Row(clip, 0.0, known, tuple(sorted(names)), (total / count).astype(np.float32)))
    return True


def _add_windows(draw: _Draw, key: int, clip: str, pieces: Iterable[tuple[EmbeddedClip, ClipLabels]]) -> bool:
    """Add each window of a clip; False if it has no labels."""
    number = 0
    for piece, known in pieces:
        keys = _mixed(key, number, len(piece.starts_s))
        number += len(piece.starts_s)
        for window in np.flatnonzero(keys <= np.uint64(min(draw.limit, 2**64 - 1))).tolist():
            names = tuple(sorted(known.windows[window]))
            row = _Row(clip, float(piece.starts_s[window]), known, names, piece.embeddings[window].copy())
            draw.add(int(keys[window]), row)
    draw.seen += number
    return number > 0


def _mixed(key: int, first: int, count: int) -> NDArray[np.uint64]:
    """Return the keys of a clip's windows, uint64 [count]: the finalizer of SplitMix64 (Steele et al. 2014)."""
    keys = np.uint64(key) + np.arange(first, first + count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = keys ^ (keys >> np.uint64(31))
    return mixed
