"""Audio files that libsndfile decodes, to their real end.

A seek is trusted only where samples lie at places that can be computed (PCM, float, A-law, mu-law) or where every frame
bears its number (FLAC).  All others are read from their beginning: libsndfile's seeks in MP3, Ogg Vorbis and Opus
land beside what reading up to the place gives, and its decoders of ADPCM, GSM and ALAC promise nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import soundfile

from runner.audio.file_view import FileView
from runner.audio.lengths import mended_header, stated_bytes
from runner.audio.sources import BLOCK_S, Forward, SourceFault
from runner.audio.stream_ends import flac_end, mpeg_header, next_mpeg_frame, ogg_link
from runner.core.errors import ClipError
from runner.vggish.constants import SAMPLE_RATE

if TYPE_CHECKING:
    from runner.audio.sources import Array, Stamp

_BLOCK_SAMPLES = 1 << 21
"""At most this many values (frames × channels) are decoded at once."""

_EXACT_SEEK = frozenset(
    {"PCM_S8", "PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"}
)  # subtypes; none of them in Ogg or MPEG

_PIECES = (1024, 1)
"""Frames at once in which a block with a fault is decoded again, and again up to the fault."""

_UNKNOWN_FRAMES = 1 << 62

_MOST_PARTS = 10_000

_SYSTEM_ERROR = 2
"""libsndfile's number for an error of the operating system."""


class _Unclipped(soundfile.SoundFile):  # type: ignore[misc]
    """Reads on where soundfile would stop or stumble.

    Of a seekable file soundfile asks for no more frames than the header states, and after each read it seeks to where
    it is, which fails in a FLAC stream of unknown length, and in MP3 spoils what follows.
    """

    def seekable(self) -> bool:
        return False


class SoundFileSource(Forward):
    """What libsndfile decodes: a file, or the parts that it consists of, one after another."""

    def __init__(self, path: str | bytes, stamp: Stamp | None) -> None:
        super().__init__(stamp)
        self._path = path
        self._view: FileView | None = None
        self._mended: tuple[int, bytes] | None = None
        """Bytes of the header that libsndfile needs to see."""
        try:
            self._file = _Unclipped(path)
            if self._file.frames == 0:
                self._mend()
        except soundfile.LibsndfileError:
            self._mend()
            if self._mended is None:
                raise
        try:
            self._begin()
        except BaseException:
            self._shut()
            raise

    def _mend(self) -> None:
        """Open the file with another header, if that is all that it lacks."""
        self._mended = mended_header(self._path)
        if self._mended is not None:
            self._view = FileView(self._path, replaced=self._mended)
            self._file = _Unclipped(self._view)

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
        """Have the encoder's delay and padding trimmed as LAME's tag states them, if the tag is of the whole file."""
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
        if view is None and self._mended is not None:
            view = FileView(self._path, replaced=self._mended)
        self._view = view
        self._file = _Unclipped(self._path if view is None else view)
        self._at, self._limit = 0, None

    def blocks(self, first: int) -> Iterator[Array]:
        if self._limit is not None and first >= self._limit and not self._may_hold(first):
            return
        if self._seeks and self._limit is not None and first < self._limit and self._seek(first):
            yield from self._decode()
        else:
            yield from super().blocks(first)

    def _may_hold(self, first: int) -> bool:
        """Whether a file can hold a frame beyond the number that its header states."""
        if self._container == "FLAC":
            end = flac_end(self._path)
            return end is not None and end.samples > first
        return bool(self._container == "OGG")

    def _seek(self, first: int) -> bool:
        """Go to a frame; a broken file may not be sought in, and is then at its beginning."""
        self._decoded = None
        if first != self._at:
            try:
                self._file.seek(first)
            except soundfile.LibsndfileError as error:
                check_system(error)
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
                check_system(error)
                self._check_view()
                block, fault = self._before_fault(len(block)), error.error_string
        self._check_view()
        self._at += len(block)
        return block, fault

    def _check_view(self) -> None:
        if self._view is not None and self._view.fault is not None:
            raise ClipError("unreadable", str(self._view.fault))

    def _before_fault(self, count: int) -> Array:
        """The frames of a block that come before the fault that it met.

        How many they are can't be had from libsndfile: MP3's are not counted, and FLAC's go on with silence behind the
        fault.  So the block is decoded again in ever smaller pieces: the fault is met by the first that reaches it.
        """
        pieces: list[Array] = [np.empty((0, self.channels), self.dtype)]
        start, end = self._at, self._at + count
        for size in _PIECES:
            view = self._view.again() if self._view else None
            file = _Unclipped(self._path if view is None else view)
            try:
                self._skip(file, start)
                while start < end and len(piece := file.read(size, dtype=self.dtype, always_2d=True)):
                    pieces.append(piece)
                    start += len(piece)
            except soundfile.LibsndfileError:
                pass
            finally:
                file.close()
                if view is not None:
                    view.close()
        return np.concatenate(pieces)

    def _skip(self, file: soundfile.SoundFile, frames: int) -> None:
        """Go to a frame of a file that was just opened; where that is not possible, to its end."""
        if self._seeks and self._view is None:
            file.seek(frames)
            return
        while frames > 0:
            frames -= len(file.read(min(frames, self._block_frames), dtype=self.dtype)) or frames

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
            check_system(error)
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
        self._skip(self._file, total)
        self._at = total
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


def check_system(error: soundfile.LibsndfileError) -> None:
    """A fault of the system is none of the file's: it may pass."""
    if error.code == _SYSTEM_ERROR:
        raise ClipError("unreadable", "the system would not read the file") from error
