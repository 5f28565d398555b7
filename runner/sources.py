"""What decodes an audio file: our own WAV reader, libsndfile or PyAV, each as blocks of samples from any frame on.

A seek is trusted only where samples lie at places that can be computed (PCM, float, A-law, mu-law) or where every frame
bears its number (FLAC).  All others are read from their beginning: libsndfile's seeks in MP3, Ogg Vorbis and Opus
land beside what reading up to the place gives, and its decoders of ADPCM, GSM and ALAC promise nothing.  So that many
parts of one long file don't cost the square of its length, a process keeps the file that it read a part of last, and
goes on reading where it was.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import soundfile
from numpy.typing import NDArray

from runner.errors import ClipError
from runner.file_view import FileView
from runner.lengths import stated_bytes
from runner.stream_ends import flac_end, mpeg_header, next_mpeg_frame, ogg_link
from runner.vggish.constants import SAMPLE_RATE
from runner.wav import PlainWav

Array = NDArray[Any]
"""float32, or int16 samples."""

AV_EXTENSIONS = frozenset(
    {".m4a", ".m4b", ".mp4", ".aac", ".webm", ".mka", ".wma", ".ac3", ".amr", ".ape", ".wv", ".tta", ".mpc"}
)
"""Formats that libsndfile does not read and PyAV (the extra ``av``) does."""

BLOCK_S = 10
_BLOCK_SAMPLES = 1 << 21
"""At most this many values (frames × channels) are decoded at once."""
_EXACT_SEEK = frozenset(
    {"PCM_S8", "PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"}
)  # subtypes; none of them in Ogg or MPEG
_UNKNOWN_FRAMES = 1 << 62
_MOST_PARTS = 10_000
_SYSTEM_ERROR = 2
"""libsndfile's number for an error of the operating system."""


class SourceFault(Exception):
    """The decoder gave up on the file's content; what came before it stands."""


class Stamp(NamedTuple):
    """What tells whether a file is still the same."""

    path: str | bytes
    device: int
    inode: int
    size: int
    changed_ns: int


class Source(Protocol):
    """A file being decoded, whatever by."""

    sample_rate: int
    channels: int
    dtype: str
    """Of the blocks: float32 or int16."""
    exact_frames: int | None = None
    """What the file holds, where that is known before it is read."""

    def blocks(self, first: int) -> Iterator[Array]:
        """Float32 (or int16) [n, channels] blocks from frame ``first`` to the end.

        Raises:
            SourceFault: the content is broken; the blocks before reach up to the fault.
            ClipError: ``unreadable``: the system would not read.
        """
        ...

    def shortfall(self, frames: int) -> str | None:
        """What the container states beyond the ``frames`` that were decoded from the file's beginning to its end."""
        ...

    def close(self) -> None:
        """Let go of the file."""
        ...


def open_source(path: str | bytes, suffix: str | None = None) -> Source:
    """Open a file with the first decoder that knows it.

    Args:
        path: of the file.
        suffix: of its name, where that is not the path's: the file is a temporary copy.

    Raises:
        ClipError: it can't be opened, or no decoder knows it.
    """
    if plain := PlainWav.open(path):
        return _PlainWavSource(plain)
    stamp = _check_file(path)
    if kept := _Forward.take_kept(stamp):
        return kept
    to_keep = stamp if suffix is None else None
    try:
        return _SoundFileSource(path, to_keep)
    except soundfile.LibsndfileError as error:
        if error.code == _SYSTEM_ERROR:
            raise ClipError("unreadable", "the system would not read the file") from error
        extension = suffix or Path(os.fsdecode(path)).suffix.lower()
        return _av_source(path, to_keep, extension, error.error_string)
    except OSError as error:
        raise ClipError("unreadable", str(error)) from error


class _PlainWavSource(Source):
    sample_rate = SAMPLE_RATE
    channels = 1
    dtype = "int16"

    def __init__(self, file: PlainWav) -> None:
        self._file = file
        self.exact_frames = file.frames

    def blocks(self, first: int) -> Iterator[Array]:
        while True:
            try:
                block = self._file.read(first, BLOCK_S * SAMPLE_RATE)
            except OSError as error:
                raise ClipError("unreadable", str(error)) from error
            if not len(block):
                return
            yield block[:, None]
            first += len(block)

    def shortfall(self, frames: int) -> str | None:
        return f"{frames} of {self._file.frames} frames decoded" if frames < self._file.frames else None

    def close(self) -> None:
        self._file.close()


class _Forward(Source):
    """A source that is read from its beginning on, and kept for a later part of the same file.

    A block is what the decoder gives next whatever was asked for, so that a file that was kept gives the bits that one
    opened anew does.
    """

    _kept: _Forward | None = None

    def __init__(self, stamp: Stamp | None) -> None:
        self._stamp = stamp
        self._decoded: Iterator[Array] | None = None
        self._block: Array | None = None
        self._block_first = 0

    @classmethod
    def take_kept(cls, stamp: Stamp) -> _Forward | None:
        """The source that was kept, if it is of this very file; one of another file is closed."""
        kept, _Forward._kept = _Forward._kept, None
        if kept is not None and kept._stamp != stamp:
            kept._shut()
            kept = None
        return kept

    def blocks(self, first: int) -> Iterator[Array]:
        if self._decoded is None or first < self._block_first:
            self._restart()
            self._decoded, self._block, self._block_first = self._decode(), None, 0
        while True:
            if self._block is None or first >= self._block_first + len(self._block):
                if not self._advance():
                    return
                continue
            part = self._block[first - self._block_first :]
            first += len(part)
            yield part

    def _advance(self) -> bool:
        """Decode the next block; whether there is one."""
        assert self._decoded is not None
        self._block_first += 0 if self._block is None else len(self._block)
        self._block = None
        try:
            self._block = next(self._decoded, None)
        finally:
            if self._block is None:
                self._decoded = None
        return self._block is not None

    def close(self) -> None:
        if self._stamp is None or self._decoded is None:
            self._shut()
            return
        if (kept := _Forward._kept) is not None:
            kept._shut()
        _Forward._kept = self

    def _restart(self) -> None:
        """Be at the file's beginning."""
        raise NotImplementedError

    def _decode(self) -> Iterator[Array]:
        """Blocks from where the file is to its end, not changed by what is done to them."""
        raise NotImplementedError

    def _shut(self) -> None:
        raise NotImplementedError


class _Unclipped(soundfile.SoundFile):  # type: ignore[misc]
    """Reads on where soundfile would stop or stumble.

    Of a seekable file soundfile asks for no more frames than the header states, and after each read it seeks to where
    it is, which fails in a FLAC stream of unknown length, and in MP3 spoils what follows.
    """

    def seekable(self) -> bool:
        return False


class _SoundFileSource(_Forward):
    """What libsndfile decodes: a file, or the parts that it consists of, one after another."""

    def __init__(self, path: str | bytes, stamp: Stamp | None) -> None:
        super().__init__(stamp)
        self._path = path
        self._view: FileView | None = None
        self._file = _Unclipped(path)
        try:
            self._begin()
        except BaseException:
            self._shut()
            raise

    def _begin(self) -> None:
        """Take what the header says, and make sure that it is no estimate that cuts the file off."""
        file = self._file
        self._container = file.format
        self.sample_rate = int(file.samplerate)
        self.channels = int(file.channels)
        as_is = file.subtype == "PCM_16" and (self.sample_rate, self.channels) == (SAMPLE_RATE, 1)
        self.dtype = "int16" if as_is else "float32"
        frames = int(file.frames)
        self._stated = frames if frames < _UNKNOWN_FRAMES else None
        self._limit = self._stated
        self._seeks = file.subtype in _EXACT_SEEK and self._limit is not None
        self._block_frames = max(1, min(BLOCK_S * self.sample_rate, _BLOCK_SAMPLES // max(1, self.channels)))
        self._at = 0
        """Frames read of the part that is open."""
        self._part = self._parts = 0
        """Byte at which the part that is open begins; parts that there were before it."""
        self._lack: str | None = None
        if self._container == "MP3":
            self._begin_mpeg()

    def _begin_mpeg(self) -> None:
        header = mpeg_header(self._path)
        if header is not None and header.is_complete:
            return
        # Otherwise the number of frames is an estimate, or that of the first of several files joined into one.
        self._stated = None if header is None else self._stated
        self._reopen(self._view_from(0))

    def _view_from(self, begin: int) -> FileView:
        """The file from a byte on; of MPEG with no end that libsndfile could believe in."""
        if self._container != "MP3":
            return FileView(self._path, begin)
        header = mpeg_header(self._path, begin)
        replaced = None if header is None else (header.frames_place, b"\x7f\xff\xff\xff")
        return FileView(self._path, begin, replaced, endless=True)

    def _restart(self) -> None:
        if self._at or self._parts:
            self._reopen(None)
            self._begin()

    def _reopen(self, view: FileView | None) -> None:
        """Open the file, or a view of it, of which nothing is known to have an end."""
        self._shut()
        self._view = view
        self._file = _Unclipped(self._path if view is None else view)
        self._at, self._limit = 0, None

    def blocks(self, first: int) -> Iterator[Array]:
        if not self._seeks or self._limit is None:
            yield from super().blocks(first)
        elif first >= self._limit:
            end = flac_end(self._path) if self._container == "FLAC" else None
            if end is not None and end.samples > first:
                yield from super().blocks(first)
        elif self._seek(first):
            yield from self._decode()
        else:
            yield from super().blocks(first)

    def _seek(self, first: int) -> bool:
        """Go to a frame; a broken file may not be sought in, and is then at its beginning."""
        if first != self._at:
            try:
                self._file.seek(first)
            except soundfile.LibsndfileError as error:
                _check_system(error)
                self._reopen(None)
                self._begin()
                return False
        self._at = first
        return True

    def _decode(self) -> Iterator[Array]:
        while True:
            block, fault = self._read()
            if len(block):
                yield block
            if fault is not None and not self._resume_mpeg():
                if self._container == "MP3" and self._view is not None:
                    return  # behind the last frame lies something else, or part of a frame: nothing states its length
                raise SourceFault(fault)
            if not len(block) and fault is None and not self._go_on():
                return

    def _read(self) -> tuple[Array, str | None]:
        """The next block, and the fault that ended it; no frames at the end."""
        count = self._block_frames if self._limit is None else min(self._block_frames, self._limit - self._at)
        block: Array = np.empty((max(0, count), self.channels), self.dtype)
        fault = None
        if count > 0:
            try:
                block = self._file.read(out=block)
            except soundfile.LibsndfileError as error:
                _check_system(error)
                block, fault = self._before_fault(block), error.error_string
        if self._view is not None and self._view.fault is not None:
            raise ClipError("unreadable", str(self._view.fault))
        self._at += len(block)
        return block, fault

    def _before_fault(self, block: Array) -> Array:
        """The frames of a block that were decoded before the fault."""
        try:
            done = self._file.tell() - self._at
        except soundfile.LibsndfileError:
            done = 0
        if done > 0:
            return block[:done]
        return block[:0] if self.dtype != "float32" else self._decoded_again(len(block))

    def _decoded_again(self, count: int) -> Array:
        """Decode a block again that a fault ended without a word of how far it came: into NaN, which shows it."""
        view = self._view.again() if self._view else None
        file = _Unclipped(self._path if view is None else view)
        try:
            left = self._at
            while left > 0:
                left -= len(file.read(min(left, self._block_frames), dtype="float32")) or left
            block: Array = np.full((count, self.channels), np.nan, np.float32)
            try:
                return file.read(out=block)  # type: ignore[no-any-return]
            except soundfile.LibsndfileError:
                missing = np.isnan(block[:, 0])
                return block[: int(missing.argmax())] if missing.any() else block
        finally:
            file.close()
            if view is not None:
                view.close()

    def _go_on(self) -> bool:
        """Whether there is more behind what libsndfile takes for the end; it is opened."""
        try:
            if self._container == "OGG":
                link = ogg_link(self._path, self._part)
                self._lack = self._lack or link.fault
                return link.next_link is not None and self._open_part(link.next_link)
            if self._container == "FLAC" and self._limit is not None and self._at >= self._limit:
                return self._read_past_total(self._limit)
        except OSError as error:
            raise ClipError("unreadable", str(error)) from error
        return False

    def _resume_mpeg(self) -> bool:
        """Go on at the next MPEG frame behind a fault."""
        if self._container != "MP3" or self._view is None:
            return False
        try:
            begin = next_mpeg_frame(self._path, self._part + self._view.tell())
            return begin is not None and self._open_part(begin)
        except OSError as error:
            raise ClipError("unreadable", str(error)) from error

    def _open_part(self, begin: int) -> bool:
        """Open what begins at a byte of the file, if it can be taken for a part of the same recording."""
        self._parts += 1
        try:
            self._reopen(self._view_from(begin))
            as_before = (self._file.samplerate, self._file.channels) == (self.sample_rate, self.channels)
        except soundfile.LibsndfileError as error:
            _check_system(error)
            as_before = False
        self._part = begin
        if as_before and self._parts < _MOST_PARTS:
            return True
        self._lack = f"the stream that begins at byte {begin} has another rate or other channels, or is broken"
        return False

    def _read_past_total(self, total: int) -> bool:
        """Go on in a FLAC file that holds more than it states."""
        end = flac_end(self._path)
        if end is None or end.samples <= total:
            return False
        self._parts += 1
        self._reopen(FileView(self._path, replaced=end.unknown_total))
        while self._at < total:
            count = len(self._file.read(min(self._block_frames, total - self._at), dtype=self.dtype))
            if not count:
                return False
            self._at += count
        return True

    def shortfall(self, frames: int) -> str | None:
        if self._lack is not None:
            return self._lack
        if self._container in ("MP3", "FLAC") and self._stated is not None and frames < self._stated:
            return f"{frames} of {self._stated} frames decoded"
        stated = stated_bytes(self._path, self._container)
        if stated is None or stated.present >= stated.states:
            return None
        return f"{stated.present} of the {stated.states} bytes of samples that its header states are read"

    def _shut(self) -> None:
        self._file.close()
        if self._view is not None:
            self._view.close()


def _check_system(error: soundfile.LibsndfileError) -> None:
    """A fault of the system is none of the file's: it may pass."""
    if error.code == _SYSTEM_ERROR:
        raise ClipError("unreadable", "the system would not read the file") from error


class _AvSource(_Forward):
    """What PyAV decodes; encoder padding is not trimmed."""

    dtype = "float32"

    def __init__(self, path: str | bytes, stamp: Stamp | None) -> None:
        super().__init__(stamp)
        self._path = path
        self._open()

    def _open(self) -> None:
        import av

        self._container: Any = av.open(os.fsdecode(self._path))
        if not self._container.streams.audio:
            self._container.close()
            raise ClipError("unsupported_format", "the file has no audio stream")
        self._audio: Any = self._container.streams.audio[0]
        self.sample_rate = int(self._audio.rate or 0)
        self.channels = int(self._audio.channels or 0)
        self._resampler: Any = av.AudioResampler(format="fltp", layout=self._audio.layout, rate=self.sample_rate)
        self._is_used = False

    def _restart(self) -> None:
        if self._is_used:
            self._shut()
            self._open()

    def _decode(self) -> Iterator[Array]:
        import av

        self._is_used = True
        packets = self._container.demux(self._audio)
        while True:
            try:
                packet = next(packets, None)
                frames = [] if packet is None else packet.decode()
                blocks = [resampled for frame in frames for resampled in self._resampler.resample(frame)]
            except av.EOFError:
                return
            except (av.FFmpegError, ValueError) as error:
                _check_number(getattr(error, "errno", None), error)
                raise SourceFault(getattr(error, "strerror", None) or str(error)) from error
            if packet is None:
                return
            for block in blocks:
                yield np.ascontiguousarray(block.to_ndarray().T, dtype=np.float32)

    def shortfall(self, frames: int) -> str | None:
        # Others estimate a duration from the bytes that they find.
        if not set(self._container.format.name.split(",")) & {"mp4", "tta", "ape", "wv"} or not self._audio.duration:
            return None
        stated = int(self._audio.duration * self._audio.time_base * self.sample_rate)
        return f"{frames} of {stated} frames decoded" if frames < stated - _PACKET_FRAMES else None

    def _shut(self) -> None:
        self._container.close()


_PACKET_FRAMES = 4096
"""Frames by which an encoder's padding may make a duration inexact."""
_PASSING = frozenset({errno.EIO, getattr(errno, "ESTALE", errno.EIO), errno.ENOMEM, errno.ETIMEDOUT, errno.EACCES})


def _check_number(number: int | None, error: Exception) -> None:
    if number in _PASSING:
        raise ClipError("unreadable", str(error)) from error


def _av_source(path: str | bytes, stamp: Stamp | None, extension: str, refusal: str) -> Source:
    if extension not in AV_EXTENSIONS:
        raise ClipError("unsupported_format", refusal)
    try:
        import av
    except ImportError:
        raise ClipError(
            "unsupported_format", f"{extension} needs the extra av: pip install 'vggish-runner[av]'"
        ) from None
    try:
        return _AvSource(path, stamp)
    except (av.FFmpegError, OSError, ValueError) as error:
        _check_number(getattr(error, "errno", None), error)
        raise ClipError("unsupported_format", f"{refusal} PyAV: {getattr(error, 'strerror', None) or error}") from error


def _check_file(path: str | bytes) -> Stamp:
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
    return Stamp(path, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
