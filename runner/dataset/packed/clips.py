"""Reads clips out of containers, for a decode process: each as a file of its own that decoders open.

A tar in an object store is read in runs of members, one request for all of a process's clips that follow one another.
"""

from __future__ import annotations

import os
import sys
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from runner.core.errors import ClipError
from runner.dataset.packed.address import ParquetRow, TarMember, open_container, place_of_clip
from runner.storage.prefetch import Fetched, is_remote, waited_for
from runner.storage.ranges import PIECE, fetch_range
from runner.storage.retry import is_disk_full

if TYPE_CHECKING:
    from runner.dataset.packed.rows import RowReader

_HEADER = 512

_IN_MEMORY = 16 << 20
"""Bytes of a clip that is handed to its decoder in memory; a larger one goes through a temporary file."""

_COPIED_AT_ONCE = 1 << 20

_GAP = 1 << 18
"""Bytes between two members that are read along, rather than asked for the second by itself."""

_RUNS = 2


@dataclass
class _Run:
    """Members of a tar in an object store that are read at once: bytes ``first`` up to ``end``."""

    container: bytes
    first: int
    end: int
    future: Future[Fetched] | None = None

    def covers(self, place: TarMember) -> bool:
        same = place.container == self.container and self.first <= place.offset - _HEADER
        return same and place.offset + place.size <= self.end

    def extend(self, place: TarMember) -> bool:
        """Whether a member is taken into it."""
        begin, end = place.offset - _HEADER, place.offset + place.size
        if place.container != self.container or not 0 <= begin - self.end <= _GAP or end - self.first > PIECE:
            return False
        self.end = end
        return True


class _MemoryFile(Fetched):
    """A file in memory for one clip after another: new pages for each would take longer than to copy it."""

    def __init__(self) -> None:
        super().__init__("", in_memory=True)

    def close(self) -> None:
        """Keep it."""

    def end(self) -> None:
        """Let go of it."""
        super().close()


class PackedClips:
    """The packed clips of a decode process; used by one thread.

    Args:
        ahead: runs of members, or pieces of a Parquet file, that are fetched at a time; two are enough.
        timeout_s: as in ``runner.storage.prefetch.fetch``.
    """

    def __init__(self, ahead: int, timeout_s: float) -> None:
        self._ahead = min(ahead, _RUNS)
        self._timeout_s = timeout_s
        self._runs: list[_Run] = []
        self._begun = -1
        """The last job whose clip was taken into a run."""
        self._local: tuple[bytes, int] | None = None
        self._rows: RowReader | None = None
        self._threads: ThreadPoolExecutor | None = None
        self._memory: _MemoryFile | None = None

    def take(
        self, job: int, path: bytes, following: Iterable[tuple[int, bytes]], waiting: Callable[[], Any]
    ) -> Fetched:
        """A clip's bytes in a file, which is to be closed before the next is taken.

        Args:
            job: its number, greater than those before it.
            path: its address.
            following: jobs and addresses of the clips to come.
            waiting: called every now and then meanwhile.

        Raises:
            ClipError: it can't be had.
        """
        place = place_of_clip(path)
        try:
            if isinstance(place, ParquetRow):
                return self._row(place, waiting)
            if not isinstance(place, TarMember):
                raise ClipError(place.reason, place.detail)
            if is_remote(path):
                return self._of_run(job, place, following, waiting)
            return self._member(place, self._opened(place.container), 0)
        except OSError as error:  # of the system, which would not read, or has no room for a copy
            raise ClipError("disk_full" if is_disk_full(error) else "unreadable", str(error)) from error

    def close(self) -> None:
        """Let go of what is open."""
        for run in self._runs:
            _let_go(run)
        self._runs.clear()
        if self._local is not None:
            os.close(self._local[1])
            self._local = None
        if self._rows is not None:
            self._rows.close()
        if self._memory is not None:
            self._memory.end()
            self._memory = None
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)

    def _opened(self, container: bytes) -> int:
        """A tar on a file system, which stays open for its next members."""
        if self._local is None or self._local[0] != container:
            descriptor = open_container(container)
            if self._local is not None:
                os.close(self._local[1])
            self._local = container, descriptor
        return self._local[1]

    def _row(self, place: ParquetRow, waiting: Callable[[], Any]) -> Fetched:
        if self._rows is None:
            from runner.dataset.packed.rows import (
                RowReader,  # pyarrow takes time and memory, which other data sets don't need
            )

            executor = self._executor() if is_remote(place.container) else None
            self._rows = RowReader(self._timeout_s, executor if self._ahead > 1 else None)
        reader = self._rows
        if is_remote(place.container):
            data = waited_for(self._executor().submit(reader.take, place), waiting)
        else:
            data = reader.take(place)
        file = self._file_for(place.suffix, len(data))
        file.write(data)
        return file

    def _member(self, place: TarMember, descriptor: int, begin: int) -> Fetched:
        """A member of a tar, of which an open file has the bytes from ``begin`` on."""
        _check_header(place, os.pread(descriptor, _HEADER, place.offset - _HEADER - begin))
        file = self._file_for(place.suffix, place.size)
        try:
            _copy(descriptor, place.offset - begin, place.size, file.fileno())
        except BaseException:
            file.close()
            raise
        return file

    def _file_for(self, suffix: str, size: int) -> Fetched:
        """An empty file for a clip's bytes."""
        if size > _IN_MEMORY:
            return Fetched(suffix)
        if self._memory is None:
            self._memory = _MemoryFile()
        self._memory.suffix = suffix
        return self._memory

    def _of_run(
        self, job: int, place: TarMember, following: Iterable[tuple[int, bytes]], waiting: Callable[[], Any]
    ) -> Fetched:
        while self._runs and not self._runs[0].covers(place):
            _let_go(self._runs.pop(0))
        if not self._runs:
            self._begun = job - 1
        if len(self._runs) < self._ahead:
            self._begin([(job, place), *_members(following, max(job, self._begun))])
        run = self._runs[0]
        assert run.future is not None
        fetched = waited_for(run.future, waiting)
        descriptor = os.open(fetched.path, os.O_RDONLY)
        try:
            return self._member(place, descriptor, run.first)
        finally:
            os.close(descriptor)

    def _begin(self, places: Iterable[tuple[int, TarMember]]) -> None:
        """Have runs fetched that hold these members, as many as may be under way."""
        new: list[_Run] = []
        for job, place in places:
            if job <= self._begun:
                continue
            if not (new and new[-1].extend(place)):
                if len(self._runs) + len(new) == self._ahead:
                    break
                new.append(_Run(place.container, place.offset - _HEADER, place.offset + place.size))
            self._begun = job
        for run in new:
            url = os.fsdecode(run.container)
            run.future = self._executor().submit(fetch_range, url, run.first, run.end, self._timeout_s)
        self._runs += new

    def _executor(self) -> ThreadPoolExecutor:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(_RUNS, "fetch")
        return self._threads


def _members(following: Iterable[tuple[int, bytes]], after: int) -> Iterable[tuple[int, TarMember]]:
    """The clips behind a job that are members of tars in object stores, up to the first that is none."""
    for job, path in following:
        if job > after:
            place = place_of_clip(path) if is_remote(path) else None
            if not isinstance(place, TarMember):
                return
            yield job, place


def _check_header(place: TarMember, header: bytes) -> None:
    """Whether a member is the one that was listed."""
    if zlib.crc32(header) != place.check:
        raise ClipError(
            "unreadable",
            f"{os.fsdecode(place.container)} has another member at byte {place.offset:,} than when it was listed: "
            "rerun the same command",
        )


def _copy(descriptor: int, first: int, count: int, target: int) -> None:
    """Copy bytes of a file, from ``first`` on, to the beginning of another one, which has no more then."""
    done = 0
    os.lseek(target, 0, os.SEEK_SET)
    while done < count:
        if sys.platform.startswith("linux"):
            got = os.sendfile(target, descriptor, first + done, count - done)
        else:
            got = os.write(target, os.pread(descriptor, min(count - done, _COPIED_AT_ONCE), first + done))
        if got == 0:
            break
        done += got
    os.ftruncate(target, done)


def _let_go(run: _Run) -> None:
    def close(future: Future[Fetched]) -> None:
        if not future.cancelled() and future.exception() is None:
            future.result().close()

    if run.future is not None and not run.future.cancel():
        run.future.add_done_callback(close)
