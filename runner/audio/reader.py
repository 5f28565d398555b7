"""Reader of audio files: any format to mono at a model's rate, in blocks, so that memory does not grow with length.

Blocks are float32 in -1..1, or, of files that are 16-bit mono at that rate already, the int16 samples themselves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from runner.audio.backends import open_source
from runner.audio.framing import scaled
from runner.audio.resample import StreamResampler
from runner.audio.samples import fault_of
from runner.audio.sources import SourceFault
from runner.core.errors import ClipError
from runner.core.samples import INT16_SCALE

if TYPE_CHECKING:
    from runner.audio.preparation import Preparation
    from runner.audio.sources import Array, Source

_LEAST_PEAK = 0.1 * INT16_SCALE
"""Least divisor of ``normalize=peak``: google-research's 0.1, which its tool compares with 16-bit integers."""

REASONS = {
    "missing": "there is no such file",
    "not_a_file": "a folder, pipe, socket or device, not a file",
    "unreadable": "the system would not open or read it",
    "empty": "no bytes, or no samples",
    "unsupported_format": "no installed decoder reads its format",
    "unsupported_rate": "its sample rate, times frontend.speed, is below 1 kHz or above 768 kHz",
    "invalid_range": "the manifest's start and end lie outside the file",
    "decode_error": "decoding failed before the first sample",
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
"""Reason codes of clips.parquet; the column ``detail`` has the particulars."""

_MAX_FRAME = 1 << 62
"""Frame at which no file has samples any more."""


def read_clip(
    path: str | bytes,
    start: float | None = None,
    end: float | None = None,
    *,
    preparation: Preparation,
    suffix: str | None = None,
) -> ClipReader:
    """Open a clip; iterate the reader for its waveform.

    Args:
        path: of the file, as the file system spells it.
        start: start of the clip in the file, in seconds; None: the file's beginning.
        end: end of the clip; None: the file's end.
        preparation: rate, resampler, channels, level and speed.
        suffix: of the clip's name, where the file is a temporary copy of it.

    Raises:
        ClipError: with a code of ``REASONS``.
    """
    source = open_source(path, preparation.rate, suffix)
    try:
        return ClipReader(source, start, end, preparation)
    except BaseException:
        source.close()
        raise


class ClipReader:
    """One clip's waveform in blocks of float32 or int16 [n], mono at the model's rate; a context manager.

    Attributes:
        sample_rate: Hz, of the file.
        channels: channels of the file.
        preparation: the model's rate, resampler, channels, level and speed.
        rate: Hz that it is resampled from: the file's, at its speed.
        samples: samples yielded so far, at the model's rate.
        warning: of an embedded clip, as ``code: detail``; known once the iteration has ended.
    """

    def __init__(self, source: Source, start: float | None, end: float | None, preparation: Preparation) -> None:
        self._source = source
        self.sample_rate = source.sample_rate
        self.channels = source.channels
        self.samples = 0
        self.warning: str | None = None
        self._frames = 0
        if source.channels < 1:
            raise ClipError("decode_error", f"the file claims {source.channels} channels")
        self.preparation = preparation
        self.rate = preparation.rate_of(source.sample_rate)
        self._resampler = StreamResampler(self.rate, preparation.rate, preparation.resampler)
        self._first = 0 if start is None else _frame("start", start, source.sample_rate)
        self._frame_count = None if end is None else _frame("end", end, source.sample_rate) - self._first
        if self._frame_count is not None and self._frame_count <= 0:
            raise ClipError("invalid_range", f"start {start} s and end {end} s hold no audio")
        if self._first >= _MAX_FRAME:
            raise ClipError("invalid_range", f"start {start} s is beyond any file's end")

    @property
    def can_seek(self) -> bool:
        """Whether the clip's start is reached without decoding the file up to there."""
        return self._source.can_seek

    @property
    def known_duration_s(self) -> float:
        """Duration of the clip where it is known before decoding; 0 otherwise."""
        frames = self._source.exact_frames
        if frames is None:
            return 0.0
        remaining = max(0, frames - self._first)
        return (remaining if self._frame_count is None else min(remaining, self._frame_count)) / self.sample_rate

    @property
    def seconds(self) -> float:
        """Seconds of audio decoded so far, at the file's own rate."""
        return self._frames / self.sample_rate

    def __enter__(self) -> ClipReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._source.close()

    def __iter__(self) -> Iterator[Array]:
        for block in self.mono_blocks():
            resampled = self._resampler.push(block if self._resampler.is_unchanged else scaled(block))
            self.samples += len(resampled)
            if len(resampled):
                yield resampled
        last = self._resampler.finish()
        self.samples += len(last)
        if len(last):
            yield last

    def mono_blocks(self) -> Iterator[Array]:
        """Yield blocks [n] at the file's rate, of one channel; a fault after some audio is a warning."""
        for block in self.blocks():
            yield self.preparation.apply(block)

    def blocks(self) -> Iterator[Array]:
        """Yield blocks [n, channels] as the decoder gives them; a fault after some audio is a warning."""
        blocks = self._source.blocks(self._first)
        while self._frame_count is None or self._frames < self._frame_count:
            try:
                block = next(blocks, None)
            except OSError as error:  # the system's, not the content's: it may pass
                raise ClipError("unreadable", str(error)) from error
            except (SourceFault, RuntimeError) as error:
                if not self._frames:
                    raise ClipError("decode_error", str(error)) from error
                self.warning = f"truncated: after {self._frames} frames: {error}"
                return
            if block is None:
                break
            if self._frame_count is not None:
                block = block[: self._frame_count - self._frames]
            if fault := fault_of(block):
                raise ClipError(fault[0], f"{fault[1]}; near {self.seconds:.1f} s")
            self._frames += len(block)
            yield block
        if self._frame_count is None:
            shortfall = self._source.shortfall(self._first + self._frames) if self._frames else None
            self.warning = f"truncated: {shortfall}" if shortfall else None
        elif 0 < self._frames < self._frame_count:
            self.warning = f"truncated: the file ends {self._frame_count - self._frames} frames before the clip's end"
        if self._frames == 0:
            if self._first:
                raise ClipError("invalid_range", f"start {self._first / self.sample_rate} s is beyond the file's end")
            raise ClipError("empty", "no samples")


def _frame(name: str, seconds: float, sample_rate: int) -> int:
    """Return the frame at a time; ``invalid_range`` for a negative or infinite one."""
    if not math.isfinite(seconds) or seconds < 0:
        raise ClipError("invalid_range", f"{name} {seconds} s is no time in a file")
    return round(seconds * sample_rate)


def leveled(clip: ClipReader, on_block: Callable[[], None] = lambda: None) -> Preparation:
    """Return a clip's preparation with its level, for which the clip is read to its end.

    ``peak`` divides by the largest resampled sample (google-research's audioset_model.py: the largest, not the largest
    magnitude); ``mean`` subtracts the mean at the file's rate (audioldm_eval's load_mel.py).

    Args:
        clip: opened with a preparation without a level.
        on_block: called after each block.
    """
    preparation = clip.preparation
    if not preparation.needs_level:
        return preparation
    by_peak = preparation.normalize == "peak"
    peak, total, count = _LEAST_PEAK, 0.0, 0
    for block in clip if by_peak else clip.mono_blocks():
        scale = INT16_SCALE if block.dtype == np.int16 else 1.0
        peak = max(peak, float(block.max()) * scale)
        total += float(block.sum(dtype=np.float64)) * scale
        count += len(block)
        on_block()
    if by_peak:
        return replace(preparation, gain=1 / peak)
    return replace(preparation, offset=total / max(count, 1))
