"""A file as its decoder is to see it: from a place on, with a few bytes replaced, or of a size without end.

libsndfile reads no further than the number of frames that a header states or that it estimates from the file's size,
and only the first stream of a chain.  What it sees is therefore changed, not what it does.
"""

from __future__ import annotations

import os

_CHUNK = 1 << 16

_ENDLESS = 1 << 40
"""A size of which no estimate falls short of what a file holds."""

_TAIL = 1024
"""Bytes before that end which are the file's last."""


class FileView:
    """A file-like object for ``soundfile.SoundFile`` and ``av.open``.

    Args:
        path: of the file.
        begin: byte at which the view begins.
        replaced: a place in the file and the bytes to be seen there.
        endless: whether the view is to pretend to a size without end.

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
        self._place = 0
        self._chunk, self._chunk_at = b"", 0
        self.name = ""
        """Of the file, where its extension is to tell a decoder anything."""
        self.fault: OSError | None = None
        """Why a read failed; a decoder would take it for the file's end."""

    def again(self) -> FileView:
        """The same view, opened anew."""
        return FileView(self._path, self._begin, self._replaced, endless=self._is_endless)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place; returns it."""
        self._place = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._end}[whence]
        return self._place

    def tell(self) -> int:
        """The place that is read next."""
        return self._place

    def read(self, count: int) -> bytes:
        """Up to so many bytes."""
        buffer = bytearray(count)
        return bytes(buffer[: self.readinto(memoryview(buffer))])

    def readinto(self, buffer: memoryview) -> int:
        """Fill a buffer as far as the file goes; returns the bytes put into it."""
        count, inside = len(buffer), self._place - self._chunk_at
        if 0 <= inside <= len(self._chunk) - count:
            buffer[:] = self._chunk[inside : inside + count]
            self._place += count
            return count
        return self._read_across(buffer)

    def _read_across(self, buffer: memoryview) -> int:
        done = 0
        while done < len(buffer):
            place = self._place
            if place > self._size >= 0 and place >= self._end - _TAIL:
                place += self._size - self._end  # what lies at the end, such as ID3v1 tags
            inside = place - self._chunk_at
            if not 0 <= inside < len(self._chunk):
                if not self._load(place):
                    break
                inside = 0
            part = self._chunk[inside : inside + len(buffer) - done]
            buffer[done : done + len(part)] = part
            done += len(part)
            self._place += len(part)
        return done

    def _load(self, place: int) -> bool:
        """Read the chunk at a place; whether there is any."""
        count = min(_CHUNK, self._size - place)
        if count <= 0 or place < 0:
            return False
        try:
            os.lseek(self._descriptor, self._begin + place, os.SEEK_SET)
            chunk = os.read(self._descriptor, count)
        except OSError as error:
            self.fault = error
            return False
        if self._replaced is not None:
            chunk = _overwritten(chunk, self._replaced[0] - self._begin - place, self._replaced[1])
        self._chunk, self._chunk_at = chunk, place
        return bool(chunk)

    def close(self) -> None:
        """Let go of the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    __del__ = close


def _overwritten(chunk: bytes, at: int, new: bytes) -> bytes:
    """A chunk with those of the new bytes that fall into it."""
    first, last = max(0, at), min(len(chunk), at + len(new))
    return chunk if first >= last else chunk[:first] + new[first - at : last - at] + chunk[last:]
