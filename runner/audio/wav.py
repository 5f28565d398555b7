"""Reads the commonest file of all, 16-bit 16 kHz mono WAV, without a library: its samples are copied, not converted.

libsndfile takes 50 microseconds to open a file and converts every sample; a data set of VGGish's own rate needs
neither.  Whatever is not exactly such a file, whole, is left to libsndfile, so that both tell the same of it.
"""

from __future__ import annotations

import os
import stat
import struct

import numpy as np
from numpy.typing import NDArray

from runner.vggish.constants import SAMPLE_RATE

_HEAD = 4096
"""Bytes in which the chunks before the samples must lie."""

_PCM = 1

_FORMAT = struct.Struct("<HHIIHH")

_CHUNK = struct.Struct("<4sI")


class Pcm16Wav:
    """A whole 16-bit 16 kHz mono WAV file, open for reading; ``open`` finds out whether a file is one."""

    def __init__(self, descriptor: int, offset: int, frames: int) -> None:
        self._descriptor = descriptor
        self._offset = offset
        self.frames = frames
        """Samples in the file."""

    @classmethod
    def open(cls, path: str | bytes) -> Pcm16Wav | None:
        """The file, or None where it is anything else (or can't be opened)."""
        flags = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        try:
            descriptor = os.open(path, flags)
        except (OSError, ValueError):
            return None
        try:
            status = os.fstat(descriptor)
            if stat.S_ISREG(status.st_mode) and (place := _samples(os.read(descriptor, _HEAD), status.st_size)):
                return cls(descriptor, *place)
        except OSError:
            pass
        os.close(descriptor)
        return None

    def read(self, first: int, frames: int) -> NDArray[np.int16]:
        """Up to ``frames`` samples from sample ``first``, int16 [n]; fewer at the end.

        Raises:
            OSError: the system would not read.
        """
        count = max(0, min(frames, self.frames - first))
        samples = np.empty(count, "<i2")
        if not count:
            return samples
        view = samples.data.cast("B")
        done = 0
        os.lseek(self._descriptor, self._offset + 2 * first, os.SEEK_SET)
        while done < len(view):
            got = _read_into(self._descriptor, view[done:])
            if got == 0:
                break
            done += got
        return samples[: done // 2]

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._descriptor)


def unwrapped(riff: int, length: int, place: int, size: int) -> int:
    """The true length of a WAV file's samples in bytes, where the file outgrew the 32 bits of its sizes.

    Args:
        riff: size that the header gives for the file, less 8.
        length: size that it gives for the samples.
        place: of the samples in the file.
        size: of the file.
    """
    beyond = size - place - length
    return length + (beyond >> 32 << 32) if beyond >= 1 << 32 and riff == (size - 8) & 0xFFFFFFFF else length


def _read_into(descriptor: int, view: memoryview) -> int:
    if hasattr(os, "readv"):
        return os.readv(descriptor, [view])
    data = os.read(descriptor, len(view))
    view[: len(data)] = data
    return len(data)


def _samples(head: bytes, size: int) -> tuple[int, int] | None:
    """Where the samples lie, (byte offset, samples), if the file is whole and all that this module reads."""
    if len(head) < 44 or head[:4] != b"RIFF" or head[8:12] != b"WAVE":
        return None
    place, known = 12, False
    while place + _CHUNK.size <= len(head):
        name, length = _CHUNK.unpack_from(head, place)
        place += _CHUNK.size
        if name == b"data":
            if size >= 1 << 32:
                length = unwrapped(int.from_bytes(head[4:8], "little"), length, place, size)
            whole = known and 0 < length <= size - place and length % 2 == 0
            return (place, length // 2) if whole else None
        if name == b"fmt ":
            if length < _FORMAT.size or place + _FORMAT.size > len(head):
                return None
            form, channels, rate, _, align, bits = _FORMAT.unpack_from(head, place)
            known = (form, channels, rate, align, bits) == (_PCM, 1, SAMPLE_RATE, 2, 16)
            if not known:
                return None
        place += length + length % 2
    return None
