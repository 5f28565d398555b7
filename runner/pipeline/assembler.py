"""Embeddings and ends of clips, which come in pieces and in any order, put back to their clips."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from runner.core.errors import EngineError
from runner.output.rows import ClipRow
from runner.pipeline.messages import ClipResult

if TYPE_CHECKING:
    from runner.dataset.clips import Clip
    from runner.output.spill import Chunk, Embeddings, Spill
    from runner.pipeline.messages import Segment

Array = NDArray[np.float32]


class _PartialClip:
    """A clip in the pool or in replicas.  There are ten thousand a second of them on a GPU: a class that costs
    little."""

    __slots__ = ("clip", "examples", "finite", "parts", "result")

    def __init__(self, clip: Clip) -> None:
        self.clip = clip
        self.parts: list[tuple[int, Chunk]] = []
        self.examples = 0
        self.finite = True
        self.result: ClipResult | None = None


class ClipAssembler:
    """The clips under way: takes rows of batches and the decoders' results, and gives clips that have ended.

    A clip is known by its job; what comes for one that is not (any more) under way is dropped.

    Args:
        spill: keeps embeddings; they are all kept in memory when None.
    """

    def __init__(self, spill: Spill | None = None) -> None:
        self._pending: dict[int, _PartialClip] = {}
        self._spill = spill

    def __len__(self) -> int:
        return len(self._pending)

    def register(self, job: int, clip: Clip) -> None:
        """A clip is under way as this job."""
        self._pending[job] = _PartialClip(clip)

    def forget(self, job: int) -> Clip | None:
        """A job will not be finished; its clip, None for one that is not under way."""
        pending = self._pending.pop(job, None)
        return None if pending is None else pending.clip

    def take_results(self, results: Iterable[ClipResult]) -> list[tuple[ClipRow, Clip]]:
        """Take how the decoding of clips ended; give the clips that are complete with it."""
        ended = []
        for result in results:
            pending = self._pending.get(result.job)
            if pending is not None:
                pending.result = result
                if row := self._end(result.job, pending):
                    ended.append(row)
        return ended

    def add_embeddings(self, segments: Iterable[Segment], embeddings: Array) -> list[tuple[ClipRow, Clip]]:
        """Take a batch's embeddings, float32 [n, 128], the segments' in their order; give the clips then complete."""
        ended = []
        row = 0
        all_finite = bool(np.isfinite(embeddings).all())
        kept: Chunk = embeddings if self._spill is None else self._spill.hold(embeddings)
        for job, first, windows in segments:
            pending = self._pending.get(job)
            if pending is not None:  # None: its decode process died and the clip is a new job, or it was skipped
                pending.parts.append((first, kept[row : row + windows]))
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
        embeddings = _in_order(pending.parts) if result.embedded else _NO_EMBEDDINGS
        if result.embedded and not pending.finite:
            detail = "the network gave NaN or infinity for it: use precision=bfloat16 or float32"
            result = ClipResult(job, False, "non_finite_embedding", detail, 0, 0.0, *result[6:8], False)
            embeddings = _NO_EMBEDDINGS
        row = ClipRow(
            clip=clip.name,
            status="embedded" if result.embedded else "skipped",
            reason=result.reason,
            detail=result.detail,
            examples=result.examples,
            seconds=result.seconds,
            sample_rate=result.sample_rate,
            channels=result.channels,
            padded=result.padded,
            label=clip.label,
            start_s=clip.start or 0.0,
            embeddings=embeddings,
        )
        return row, clip


_NO_EMBEDDINGS: Embeddings = ()


def _in_order(parts: list[tuple[int, Chunk]]) -> Embeddings:
    """The parts of a clip, each (its first example, embeddings), in the order of their examples."""
    if len(parts) == 1 and isinstance(only := parts[0][1], np.ndarray):
        return only
    return tuple(embeddings for _, embeddings in sorted(parts, key=lambda part: part[0]))
