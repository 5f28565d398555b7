"""Reads audio files: any format to mono 16 kHz, in blocks: memory does not grow with length.

Blocks are float32 in -1..1, or, of files that are 16-bit mono at 16 kHz already, the int16 samples themselves.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import soundfile
from numpy.typing import NDArray

from runner.errors import ClipError
from runner.resample import StreamResampler
from runner.vggish.constants import SAMPLE_RATE
from runner.wav import PlainWav, claimed_frames

Array = NDArray[Any]
"""float32, or int16 samples."""

REASONS = {
    "missing": "there is no such file",
    "not_a_file": "a folder, pipe, socket or device, not a file",
    "unreadable": "the system would not open or read it",
    "empty": "no bytes, or no samples",
    "unsupported_format": "no decoder here knows its format",
    "unsupported_rate": "it claims a sample rate below 1 kHz or above 768 kHz",
    "bad_range": "the manifest's start and end lie outside the file",
    "decode_error": "the decoder failed before anything came out",
    "decoder_died": "the decode process died on it, three times",
    "timeout": "its decoder gave nothing for dataset.clip_timeout_s",
    "unreachable": "the object store did not give it within dataset.fetch_timeout_s; tried again on resuming",
    "too_long": "longer than dataset.max_clip_s",
    "non_finite_embedding": "the network gave NaN or infinity: its numbers overflow in this precision",
    "non_finite": "NaN or infinite samples",
    "out_of_range": "samples more than 60 dB above full scale: floats that were never scaled to -1..1",
    "too_short": "shorter than one example, with frontend.short_clips=skip",
    "truncated": "the file ends, or breaks, before its header says; what decodes is kept (dataset.on_truncated)",
}
"""Reason codes of clips.parquet; ``detail`` beside them says what was seen."""

AV_EXTENSIONS = frozenset(
    {".m4a", ".m4b", ".mp4", ".aac", ".webm", ".mka", ".wma", ".ac3", ".amr", ".ape", ".wv", ".tta", ".mpc"}
)
"""Formats that libsndfile does not read and PyAV (the extra ``av``) does."""

_BLOCK_S = 10
_BLOCK_SAMPLES = 1 << 21
"""At most this many values (frames × channels) are decoded at once."""
_INEXACT_SEEK = frozenset({"MP3", "MPEG"})
"""Containers in which a seek may land elsewhere than reading up to the place would."""


def read_clip(
    path: str | bytes,
    start: float | None = None,
    end: float | None = None,
    *,
    resampler: str = "reference",
    suffix: str | None = None,
) -> ClipReader:
    """Open a clip; iterate the reader for its waveform.

    Args:
        path: of the file, as the file system spells it.
        start: where the clip starts in the file, in seconds; None: at its beginning.
        end: where it ends; None: at the file's end.
        resampler: ``reference`` or ``soxr``.
        suffix: of the clip's name, where that is not the path's.

    Raises:
        ClipError: with a code of ``REASONS``.
    """
    source = _open(path, suffix)
    try:
        return ClipReader(source, start, end, resampler)
    except BaseException:
        source.close()
        raise


def _open(path: str | bytes, suffix: str | None = None) -> _Source:
    if plain := PlainWav.open(path):
        return _PlainWavSource(plain)
    _check_file(path)
    try:
        return _SoundFile(path)
    except soundfile.LibsndfileError as error:
        return _av_source(path, suffix or Path(os.fsdecode(path)).suffix.lower(), error.error_string)
    except OSError as error:
        raise ClipError("unreadable", str(error)) from error


class ClipReader:
    """One clip's waveform in blocks of float32 or int16 [n], mono 16 kHz; a context manager.

    ``seconds``, ``samples`` and ``note`` are complete once the iteration has ended.
    """

    def __init__(self, source: _Source, start: float | None, end: float | None, resampler: str) -> None:
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
        self._first = round((start or 0.0) * source.sample_rate)
        self._wanted = None if end is None else round(end * source.sample_rate) - self._first
        if self._first < 0 or (self._wanted is not None and self._wanted <= 0):
            raise ClipError("bad_range", f"start {start} s and end {end} s hold no audio")

    @property
    def seconds_to_come(self) -> float:
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
                raise ClipError("bad_range", f"start {self._first / self.sample_rate} s is beyond the file's end")
            raise ClipError("empty", "no samples")

    def _mono(self) -> Iterator[Array]:
        """Blocks at the file's rate, channels averaged before anything else; a fault after some audio is a note."""
        blocks = self._source.blocks(self._first)
        while self._wanted is None or self._frames < self._wanted:
            try:
                block = next(blocks, None)
            except (soundfile.LibsndfileError, RuntimeError, OSError) as error:
                if not self._frames:
                    raise ClipError("decode_error", str(error)) from error
                self.note = f"truncated: after {self._frames} frames: {error}"
                return
            if block is None:
                break
            if self._wanted is not None:
                block = block[: self._wanted - self._frames]
            if block.dtype != np.int16 and not np.isfinite(block).all():
                raise ClipError("non_finite", f"NaN or infinity near {self.seconds:.1f} s")
            self._frames += len(block)
            yield block.mean(axis=1, dtype=np.float32) if block.shape[1] > 1 else block[:, 0]
        claimed = self._source.claimed_frames
        if self._wanted is None and claimed is not None and self._frames + self._first < claimed and self._frames:
            self.note = f"truncated: {self._frames + self._first} of {claimed} frames decoded"
        elif self._wanted is not None and 0 < self._frames < self._wanted:
            self.note = f"truncated: the file ends {self._wanted - self._frames} frames before the clip's end"


class _Source(Protocol):
    """A file being decoded, whatever by."""

    sample_rate: int
    channels: int
    dtype: str
    """Of the blocks: float32 or int16."""
    claimed_frames: int | None
    """What the header says; None if it can't be relied on."""
    exact_frames: int | None = None
    """What the file holds, where that is known before it is read."""

    def blocks(self, first: int) -> Iterator[Array]:
        """Float32 (or int16) [n, channels] blocks from frame ``first`` to the end."""
        ...

    def close(self) -> None:
        """Let go of the file."""
        ...


class _PlainWavSource(_Source):
    sample_rate = SAMPLE_RATE
    channels = 1
    dtype = "int16"

    def __init__(self, file: PlainWav) -> None:
        self._file = file
        self.claimed_frames = self.exact_frames = file.frames

    def blocks(self, first: int) -> Iterator[Array]:
        while len(block := self._file.read(first, _BLOCK_S * SAMPLE_RATE)):
            yield block[:, None]
            first += len(block)

    def close(self) -> None:
        self._file.close()


class _SoundFile(_Source):
    def __init__(self, path: str | bytes) -> None:
        self._file = soundfile.SoundFile(path)
        self.sample_rate = int(self._file.samplerate)
        self.channels = int(self._file.channels)
        as_is = self._file.subtype == "PCM_16" and (self.sample_rate, self.channels) == (SAMPLE_RATE, 1)
        self.dtype = "int16" if as_is else "float32"
        frames = int(self._file.frames)
        self.claimed_frames = frames if 0 < frames < (1 << 62) else None
        if self._file.format in ("WAV", "WAVEX") and (claimed := claimed_frames(path)):
            self.claimed_frames = claimed

    def blocks(self, first: int) -> Iterator[Array]:
        left = first
        if first and self._file.seekable() and self._file.format not in _INEXACT_SEEK:
            if first >= self._file.frames:
                return
            self._file.seek(first)
            left = 0
        frames = max(1, min(_BLOCK_S * self.sample_rate, _BLOCK_SAMPLES // max(1, self.channels)))
        while True:
            block: Array = self._file.read(frames, dtype=self.dtype, always_2d=True)
            if not len(block):
                return
            skipped = min(left, len(block))
            left -= skipped
            if skipped < len(block):
                yield block[skipped:]

    def close(self) -> None:
        self._file.close()


class _AvFile(_Source):
    """What PyAV decodes; its formats give no frame count to rely on, and encoder padding is not trimmed."""

    claimed_frames = None
    dtype = "float32"

    def __init__(self, path: str | bytes) -> None:
        import av

        self._container: Any = av.open(os.fsdecode(path))
        if not self._container.streams.audio:
            self._container.close()
            raise ClipError("unsupported_format", "the file has no audio stream")
        self._audio: Any = self._container.streams.audio[0]
        self.sample_rate = int(self._audio.rate or 0)
        self.channels = int(self._audio.channels or 0)
        self._resampler: Any = av.AudioResampler(format="fltp", layout=self._audio.layout, rate=self.sample_rate)

    def blocks(self, first: int) -> Iterator[Array]:
        left = first
        for decoded in self._container.decode(self._audio):
            for frame in self._resampler.resample(decoded):
                block = np.ascontiguousarray(frame.to_ndarray().T, dtype=np.float32)
                skipped = min(left, len(block))
                left -= skipped
                if skipped < len(block):
                    yield block[skipped:]

    def close(self) -> None:
        self._container.close()


def _av_source(path: str | bytes, extension: str, refusal: str) -> _Source:
    if extension not in AV_EXTENSIONS:
        raise ClipError("unsupported_format", refusal)
    try:
        import av
    except ImportError:
        raise ClipError(
            "unsupported_format", f"{extension} needs the extra av: pip install 'vggish-runner[av]'"
        ) from None
    try:
        return _AvFile(path)
    except (av.FFmpegError, OSError, ValueError) as error:
        raise ClipError("unsupported_format", f"{refusal} PyAV: {getattr(error, 'strerror', None) or error}") from error


def _check_file(path: str | bytes) -> None:
    """Only a regular file is opened: opening a pipe would wait for its writer."""
    try:
        status = os.stat(path)
    except FileNotFoundError as error:
        raise ClipError("missing", "no such file, or a link to nothing") from error
    except (OSError, ValueError) as error:
        raise ClipError("unreadable", str(error)) from error
    if not stat.S_ISREG(status.st_mode):
        raise ClipError("not_a_file", stat.filemode(status.st_mode))
    if status.st_size == 0:
        raise ClipError("empty", "0 bytes")
    if not os.access(path, os.R_OK):
        raise ClipError("unreadable", "permission denied")


def count_samples(frames: int, sample_rate: int) -> int:
    """Samples at 16 kHz of ``frames`` at ``sample_rate``, as the reference's resampler counts them."""
    return frames if sample_rate == SAMPLE_RATE else int(frames * float(SAMPLE_RATE) / float(sample_rate))
