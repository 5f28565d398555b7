"""Choice of the decoder: the first of our own WAV reader, libsndfile and PyAV that knows the file."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import soundfile

from runner.audio.av_source import open_av_source
from runner.audio.sndfile_source import SoundFileSource, check_system
from runner.audio.sources import BLOCK_S, SequentialSource, Source, Stamp
from runner.audio.wav import Pcm16Wav
from runner.core.errors import ClipError

if TYPE_CHECKING:
    from runner.audio.sources import Array


def open_source(path: str | bytes, rate: int, suffix: str | None = None) -> Source:
    """Open a file with the first decoder that knows it.

    Args:
        path: of the file.
        rate: Hz that it will be resampled to: the one of our own WAV reader's files.
        suffix: of the clip's name, where the file is a temporary copy of it.

    Raises:
        ClipError: the file can't be opened, or no decoder knows it.
    """
    if plain := Pcm16Wav.open(path, rate):
        return _PlainWavSource(plain, rate)
    stamp = _check_file(path)
    if cached := SequentialSource.take_cached(stamp):
        return cached
    cacheable = stamp if suffix is None else None
    try:
        return SoundFileSource(path, cacheable)
    except soundfile.LibsndfileError as error:
        check_system(error)
        extension = suffix or Path(os.fsdecode(path)).suffix.lower()
        return open_av_source(path, cacheable, extension, error.error_string)
    except OSError as error:
        raise ClipError("unreadable", str(error)) from error


class _PlainWavSource(Source):
    channels = 1
    dtype = "int16"
    can_seek = True

    def __init__(self, file: Pcm16Wav, rate: int) -> None:
        self._file = file
        self.sample_rate = rate
        self.exact_frames = file.frames

    def blocks(self, first: int) -> Iterator[Array]:
        while len(block := self._file.read(first, BLOCK_S * self.sample_rate)):
            yield block[:, None]
            first += len(block)

    def shortfall(self, frames: int) -> str | None:
        return f"{frames} of {self._file.frames} frames decoded" if frames < self._file.frames else None

    def close(self) -> None:
        self._file.close()


def _check_file(path: str | bytes) -> Stamp:
    """Check that a file can be opened and is regular: opening a pipe would wait for its writer."""
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
    return Stamp(path, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
