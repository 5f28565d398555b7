"""Ends of streams of frames and pages: MPEG audio, FLAC and Ogg, which have no chunk that states their bytes.

Each function reads little (Ogg: the heads of the pages) and accepts any bytes: a malformed file is no error, but gives
None or no fault.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass

_MPEG_HEADER_BYTES = 1 << 16
"""Bytes after the ID3v2 tags in which the first MPEG frame must begin."""

_MAX_TAGS = 16

_MAX_JUNK = 1 << 24

_FLAC_TAIL = 1 << 16

_MAX_FLAC_TAIL = 1 << 21

_OGG_CHUNK = 1 << 16

_CUT_OFF = "the last page of its Ogg stream is missing"


@dataclass(frozen=True)
class MpegHeader:
    """The frame of an MPEG file that states its length (Xing, Info or VBRI).

    Attributes:
        frames_offset: byte of the file at which its 32-bit number of frames is.
        is_complete: whether no more frames follow the bytes that it states.
    """

    frames_offset: int
    is_complete: bool


def mpeg_header(path: str | bytes, begin: int = 0) -> MpegHeader | None:
    """Find the frame that states an MPEG file's length; None where there is none.

    Args:
        path: of the file.
        begin: byte of the file at which the search starts.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            start = _after_id3(file.fileno(), begin)
            head = _read(file.fileno(), start, _MPEG_HEADER_BYTES)
            offset = _first_frame(head)
            if offset is None or (fields := _length_fields(head, offset)) is None:
                return None
            field_offset, stated = fields
            end = start + offset + stated
            more = b"" if end + 4 >= size else _read(file.fileno(), _after_id3(file.fileno(), end), _MPEG_HEADER_BYTES)
            return MpegHeader(start + field_offset, is_complete=_first_frame(more) is None)
    except (OSError, ValueError, OverflowError):
        return None


def next_mpeg_frame(path: str | bytes, offset: int) -> int | None:
    """Find the next MPEG frame from a byte of a file on; None where there is none within 16 MiB.

    Raises:
        OSError: reading failed.
    """
    with open(path, "rb", buffering=0) as file:
        for start in range(offset, offset + _MAX_JUNK, _MPEG_HEADER_BYTES - 4096):
            data = _read(file.fileno(), start, _MPEG_HEADER_BYTES)
            if (frame := _first_frame(data)) is not None:
                return start + frame
            if len(data) < _MPEG_HEADER_BYTES:
                break
    return None


def _after_id3(descriptor: int, offset: int = 0) -> int:
    for _ in range(_MAX_TAGS):
        tag = _read(descriptor, offset, 10)
        if len(tag) < 10 or tag[:3] != b"ID3":
            break
        size = (tag[6] & 127) << 21 | (tag[7] & 127) << 14 | (tag[8] & 127) << 7 | tag[9] & 127
        offset += 10 + size + (10 if tag[5] & 16 else 0)
    return offset


def _first_frame(data: bytes) -> int | None:
    """Find the first of two like MPEG frames in a row, or a single one that ends with the data or just before."""
    offset = -1
    while (offset := data.find(b"\xff", offset + 1)) >= 0:
        length = _mpeg_frame_bytes(data[offset : offset + 4])
        if length is None:
            continue
        following = data[offset + length : offset + length + 4]
        alike = len(following) == 4 and not (
            (data[offset + 1] ^ following[1]) & 0xFE or (data[offset + 2] ^ following[2]) & 12
        )
        if (alike and _mpeg_frame_bytes(following) is not None) or len(data) - 4 < offset + length <= len(data):
            return offset
    return None


_KBITS = {
    (3, 3): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (3, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (3, 1): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 3): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
"""Kilobits per second by MPEG version (3: 1; 2: 2 and 2.5) and layer (3: I, 2: II, 1: III)."""


def _mpeg_frame_bytes(head: bytes) -> int | None:
    """Return the length of the MPEG frame with this head of 4 bytes; None for other bytes."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    version, layer = head[1] >> 3 & 3, head[1] >> 1 & 3
    bitrate, rate = head[2] >> 4, head[2] >> 2 & 3
    if version == 1 or layer == 0 or bitrate in (0, 15) or rate == 3:
        return None
    hertz = (44_100, 48_000, 32_000)[rate] >> {3: 0, 2: 1, 0: 2}[version]
    kbits = _KBITS[min(version | 2, 3), 2 if version != 3 and layer == 1 else layer][bitrate]
    padding = head[2] >> 1 & 1
    if layer == 3:
        return (12_000 * kbits // hertz + padding) * 4
    return (72_000 if layer == 1 and version != 3 else 144_000) * kbits // hertz + padding


def _length_fields(head: bytes, offset: int) -> tuple[int, int] | None:
    """Return, of the frame at ``offset``, the offset of its number of frames, and the bytes of audio that it states."""
    mpeg1, mono = head[offset + 1] >> 3 & 3 == 3, head[offset + 3] >> 6 == 3
    xing = offset + 4 + ((17 if mono else 32) if mpeg1 else (9 if mono else 17))
    for start in (xing, xing + 2):
        if head[start : start + 4] in (b"Xing", b"Info"):
            flags = int.from_bytes(head[start + 4 : start + 8], "big")
            stated = int.from_bytes(head[start + 12 : start + 16], "big")
            return (start + 8, stated) if flags & 3 == 3 and stated else None
    if head[offset + 36 : offset + 40] == b"VBRI":
        stated = int.from_bytes(head[offset + 46 : offset + 50], "big")
        return (offset + 50, stated) if stated else None
    return None


@dataclass(frozen=True)
class FlacEnd:
    """The end of a FLAC file.

    Attributes:
        samples: samples in the file, by its last frame's head.
        unknown_total: offset in the file, and bytes to replace there, which make the stated total an unknown one.
    """

    samples: int
    unknown_total: tuple[int, bytes]


def flac_end(path: str | bytes) -> FlacEnd | None:
    """Find the end of a FLAC file; None if its last frame is not found."""
    try:
        with open(path, "rb", buffering=0) as file:
            descriptor = file.fileno()
            start = _after_id3(descriptor)
            info = _read(descriptor, start, 42)
            if len(info) < 42 or info[:4] != b"fLaC" or info[4] & 127 != 0:
                return None
            largest_frame = int.from_bytes(info[15:18], "big")
            size = os.fstat(descriptor).st_size
            count = min(max(2 * largest_frame, _FLAC_TAIL), _MAX_FLAC_TAIL, max(0, size - start - 42))
            tail = _read(descriptor, size - count, count)
    except (OSError, ValueError, OverflowError):
        return None
    offset = len(tail)
    while (offset := tail.rfind(b"\xff", 0, offset)) >= 0:
        if (end := _flac_frame_end(tail[offset : offset + 16].ljust(16, b"\0"), info)) is not None:
            return FlacEnd(end, (start + 21, bytes([info[21] & 0xF0, 0, 0, 0, 0])))
    return None


def _flac_frame_end(head: bytes, info: bytes) -> int | None:
    """Return the sample after the FLAC frame with this head; None for other bytes than a frame of ``info``'s stream."""
    if head[1] & 0xFE != 0xF8 or head[3] & 1:
        return None
    number, used = _coded_number(head[4:11])
    if number is None:
        return None
    least, most = struct.unpack_from(">HH", info, 8)
    code, offset = head[2] >> 4, 4 + used
    if code in (6, 7):
        block = int.from_bytes(head[offset : offset + code - 5], "big") + 1
        offset += code - 5
    else:
        block = 192 if code == 1 else 576 << (code - 2) if 2 <= code <= 5 else 256 << (code - 8) if code >= 8 else 0
    offset += {12: 1, 13: 2, 14: 2}.get(head[2] & 15, 0)
    if not 0 < block <= most or offset >= len(head) or _crc8(head[:offset]) != head[offset]:
        return None
    return (number if head[1] & 1 else number * (most if least == most else block)) + block


def _coded_number(data: bytes) -> tuple[int | None, int]:
    """Decode a number coded as UTF-8 codes characters; return it (None: invalid) and its bytes, up to 7."""
    first = data[0]
    if first < 0x80:
        return first, 1
    length = 8 - (first ^ 0xFF).bit_length()
    if not 2 <= length <= 7:
        return None, 1
    number = first & (0x7F >> length)
    for byte in data[1:length]:
        if byte & 0xC0 != 0x80:
            return None, 1
        number = number << 6 | byte & 0x3F
    return number, length


def _crc8(data: bytes) -> int:
    crc = 0
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc << 1 ^ 7 if crc & 128 else crc << 1) & 255
    return crc


@dataclass(frozen=True)
class OggLink:
    """One logical stream of an Ogg file, a link of its chain.

    Attributes:
        next_link: byte at which the next stream of the chain begins.
        fault: what is wrong with its pages.
    """

    next_link: int | None
    fault: str | None


def ogg_link(path: str | bytes, begin: int) -> OggLink:
    """Walk the pages of the Ogg stream that begins at byte ``begin``.

    Raises:
        OSError: reading failed.
    """
    with open(path, "rb", buffering=0) as file:
        pages = _Pages(file.fileno(), begin)
        serial, ended, fault, number = None, False, None, -1
        for flags, page_serial, page_number, codec in pages:
            if flags & 2 and (ended or number > 0):
                return OggLink(pages.offset, fault or (None if ended else _CUT_OFF))
            if serial is None and flags & 2 and codec:
                serial = page_serial
            if page_serial != serial:
                continue
            if number >= 0 and page_number != number + 1 & 0xFFFFFFFF and not ended:
                fault = "pages are missing in the middle of its Ogg stream"
            number = page_number
            ended = ended or bool(flags & 4)
        return OggLink(None, fault or (_CUT_OFF if serial is not None and not ended else None))


class _Pages:
    """Iterator over the whole pages of an Ogg file: flags, serial number, page number, whether an audio codec begins.

    ``offset`` is the byte at which the last page begins.
    """

    def __init__(self, descriptor: int, begin: int) -> None:
        self._descriptor = descriptor
        self._size = os.fstat(descriptor).st_size
        self._chunk, self._chunk_offset = b"", begin
        self.offset = self._next = begin

    def __iter__(self) -> _Pages:
        return self

    def __next__(self) -> tuple[int, int, int, bool]:
        while True:
            head = self._bytes(self._next, 300)
            if len(head) < 27:
                raise StopIteration
            if head[:4] != b"OggS":
                skipped = head.find(b"OggS", 1)
                self._next += skipped if skipped > 0 else max(1, len(head) - 3)
                continue
            segments = head[26]
            length = 27 + segments + sum(head[27 : 27 + segments])
            if self._next + length > self._size:
                raise StopIteration
            self.offset, self._next = self._next, self._next + length
            serial, number = struct.unpack_from("<II", head, 14)
            body = head[27 + segments : 35 + segments]
            return head[5], serial, number, body[:7] == b"\x01vorbis" or body in (b"OpusHead", b"Speex   ")

    def _bytes(self, offset: int, count: int) -> bytes:
        inside = offset - self._chunk_offset
        if not 0 <= inside <= len(self._chunk) - count:
            self._chunk, self._chunk_offset, inside = _read(self._descriptor, offset, _OGG_CHUNK), offset, 0
        return self._chunk[inside : inside + count]


def _read(descriptor: int, offset: int, count: int) -> bytes:
    """Read up to ``count`` bytes from an offset."""
    if count <= 0 or offset < 0:
        return b""
    os.lseek(descriptor, offset, os.SEEK_SET)
    return os.read(descriptor, count)
