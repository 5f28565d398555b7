"""Container lengths: bytes of samples that a file's header states, and those that the file holds.

libsndfile silently corrects a header that states more than the file holds.  Each container has one small parser here;
sizes that stand for "not known yet" (0, and those near 2**31 and 2**32 that recorders write into streams) state
nothing. PAF, PVF and IRCAM headers hold no length.  Reads are bounded, whatever a header says.
"""

from __future__ import annotations

import io
import os
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from runner.audio.wav import unwrapped

_HEADER_BYTES = 4096

_MAX_CHUNKS = 4096

_NIST_HEADER_BYTES = 1 << 16

_UNKNOWN_FROM = 0x7FFFF000

_W64_DATA = b"data\xf3\xac\xd3\x11\x8c\xd1\x00\xc0\x4f\x8e\xdb\x8a"


class StatedBytes(NamedTuple):
    """Bytes of samples: those that the header stated, and those of them that are present."""

    stated: int
    present: int


@dataclass(frozen=True)
class _File:
    """An open file, its size in bytes and its first few of them."""

    file: io.FileIO
    size: int
    head: bytes

    def unpack(self, layout: str, offset: int) -> tuple[int, ...]:
        """Unpack numbers at an offset; ``struct.error`` where the file ends before."""
        return struct.unpack(layout, self.bytes(offset, struct.calcsize(layout)))

    def bytes(self, offset: int, count: int) -> bytes:
        if offset + count <= len(self.head):
            return self.head[offset : offset + count]
        self.file.seek(offset)
        return self.file.read(count)

    def stated(self, length: int, offset: int) -> StatedBytes:
        """Return ``length`` bytes stated at ``offset``, and how many of them the file holds."""
        return StatedBytes(length, max(0, min(length, self.size - offset)))


def stated_bytes(path: str | bytes, container: str) -> StatedBytes | None:
    """Return the length of a file's samples by its header.

    Args:
        path: of the file.
        container: as libsndfile calls it, such as ``WAV``.

    Returns:
        None where the header states nothing, the container is not one of these, or the file can't be read.
    """
    parser = _PARSERS.get(container)
    if parser is None:
        return None
    try:
        with open(path, "rb", buffering=0) as file:
            return parser(_File(file, os.fstat(file.fileno()).st_size, file.read(_HEADER_BYTES)))
    except (OSError, ValueError, OverflowError, struct.error):
        return None


def _chunks(file: _File, offset: int, layout: str, header: int = 0, align: int = 2) -> Iterator[tuple[bytes, int, int]]:
    """Yield name, offset and length of each chunk; ``header`` bytes of its head count as its length."""
    head = struct.calcsize(layout)
    for _ in range(_MAX_CHUNKS):
        if offset < 0 or offset + head > file.size:
            return
        name, length = struct.unpack(layout, file.bytes(offset, head))
        length -= header
        if length < 0:
            length = -1
        yield name, offset + head, length
        offset += head + max(0, length)
        # Some writers leave out the byte that makes the length of a chunk even.
        if align != 2 or length % 2 == 0 or file.bytes(offset, 4) != b"data":
            offset += -offset % align


def _wav(file: _File) -> StatedBytes | None:
    kind = file.bytes(0, 4)
    order = ">" if kind == b"RIFX" else "<"
    (riff,) = file.unpack(order + "I", 4)
    long_size = None
    for name, offset, length in _chunks(file, 12, order + "4sI"):
        if name == b"ds64":
            long_size = file.unpack("<Q", offset + 8)[0]
        if name == b"data":
            if length == 0xFFFFFFFF and long_size is not None:
                return file.stated(long_size, offset) if 0 < long_size < 1 << 62 else None
            true_length = unwrapped(riff, length, offset, file.size)
            if true_length > length:  # libsndfile reads no more than the wrapped size
                return StatedBytes(true_length, length)
            return file.stated(length, offset) if 0 < length < _UNKNOWN_FROM else None
    return None


def _w64(file: _File) -> StatedBytes | None:
    for name, offset, length in _chunks(file, 40, "<16sq", header=24, align=8):
        if name == _W64_DATA:
            return file.stated(length, offset) if 0 < length < 1 << 62 else None
    return None


def _iff(file: _File) -> StatedBytes | None:
    for name, offset, length in _chunks(file, 12, ">4sI"):
        head = {b"SSND": 8, b"BODY": 0}.get(name)
        if head is not None:
            return file.stated(length - head, offset + head) if head < length < _UNKNOWN_FROM else None
    return None


def _caf(file: _File) -> StatedBytes | None:
    for name, offset, length in _chunks(file, 8, ">4sq", align=1):
        if name == b"data":
            return file.stated(length - 4, offset + 4) if 4 < length < 1 << 62 else None
    return None


def _au(file: _File) -> StatedBytes | None:
    order = "<" if file.bytes(0, 4) == b"dns." else ">"
    offset, length = file.unpack(order + "2I", 4)
    return file.stated(length, offset) if 0 < length < _UNKNOWN_FROM else None


def _nist(file: _File) -> StatedBytes | None:
    header = file.bytes(0, _NIST_HEADER_BYTES)
    if (size := re.match(rb"NIST_1A\s+(\d{1,5})\s", header)) is None:
        return None
    fields = dict(re.findall(rb"^(\w+)\s+-(?:i|s\d+)\s+(\d{1,12})\s*$", header[: int(size[1])], re.MULTILINE))
    numbers = [fields.get(key) for key in (b"sample_count", b"channel_count", b"sample_n_bytes")]
    if None in numbers:
        return None
    frames, channels, width = (int(number) for number in numbers if number is not None)
    return file.stated(frames * channels * width, int(size[1])) if frames and channels and width else None


def _voc(file: _File) -> StatedBytes | None:
    (offset,) = file.unpack("<H", 20)
    stated = present = 0
    for _ in range(_MAX_CHUNKS):
        kind = file.bytes(offset, 1)
        if kind in (b"", b"\0") or offset + 4 > file.size:
            break
        length = int.from_bytes(file.bytes(offset + 1, 3), "little")
        head = {1: 2, 2: 0, 9: 12}.get(kind[0])
        if head is not None and length > head:
            block = file.stated(length - head, offset + 4 + head)
            stated, present = stated + block.stated, present + block.present
        offset += 4 + length
    return StatedBytes(stated, present) if stated else None


def _avr(file: _File) -> StatedBytes | None:
    stereo, bits = file.unpack(">hh", 12)
    (frames,) = file.unpack(">i", 26)
    return file.stated(frames * (2 if stereo else 1) * (bits // 8), 128) if frames > 0 and bits in (8, 16) else None


def _htk(file: _File) -> StatedBytes | None:
    frames, _, width = file.unpack(">iiH", 0)
    return file.stated(frames * width, 12) if frames > 0 and width else None


def _wve(file: _File) -> StatedBytes | None:
    (length,) = file.unpack(">I", 18)
    return file.stated(length, 32) if 0 < length < _UNKNOWN_FROM else None


def _mpc(file: _File) -> StatedBytes | None:
    stereo, _, _, frames = file.unpack("<BIII", 21)
    return file.stated(frames * 2 * (2 if stereo else 1), 42) if 0 < frames < _UNKNOWN_FROM else None


def fixed_header(path: str | bytes) -> tuple[int, bytes] | None:
    """Return an offset in a file and bytes to replace there, where libsndfile can't read the header as it is.

    It can't read sizes that a recorder left open (CAF, RF64, and 0 in WAV), the size of a cut CAF file, and the name of
    BW64, which is RF64.
    """
    try:
        with open(path, "rb", buffering=0) as raw:
            file = _File(raw, os.fstat(raw.fileno()).st_size, raw.read(_HEADER_BYTES))
            fix = _HEADER_FIXES.get(file.head[:4])
            return None if fix is None else fix(file)
    except (OSError, ValueError, OverflowError, struct.error):
        return None


def _fix_caf(file: _File) -> tuple[int, bytes] | None:
    for name, offset, length in _chunks(file, 8, ">4sq", align=1):
        if name == b"data" and not 0 <= length <= file.size - offset:
            return offset - 8, struct.pack(">q", file.size - offset)
    return None


def _fix_wav(file: _File) -> tuple[int, bytes] | None:
    for name, offset, length in _chunks(file, 12, "<4sI"):
        if name == b"data":
            return (offset - 4, b"\xff" * 4) if length == 0 and not _are_chunks(file, offset) else None
    return None


def _are_chunks(file: _File, offset: int) -> bool:
    """Whether chunks fill the file from an offset to its end."""
    for name, start, length in _chunks(file, offset, "<4sI"):
        if not name.isalnum():
            return False
        offset = start + length
    return file.size - 1 <= offset <= file.size


def _fix_rf64(file: _File) -> tuple[int, bytes] | None:
    size_offset = None
    for name, offset, length in _chunks(file, 12, "<4sI"):
        if name == b"ds64":
            size_offset = offset + 8
        if name == b"data" and size_offset is not None and length == 0xFFFFFFFF:
            (stated,) = file.unpack("<q", size_offset)
            return (size_offset, struct.pack("<q", file.size - offset)) if stated <= 0 else None
    return None


_HEADER_FIXES: dict[bytes, Callable[[_File], tuple[int, bytes] | None]] = {
    b"caff": _fix_caf,
    b"RIFF": _fix_wav,
    b"RF64": _fix_rf64,
    b"BW64": lambda _: (0, b"RF64"),
}

_PARSERS: dict[str, Callable[[_File], StatedBytes | None]] = {
    "WAV": _wav,
    "WAVEX": _wav,
    "RF64": _wav,
    "W64": _w64,
    "AIFF": _iff,
    "SVX": _iff,
    "CAF": _caf,
    "AU": _au,
    "NIST": _nist,
    "VOC": _voc,
    "AVR": _avr,
    "HTK": _htk,
    "WVE": _wve,
    "MPC2K": _mpc,
}
