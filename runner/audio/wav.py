"""Reader for 16-bit mono WAV at the model's rate, the most common file: samples are copied, not converted.

libsndfile takes 50 microseconds to open a file and converts every sample; a data set at the model's own rate needs
neither. libsndfile reads every other file, truncated ones included.
"""

from __future__ import annotations

import os
import stat
import struct

import numpy as np
from numpy.typing import NDArray

_HEADER_BYTES = 4096
"""Bytes at the beginning that must hold all chunks before the samples."""

_PCM = 1

_FORMAT = struct.Struct("<HHIIHH")

_CHUNK = struct.Struct("<4sI")


class Pcm16Wav:
    """A whole 16-bit mono WAV file, open for reading.

    Args:
        descriptor: of the open file; owned from now on.
        offset: byte at which the samples begin.
        frames: samples in the file.
    """

    def __init__(self, descriptor: int, offset: int, frames: int) -> None:
        self._descriptor = descriptor
        self._offset = offset
        self.frames = frames

    @classmethod
    def open(cls, path: str | bytes, rate: int) -> Pcm16Wav | None:
        """Open a file; None where it is of another kind or rate (Hz), or can't be opened."""
        flags = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        try:
            descriptor = os.open(path, flags)
        except (OSError, ValueError):
            return None
        try:
            status = os.fstat(descriptor)
            if stat.S_ISREG(status.st_mode) and (
                samples := _find_samples(os.read(descriptor, _HEADER_BYTES), status.st_size, rate)
            ):
                return cls(descriptor, *samples)
        except OSError:
            pass
        os.close(descriptor)
        return None

    def read(self, first: int, frames: int) -> NDArray[np.int16]:
        """Read up to ``frames`` samples from sample ``first``, int16 [n]; fewer at the end.

        Raises:
            OSError: reading failed.
        """
        count = max(0, min(frames, self.frames - first))
        samples = np.empty(count, "<i2")
        if not count:
            return samples
        view = samples.data.cast("B")
        done = 0
        os.lseek(self._descriptor, self._offset + 2 * first, os.SEEK_SET)
        while done < len(view):
            received = _read_into(self._descriptor, view[done:])
            if received == 0:
                break
            done += received
        return samples[: done // 2]

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


def unwrapped(riff: int, length: int, offset: int, size: int) -> int:
    """Return the true length in bytes of a WAV file's samples, where the file outgrew the 32 bits of its sizes.

    Args:
        riff: size of the file less 8, by its header.
        length: size of the samples, by the header.
        offset: byte at which the samples begin.
        size: of the file.
    """
    beyond = size - offset - length
    return length + (beyond >> 32 << 32) if beyond >= 1 << 32 and riff == (size - 8) & 0xFFFFFFFF else length


def _read_into(descriptor: int, view: memoryview) -> int:
    if hasattr(os, "readv"):
        return os.readv(descriptor, [view])
    data = os.read(descriptor, len(view))
    view[: len(data)] = data
    return len(data)


def _find_samples(head: bytes, size: int, rate: int) -> tuple[int, int] | None:
    """Find the samples by a file's first bytes: (byte offset, count); None for a file of another kind or a cut one."""
    if len(head) < 44 or head[:4] != b"RIFF" or head[8:12] != b"WAVE":
        return None
    offset, is_plain = 12, False
    while offset + _CHUNK.size <= len(head):
        name, length = _CHUNK.unpack_from(head, offset)
        offset += _CHUNK.size
        if name == b"data":
            if size >= 1 << 32:
                length = unwrapped(int.from_bytes(head[4:8], "little"), length, offset, size)
            is_whole = 0 < length <= size - offset and length % 2 == 0
            return (offset, length // 2) if is_plain and is_whole else None
        if name == b"fmt ":
            if length < _FORMAT.size or offset + _FORMAT.size > len(head):
                return None
            codec, channels, own_rate, _, align, bits = _FORMAT.unpack_from(head, offset)
            is_plain = (codec, channels, own_rate, align, bits) == (_PCM, 1, rate, 2, 16)
            if not is_plain:
                return None
        offset += length + length % 2
    return None
