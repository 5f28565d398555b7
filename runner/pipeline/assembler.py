"""Assembles clips from embeddings and decoding results, which come in pieces and in any order."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from runner.core.errors import EngineError
from runner.output.rows import ClipRow
from runner.output.spill import BatchRows
from runner.pipeline.messages import ClipResult

if TYPE_CHECKING:
    from runner.dataset.clips import Clip
    from runner.output.spill import Embeddings, Spill
    from runner.pipeline.messages import Segment

Array = NDArray[np.float32]


class _PartialClip:
    """A clip in the pool or in replicas; on a GPU ten thousand a second are made, so the class is a cheap one."""

    __slots__ = ("chunks", "clip", "examples", "finite", "result")

    def __init__(self, clip: Clip) -> None:
        self.clip = clip
        self.chunks: list[tuple[int, BatchRows]] = []
        self.examples = 0
        self.finite = True
        self.result: ClipResult | None = None


class ClipAssembler:
    """The clips in progress, by job; embeddings and results of other jobs are dropped.

    Args:
        spill: store for the embeddings; in memory when None.
    """

    def __init__(self, spill: Spill | None = None) -> None:
        self._pending: dict[int, _PartialClip] = {}
        self._spill = spill

    def __len__(self) -> int:
        return len(self._pending)

    def register(self, job: int, clip: Clip) -> None:
        """Begin a clip as this job."""
        self._pending[job] = _PartialClip(clip)

    def discard(self, job: int) -> Clip | None:
        """Drop a job that will not be finished, and return its clip; None for a job that is not in progress."""
        pending = self._pending.pop(job, None)
        return None if pending is None else pending.clip

    def add_results(self, results: Iterable[ClipResult]) -> list[tuple[ClipRow, Clip]]:
        """Add the ends of clips' decoding; return the clips that are complete with them."""
        ended = []
        for result in results:
            pending = self._pending.get(result.job)
            if pending is not None:
                pending.result = result
                if complete := self._end(result.job, pending):
                    ended.append(complete)
        return ended

    def add_embeddings(self, segments: Iterable[Segment], embeddings: Array) -> list[tuple[ClipRow, Clip]]:
        """Add a batch's embeddings, float32 [n, width], of its segments in their order; return the clips then complete.

        Raises:
            EngineError: more or fewer embeddings than the segments or a clip have.
        """
        ended = []
        row = 0
        all_finite = bool(np.isfinite(embeddings).all())
        stored = embeddings if self._spill is None else self._spill.hold(embeddings)
        for job, first, windows in segments:
            pending = self._pending.get(job)
            if pending is not None:  # None: its decode process died and the clip is a new job, or it was skipped
                pending.chunks.append((first, BatchRows(stored, row, row + windows)))
                pending.examples += windows
                if not all_finite and not np.isfinite(embeddings[row : row + windows]).all():
                    pending.finite = False
                if complete := self._end(job, pending):
                    ended.append(complete)
            row += windows
        if row != len(embeddings):
            raise EngineError(f"{len(embeddings)} embeddings came of a batch of {row} windows: please report it")
        return ended

    def _end(self, job: int, pending: _PartialClip) -> tuple[ClipRow, Clip] | None:
        result, clip = pending.result, pending.clip
        if result is None:
            return None
        if result.embedded and pending.examples != result.examples:
            if pending.examples < result.examples:
                return None
            raise EngineError(
                f"{clip.name} has {result.examples} examples, and {pending.examples} came: please report it"
            )
        del self._pending[job]
        if result.embedded and not pending.finite:
            detail = "the network gave NaN or infinity for it: use precision=bfloat16 or float32"
            result = ClipResult.skipped(job, "non_finite_embedding", detail, result.sample_rate, result.channels)
        status, embeddings = ("embedded", _in_order(pending.chunks)) if result.embedded else ("skipped", ())
        columns = result[2:]  # from reason to padded, as in a row; by name they cost a microsecond
        return ClipRow(clip.name, status, *columns, clip.label, clip.start or 0.0, embeddings), clip


def _in_order(chunks: list[tuple[int, BatchRows]]) -> Embeddings:
    """Sort a clip's chunks, each (its first example, embeddings), by their examples."""
    if len(chunks) == 1:
        return chunks[0][1]
    return tuple(embeddings for _, embeddings in sorted(chunks, key=lambda chunk: chunk[0]))
