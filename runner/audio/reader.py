"""Reads audio files: any format to mono 16 kHz, in blocks: memory does not grow with length.

Blocks are float32 in -1..1, or, of files that are 16-bit mono at 16 kHz already, the int16 samples themselves.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from runner.audio.backends import open_source
from runner.audio.resample import StreamResampler
from runner.audio.samples import fault_of
from runner.audio.sources import SourceFault
from runner.core.errors import ClipError
from runner.vggish.constants import SAMPLE_RATE

if TYPE_CHECKING:
    from runner.audio.sources import Array, Source

REASONS = {
    "missing": "there is no such file",
    "not_a_file": "a folder, pipe, socket or device, not a file",
    "unreadable": "the system would not open or read it",
    "empty": "no bytes, or no samples",
    "unsupported_format": "no decoder here knows its format",
    "unsupported_rate": "it claims a sample rate below 1 kHz or above 768 kHz",
    "invalid_range": "the manifest's start and end lie outside the file",
    "decode_error": "the decoder failed before anything came out",
    "decoder_crashed": "the decode process died on it, three times",
    "timeout": "the decoder made no progress for dataset.decode_timeout_s",
    "download_timeout": "the object store did not give it within dataset.download_timeout_s; tried again on resuming",
    "disk_full": "the temporary folder had no room to fetch it from the object store; ends the run, and is no row's",
    "too_long": "longer than dataset.max_duration_s",
    "non_finite_embedding": "the network gave NaN or infinity: its numbers overflow in this precision",
    "non_finite": "NaN or infinite samples",
    "out_of_range": "samples more than 60 dB above full scale: floats that were never scaled to -1..1",
    "too_short": "shorter than one example, with frontend.short_clips=skip",
    "truncated": "the file ends, or breaks, before its header says; what decodes is kept (dataset.on_truncated)",
}
"""Reason codes of clips.parquet; ``detail`` beside them says what was seen."""

_MOST_FRAMES = 1 << 62
"""Frames at which a clip may begin; no file has so many."""


def read_clip(
    path: str | bytes,
    start: float | None = None,
    end: float | None = None,
    *,
    resampler: str = "kaiser_best",
    suffix: str | None = None,
) -> ClipReader:
    """Open a clip; iterate the reader for its waveform.

    Args:
        path: of the file, as the file system spells it.
        start: where the clip starts in the file, in seconds; None: at its beginning.
        end: where it ends; None: at the file's end.
        resampler: ``kaiser_best`` or ``soxr``.
        suffix: of the clip's name, where that is not the path's.

    Raises:
        ClipError: with a code of ``REASONS``.
    """
    source = open_source(path, suffix)
    try:
        return ClipReader(source, start, end, resampler)
    except BaseException:
        source.close()
        raise


class ClipReader:
    """One clip's waveform in blocks of float32 or int16 [n], mono 16 kHz; a context manager.

    ``seconds``, ``samples`` and ``note`` are complete once the iteration has ended.
    """

    def __init__(self, source: Source, start: float | None, end: float | None, resampler: str) -> None:
        self._source = source
        self.sample_rate = source.sample_rate
        """Hz, of the file."""
        self.channels = source.channels
        """Channels of the file."""
        self.samples = 0
        """Samples given, at 16 kHz."""
        self.note: str | None = None
        """What should be told of an embedded clip, as ``code: detail``."""
        self._frames = 0
        if source.channels < 1:
            raise ClipError("decode_error", f"the file claims {source.channels} channels")
        self._resampler = StreamResampler(source.sample_rate, resampler)
        self._first = 0 if start is None else _frame("start", start, source.sample_rate)
        self._wanted = None if end is None else _frame("end", end, source.sample_rate) - self._first
        if self._wanted is not None and self._wanted <= 0:
            raise ClipError("invalid_range", f"start {start} s and end {end} s hold no audio")
        if self._first >= _MOST_FRAMES:
            raise ClipError("invalid_range", f"start {start} s is beyond any file's end")

    @property
    def known_duration_s(self) -> float:
        """Seconds that the clip is known to have before it is decoded; 0 where that is not known."""
        frames = self._source.exact_frames
        if frames is None:
            return 0.0
        left = max(0, frames - self._first)
        return (left if self._wanted is None else min(left, self._wanted)) / self.sample_rate

    @property
    def seconds(self) -> float:
        """Seconds of audio decoded so far, at the file's own rate."""
        return self._frames / self.sample_rate

    def __enter__(self) -> ClipReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._source.close()

    def __iter__(self) -> Iterator[Array]:
        for block in self._mono():
            resampled = self._resampler.push(block)
            self.samples += len(resampled)
            if len(resampled):
                yield resampled
        last = self._resampler.finish()
        self.samples += len(last)
        if len(last):
            yield last
        if self._frames == 0:
            if self._first:
                raise ClipError("invalid_range", f"start {self._first / self.sample_rate} s is beyond the file's end")
            raise ClipError("empty", "no samples")

    def _mono(self) -> Iterator[Array]:
        """Blocks at the file's rate, channels averaged before anything else; a fault after some audio is a note."""
        blocks = self._source.blocks(self._first)
        while self._wanted is None or self._frames < self._wanted:
            try:
                block = next(blocks, None)
            except OSError as error:  # of the system, not of the file's content: it may pass
                raise ClipError("unreadable", str(error)) from error
            except (SourceFault, RuntimeError) as error:
                if not self._frames:
                    raise ClipError("decode_error", str(error)) from error
                self.note = f"truncated: after {self._frames} frames: {error}"
                return
            if block is None:
                break
            if self._wanted is not None:
                block = block[: self._wanted - self._frames]
            if fault := fault_of(block):
                raise ClipError(fault[0], f"{fault[1]}; near {self.seconds:.1f} s")
            self._frames += len(block)
            yield block.mean(axis=1, dtype=np.float32) if block.shape[1] > 1 else block[:, 0]
        if self._wanted is None:
            shortfall = self._source.shortfall(self._first + self._frames) if self._frames else None
            self.note = f"truncated: {shortfall}" if shortfall else None
        elif 0 < self._frames < self._wanted:
            self.note = f"truncated: the file ends {self._wanted - self._frames} frames before the clip's end"


def _frame(name: str, seconds: float, sample_rate: int) -> int:
    """The frame at a time; ``invalid_range`` where there can be none."""
    if not math.isfinite(seconds) or seconds < 0:
        raise ClipError("invalid_range", f"{name} {seconds} s is no time in a file")
    return round(seconds * sample_rate)


def count_samples(frames: int, sample_rate: int) -> int:
    """Samples at 16 kHz of ``frames`` at ``sample_rate``, as the reference's resampler counts them."""
    return frames if sample_rate == SAMPLE_RATE else int(frames * float(SAMPLE_RATE) / float(sample_rate))
