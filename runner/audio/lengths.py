"""Container lengths: bytes of samples that a file's header states, beside those that the file holds.

libsndfile mends a header that states more than the file holds, and says nothing.  Each container has one small function
here that finds its header's statement; sizes that stand for "not known yet" (0, and those near 2**31 and 2**32 that
recorders write into streams) state nothing.  PAF, PVF and IRCAM headers hold no length.  Reads are bounded, whatever a
header says.
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

_HEAD = 4096

_MOST_CHUNKS = 4096

_NIST_HEADER = 1 << 16

_UNKNOWN_FROM = 0x7FFFF000

_W64_DATA = b"data\xf3\xac\xd3\x11\x8c\xd1\x00\xc0\x4f\x8e\xdb\x8a"


class StatedBytes(NamedTuple):
    """Bytes of samples: how many the header ``states``, and how many of them are ``present``."""

    states: int
    present: int


@dataclass(frozen=True)
class _File:
    """An open file, its size in bytes and its first few of them."""

    file: io.FileIO
    size: int
    head: bytes

    def unpack(self, layout: str, place: int) -> tuple[int, ...]:
        """Numbers at a place; ``struct.error`` where the file ends before."""
        return struct.unpack(layout, self.bytes(place, struct.calcsize(layout)))

    def bytes(self, place: int, count: int) -> bytes:
        if place + count <= len(self.head):
            return self.head[place : place + count]
        self.file.seek(place)
        return self.file.read(count)

    def stated(self, length: int, place: int) -> StatedBytes:
        """``length`` bytes are said to lie at ``place``."""
        return StatedBytes(length, max(0, min(length, self.size - place)))


def stated_bytes(path: str | bytes, container: str) -> StatedBytes | None:
    """What a file's header states of its samples.

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
            return parser(_File(file, os.fstat(file.fileno()).st_size, file.read(_HEAD)))
    except (OSError, ValueError, OverflowError, struct.error):
        return None


def _chunks(file: _File, place: int, layout: str, header: int = 0, align: int = 2) -> Iterator[tuple[bytes, int, int]]:
    """Name, place and length of each chunk; ``header`` bytes of a chunk's head are counted in its length."""
    head = struct.calcsize(layout)
    for _ in range(_MOST_CHUNKS):
        if place < 0 or place + head > file.size:
            return
        name, length = struct.unpack(layout, file.bytes(place, head))
        length -= header
        if length < 0:
            length = -1
        yield name, place + head, length
        place += head + max(0, length)
        # Some writers leave out the byte that makes the length of a chunk even.
        if align != 2 or length % 2 == 0 or file.bytes(place, 4) != b"data":
            place += -place % align


def _wav(file: _File) -> StatedBytes | None:
    kind = file.bytes(0, 4)
    order = ">" if kind == b"RIFX" else "<"
    (riff,) = file.unpack(order + "I", 4)
    long_size = None
    for name, place, length in _chunks(file, 12, order + "4sI"):
        if name == b"ds64":
            long_size = file.unpack("<Q", place + 8)[0]
        if name == b"data":
            if length == 0xFFFFFFFF and long_size is not None:
                return file.stated(long_size, place) if 0 < long_size < 1 << 62 else None
            true_length = unwrapped(riff, length, place, file.size)
            if true_length > length:  # libsndfile reads what the wrapped size says
                return StatedBytes(true_length, length)
            return file.stated(length, place) if 0 < length < _UNKNOWN_FROM else None
    return None


def _w64(file: _File) -> StatedBytes | None:
    for name, place, length in _chunks(file, 40, "<16sq", header=24, align=8):
        if name == _W64_DATA:
            return file.stated(length, place) if 0 < length < 1 << 62 else None
    return None


def _iff(file: _File) -> StatedBytes | None:
    for name, place, length in _chunks(file, 12, ">4sI"):
        head = {b"SSND": 8, b"BODY": 0}.get(name)
        if head is not None:
            return file.stated(length - head, place + head) if head < length < _UNKNOWN_FROM else None
    return None


def _caf(file: _File) -> StatedBytes | None:
    for name, place, length in _chunks(file, 8, ">4sq", align=1):
        if name == b"data":
            return file.stated(length - 4, place + 4) if 4 < length < 1 << 62 else None
    return None


def _au(file: _File) -> StatedBytes | None:
    order = "<" if file.bytes(0, 4) == b"dns." else ">"
    place, length = file.unpack(order + "2I", 4)
    return file.stated(length, place) if 0 < length < _UNKNOWN_FROM else None


def _nist(file: _File) -> StatedBytes | None:
    header = file.bytes(0, _NIST_HEADER)
    if (size := re.match(rb"NIST_1A\s+(\d{1,5})\s", header)) is None:
        return None
    fields = dict(re.findall(rb"^(\w+)\s+-(?:i|s\d+)\s+(\d{1,12})\s*$", header[: int(size[1])], re.MULTILINE))
    numbers = [fields.get(key) for key in (b"sample_count", b"channel_count", b"sample_n_bytes")]
    if None in numbers:
        return None
    frames, channels, width = (int(number) for number in numbers if number is not None)
    return file.stated(frames * channels * width, int(size[1])) if frames and channels and width else None


def _voc(file: _File) -> StatedBytes | None:
    (place,) = file.unpack("<H", 20)
    stated = present = 0
    for _ in range(_MOST_CHUNKS):
        kind = file.bytes(place, 1)
        if kind in (b"", b"\0") or place + 4 > file.size:
            break
        length = int.from_bytes(file.bytes(place + 1, 3), "little")
        head = {1: 2, 2: 0, 9: 12}.get(kind[0])
        if head is not None and length > head:
            block = file.stated(length - head, place + 4 + head)
            stated, present = stated + block.states, present + block.present
        place += 4 + length
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


def mended_header(path: str | bytes) -> tuple[int, bytes] | None:
    """A place in a file and the bytes without which libsndfile refuses its header, or finds no samples behind it.

    Those are sizes that a recorder left open (CAF, RF64, and 0 in WAV), that of a CAF file which was cut, and the name
    of BW64, which is RF64.
    """
    try:
        with open(path, "rb", buffering=0) as raw:
            file = _File(raw, os.fstat(raw.fileno()).st_size, raw.read(_HEAD))
            mend = _MENDERS.get(file.head[:4])
            return None if mend is None else mend(file)
    except (OSError, ValueError, OverflowError, struct.error):
        return None


def _mended_caf(file: _File) -> tuple[int, bytes] | None:
    for name, place, length in _chunks(file, 8, ">4sq", align=1):
        if name == b"data" and not 0 <= length <= file.size - place:
            return place - 8, struct.pack(">q", file.size - place)
    return None


def _mended_wav(file: _File) -> tuple[int, bytes] | None:
    for name, place, length in _chunks(file, 12, "<4sI"):
        if name == b"data":
            return (place - 4, b"\xff" * 4) if length == 0 and not _are_chunks(file, place) else None
    return None


def _are_chunks(file: _File, place: int) -> bool:
    """Whether nothing but chunks lies behind a place."""
    for name, start, length in _chunks(file, place, "<4sI"):
        if not name.isalnum():
            return False
        place = start + length
    return file.size - 1 <= place <= file.size


def _mended_rf64(file: _File) -> tuple[int, bytes] | None:
    size_place = None
    for name, place, length in _chunks(file, 12, "<4sI"):
        if name == b"ds64":
            size_place = place + 8
        if name == b"data" and size_place is not None and length == 0xFFFFFFFF:
            (stated,) = file.unpack("<q", size_place)
            return (size_place, struct.pack("<q", file.size - place)) if stated <= 0 else None
    return None


_MENDERS: dict[bytes, Callable[[_File], tuple[int, bytes] | None]] = {
    b"caff": _mended_caf,
    b"RIFF": _mended_wav,
    b"RF64": _mended_rf64,
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
