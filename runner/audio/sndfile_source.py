"""Decoding with libsndfile, to the real end of a file.

Seeks are used only where the offset of a sample can be computed (PCM, float, A-law, mu-law) or where every frame has
its number (FLAC).  All other files are read from their beginning: libsndfile's seeks in MP3, Ogg Vorbis and Opus miss
the frame, and its decoders of ADPCM, GSM and ALAC give no guarantee.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import soundfile

from runner.audio.file_view import FileView
from runner.audio.flac import decode_flac
from runner.audio.lengths import fixed_header, stated_bytes
from runner.audio.sources import BLOCK_S, SequentialSource, SourceFault
from runner.audio.stream_ends import flac_end, mpeg_header, next_mpeg_frame, ogg_link
from runner.core.errors import ClipError

if TYPE_CHECKING:
    from runner.audio.sources import Array, Stamp

_BLOCK_SAMPLES = 1 << 21
"""Most values (frames × channels) of a block."""

_EXACT_SEEK = frozenset({"PCM_S8", "PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"})
"""Subtypes with exact seeks; Ogg and MPEG have none of them."""

_PIECES = (1024, 1)
"""Frames of the pieces in which a block with a fault is decoded again: first coarse, then up to the fault."""

_UNKNOWN_FRAMES = 1 << 62

_MAX_PARTS = 10_000

_SYSTEM_ERROR = 2
"""libsndfile's number for an error of the operating system."""


class _Unclipped(soundfile.SoundFile):  # type: ignore[misc]
    """A file that soundfile reads beyond the frames that its header states.

    In a seekable file soundfile reads no more frames than those, and seeks after each read, which fails in a FLAC
    stream of unknown length and corrupts what follows in MP3.
    """

    def seekable(self) -> bool:
        return False


class SoundFileSource(SequentialSource):
    """A file that libsndfile decodes, in parts where it consists of several streams or has broken frames.

    Args:
        path: of the file.
        stamp: of the file; None for one that is not to be cached.

    Raises:
        soundfile.LibsndfileError: libsndfile does not know the file.
    """

    def __init__(self, path: str | bytes, stamp: Stamp | None) -> None:
        super().__init__(stamp)
        self._path = path
        self._view: FileView | None = None
        self._header_fix: tuple[int, bytes] | None = None
        self._whole: Array | None = None
        try:
            self._file = _Unclipped(path)
            if self._file.frames == 0:
                self._fix_header()
        except soundfile.LibsndfileError:
            self._fix_header()
            if self._header_fix is None:
                raise
        try:
            self._begin()
        except BaseException:
            self._release()
            raise

    def _fix_header(self) -> None:
        """Open the file with a fixed header, if there is a fix."""
        self._header_fix = fixed_header(self._path)
        if self._header_fix is not None:
            self._view = FileView(self._path, replaced=self._header_fix)
            self._file = _Unclipped(self._view)

    def _begin(self) -> None:
        """Read the header; an estimate in it must not cut the file off."""
        file = self._file
        self._container = file.format
        self.sample_rate = int(file.samplerate)
        self.channels = int(file.channels)
        self.dtype = "int16" if file.subtype == "PCM_16" else "float32"
        frames = int(file.frames)
        self._stated = frames if frames < _UNKNOWN_FRAMES else None  # frames of the whole file, by its header
        self._limit = self._stated  # frame of the open part at which reading stops
        self.can_seek = file.subtype in _EXACT_SEEK and self._limit is not None
        self._block_frames = max(1, min(BLOCK_S * self.sample_rate, _BLOCK_SAMPLES // max(1, self.channels)))
        self._position = 0  # frame of the open part
        self._part_offset = self._parts_before = 0
        self._defect: str | None = None
        if self._container == "MP3":
            self._begin_mpeg()

    def _begin_mpeg(self) -> None:
        """Trim the encoder's delay and padding by LAME's tag, if the tag is about the whole file."""
        header = mpeg_header(self._path)
        if header is not None and header.is_complete:
            return
        # Otherwise the number of frames is an estimate, or that of the first of several joined files.
        self._stated = None if header is None else self._stated
        self._reopen(self._view_from(0))

    def _view_from(self, begin: int) -> FileView:
        """View the file from a byte on; MPEG is made endless."""
        if self._container != "MP3":
            return FileView(self._path, begin)
        header = mpeg_header(self._path, begin)
        replaced = None if header is None else (header.frames_offset, b"\x7f\xff\xff\xff")
        return FileView(self._path, begin, replaced, endless=True)

    def _restart(self) -> None:
        if self._position or self._parts_before:
            self._reopen(None)
            self._begin()

    def _reopen(self, view: FileView | None) -> None:
        """Open the file, or a view of it, without a known end."""
        self._release()
        if view is None and self._header_fix is not None:
            view = FileView(self._path, replaced=self._header_fix)
        self._view = view
        self._file = _Unclipped(self._path if view is None else view)
        self._position, self._limit = 0, None

    def blocks(self, first: int) -> Iterator[Array]:
        if self._limit is not None and first >= self._limit and not self._may_hold(first):
            return
        if self.can_seek and self._limit is not None and first < self._limit and self._seek(first):
            yield from self._decode()
        else:
            yield from super().blocks(first)

    def _may_hold(self, first: int) -> bool:
        """Whether the file can hold a frame beyond those that its header states."""
        if self._container == "FLAC":
            end = flac_end(self._path)
            return end is not None and end.samples > first
        return bool(self._container == "OGG")

    def _seek(self, first: int) -> bool:
        """Seek to a frame; return False, at the file's beginning, where a broken file refuses."""
        self._decoding = None
        if first != self._position and self._whole is None:
            try:
                self._file.seek(first)
            except soundfile.LibsndfileError as error:
                check_system(error)
                self._reopen(None)
                self._begin()
                return False
        self._position = first
        return True

    def _decode(self) -> Iterator[Array]:
        whole = self._decode_whole()
        while whole is not None and self._position < len(whole):
            block = whole[self._position : self._position + self._block_frames]
            self._position += len(block)
            yield block
        while True:
            block, fault = self._read()
            if len(block):
                yield block
            if fault is not None and not self._resume_mpeg():
                if self._container == "MP3" and self._view is not None:
                    return  # after the last frame comes something else, or a part of a frame: nothing states its length
                raise SourceFault(fault)
            if not len(block) and fault is None and not self._open_next():
                return

    def _decode_whole(self) -> Array | None:
        """Return all samples of a FLAC file that is, or was, read from its beginning; None of other files."""
        if self._view is not None or self._parts_before or self._limit is None:
            return None
        is_fast = (self._container, self.dtype) == ("FLAC", "int16")
        if is_fast and self._whole is None and self._position == 0:
            self._whole = decode_flac(self._path, self._limit, self.channels)
        return self._whole

    def _read(self) -> tuple[Array, str | None]:
        """Read the next block, and the fault that ended it; a block without frames at the end."""
        count = self._block_frames if self._limit is None else min(self._block_frames, self._limit - self._position)
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
        self._position += len(block)
        return block, fault

    def _check_view(self) -> None:
        if self._view is not None and self._view.fault is not None:
            raise ClipError("unreadable", str(self._view.fault))

    def _before_fault(self, count: int) -> Array:
        """Decode the frames of a block before its fault.

        libsndfile doesn't say how many they are: it doesn't count those of MP3, and continues FLAC with silence.  So
        the block is decoded again in smaller and smaller pieces, of which the first that reaches the fault fails.
        """
        pieces: list[Array] = [np.empty((0, self.channels), self.dtype)]
        start, end = self._position, self._position + count
        for size in _PIECES:
            view = self._view.reopen() if self._view else None
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
        """Move a file that was just opened by ``frames``, or to its end."""
        if self.can_seek and self._view is None:
            file.seek(frames)
            return
        while frames > 0:
            frames -= len(file.read(min(frames, self._block_frames), dtype=self.dtype)) or frames

    def _open_next(self) -> bool:
        """Open what follows the end that libsndfile sees; return whether there is more."""
        try:
            if self._container == "OGG":
                link = ogg_link(self._path, self._part_offset)
                self._defect = self._defect or link.fault
                return link.next_link is not None and self._open_part(link.next_link)
            if self._container == "FLAC" and self._limit is not None and self._position >= self._limit:
                return self._read_past_total(self._limit)
        except OSError as error:
            raise ClipError("unreadable", str(error)) from error
        return False

    def _resume_mpeg(self) -> bool:
        """Open the file at the next MPEG frame after a fault; return whether there is one."""
        if self._container != "MP3" or self._view is None:
            return False
        try:
            begin = next_mpeg_frame(self._path, self._part_offset + self._view.tell())
            return begin is not None and self._open_part(begin)
        except OSError as error:
            raise ClipError("unreadable", str(error)) from error

    def _open_part(self, begin: int) -> bool:
        """Open the part that begins at a byte; return whether it is of the same recording: same rate and channels."""
        self._parts_before += 1
        try:
            self._reopen(self._view_from(begin))
            is_same = (self._file.samplerate, self._file.channels) == (self.sample_rate, self.channels)
        except soundfile.LibsndfileError as error:
            check_system(error)
            is_same = False
        self._part_offset = begin
        if is_same and self._parts_before < _MAX_PARTS:
            return True
        self._defect = f"the stream that begins at byte {begin} has another rate or other channels, or is broken"
        return False

    def _read_past_total(self, total: int) -> bool:
        """Continue in a FLAC file that holds more than it states; return whether it does."""
        end = flac_end(self._path)
        if end is None or end.samples <= total:
            return False
        self._parts_before += 1
        self._reopen(FileView(self._path, replaced=end.unknown_total))
        self._skip(self._file, total)
        self._position = total
        return True

    def shortfall(self, frames: int) -> str | None:
        if self._defect is not None:
            return self._defect
        if self._container in ("MP3", "FLAC") and self._stated is not None and frames < self._stated:
            return f"{frames} of {self._stated} frames decoded"
        stated = stated_bytes(self._path, self._container)
        if stated is None or stated.present >= stated.stated:
            return None
        return f"{stated.present} of the {stated.stated} bytes of samples that its header states are read"

    def _release(self) -> None:
        self._file.close()
        if self._view is not None:
            self._view.close()


def check_system(error: soundfile.LibsndfileError) -> None:
    """Raise ``unreadable`` for an error of the operating system: it is not the file's, and may pass."""
    if error.code == _SYSTEM_ERROR:
        raise ClipError("unreadable", "the system would not read the file") from error
