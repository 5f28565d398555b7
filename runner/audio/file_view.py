"""A file as its decoder is to see it: from an offset on, with a few bytes replaced, or endless.

libsndfile reads no further than the number of frames that a header states or that it estimates from the file's size,
and only the first stream of a chain.  A view changes what it sees.
"""

from __future__ import annotations

import os

_CHUNK = 1 << 16

_ENDLESS = 1 << 40
"""Size of an endless view: an estimate from it is never too small."""

_TAIL = 1024
"""Last bytes of the file that an endless view has at its end as well."""


class FileView:
    """A file-like object for ``soundfile.SoundFile`` and ``av.open``.

    Args:
        path: of the file.
        begin: byte at which the view begins.
        replaced: an offset in the file and the bytes to be seen there.
        endless: whether the view pretends to be endless.

    Attributes:
        name: of the file, where a decoder needs its extension.
        fault: error of a failed read, which a decoder takes for the file's end.

    Raises:
        OSError: the file can't be opened.
    """

    def __init__(
        self, path: str | bytes, begin: int = 0, replaced: tuple[int, bytes] | None = None, *, endless: bool = False
    ) -> None:
        self._descriptor = -1
        self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0))
        self._path, self._begin, self._replaced, self._is_endless = path, begin, replaced, endless
        self._size = os.fstat(self._descriptor).st_size - begin
        self._end = _ENDLESS if endless else self._size
        self._position = 0
        self._chunk, self._chunk_offset = b"", 0
        self.name = ""
        self.fault: OSError | None = None

    def reopen(self) -> FileView:
        """Open the same view again."""
        return FileView(self._path, self._begin, self._replaced, endless=self._is_endless)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a position and return it."""
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._end}[whence]
        return self._position

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def read(self, count: int) -> bytes:
        """Read up to ``count`` bytes."""
        buffer = bytearray(count)
        return bytes(buffer[: self.readinto(memoryview(buffer))])

    def readinto(self, buffer: memoryview) -> int:
        """Fill a buffer as far as the file goes; return the number of bytes."""
        count, inside = len(buffer), self._position - self._chunk_offset
        if 0 <= inside <= len(self._chunk) - count:
            buffer[:] = self._chunk[inside : inside + count]
            self._position += count
            return count
        return self._read_across(buffer)

    def _read_across(self, buffer: memoryview) -> int:
        done = 0
        while done < len(buffer):
            offset = self._position
            if offset > self._size >= 0 and offset >= self._end - _TAIL:
                offset += self._size - self._end  # the file's last bytes, such as ID3v1 tags
            inside = offset - self._chunk_offset
            if not 0 <= inside < len(self._chunk):
                if not self._load(offset):
                    break
                inside = 0
            data = self._chunk[inside : inside + len(buffer) - done]
            buffer[done : done + len(data)] = data
            done += len(data)
            self._position += len(data)
        return done

    def _load(self, offset: int) -> bool:
        """Read the chunk at an offset; return whether there is any."""
        count = min(_CHUNK, self._size - offset)
        if count <= 0 or offset < 0:
            return False
        try:
            os.lseek(self._descriptor, self._begin + offset, os.SEEK_SET)
            chunk = os.read(self._descriptor, count)
        except OSError as error:
            self.fault = error
            return False
        if self._replaced is not None:
            chunk = _overwritten(chunk, self._replaced[0] - self._begin - offset, self._replaced[1])
        self._chunk, self._chunk_offset = chunk, offset
        return bool(chunk)

    def close(self) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    __del__ = close


def _overwritten(chunk: bytes, at: int, new: bytes) -> bytes:
    """Return a chunk with the part of the new bytes that falls into it."""
    first, last = max(0, at), min(len(chunk), at + len(new))
    return chunk if first >= last else chunk[:first] + new[first - at : last - at] + chunk[last:]
