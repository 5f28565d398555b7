"""Reads clips from containers, for a decode process: each as a file of its own that decoders open.

A tar in an object store is read in runs of consecutive members, one request each.
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
from runner.dataset.packed.address import ParquetRow, TarMember, open_container, parse_address
from runner.storage.prefetch import FetchedFile, close_fetched, is_remote, wait_for
from runner.storage.ranges import MAX_REQUEST_BYTES, fetch_range
from runner.storage.retry import is_local_disk_full

if TYPE_CHECKING:
    from runner.dataset.packed.rows import RowReader

_HEADER_BYTES = 512

_MAX_IN_MEMORY = 16 << 20
"""Bytes of a clip that its decoder reads from memory; a larger one goes through a temporary file."""

_COPY_BYTES = 1 << 20

_MAX_GAP = 1 << 18
"""Bytes between two members that are read with them, rather than requesting the second on its own."""

_MAX_RUNS = 2

NextClips = Iterable[tuple[int, bytes]]
"""Jobs and addresses of the clips to come."""


@dataclass
class _Run:
    """Consecutive members of a tar in an object store that are downloaded at once: bytes ``first`` up to ``end``."""

    container: bytes
    first: int
    end: int
    future: Future[FetchedFile] | None = None

    def covers(self, member: TarMember) -> bool:
        is_started = member.container == self.container and self.first <= member.offset - _HEADER_BYTES
        return is_started and member.offset + member.size <= self.end

    def extend(self, member: TarMember) -> bool:
        """Add a member if it follows closely enough; return whether it was added."""
        start, end = member.offset - _HEADER_BYTES, member.offset + member.size
        if member.container != self.container or not 0 <= start - self.end <= _MAX_GAP:
            return False
        if end - self.first > MAX_REQUEST_BYTES:
            return False
        self.end = end
        return True

    def cancel(self) -> None:
        """Cancel the download, or close its file once it is complete."""
        if self.future is not None and not self.future.cancel():
            self.future.add_done_callback(close_fetched)


class _MemoryFile(FetchedFile):
    """A file in memory that is reused from clip to clip: allocating new pages takes longer than copying."""

    def __init__(self) -> None:
        super().__init__("", in_memory=True)

    def close(self) -> None:
        """Keep the file for the next clip."""

    def destroy(self) -> None:
        """Close the file."""
        super().close()


class PackedClips:
    """Opens the packed clips of a decode process; used by one thread.

    Args:
        ahead: runs of members, or blocks of a Parquet file, that are downloaded at a time, at most two.
        timeout_s: as in ``runner.storage.prefetch.fetch``.
    """

    def __init__(self, ahead: int, timeout_s: float) -> None:
        self._ahead = min(ahead, _MAX_RUNS)
        self._timeout_s = timeout_s
        self._runs: list[_Run] = []
        self._last_job = -1  # the last one whose clip is in a run
        self._open_tar: tuple[bytes, int] | None = None
        self._row_reader: RowReader | None = None
        self._threads: ThreadPoolExecutor | None = None
        self._memory: _MemoryFile | None = None

    def open_clip(self, job: int, path: bytes, following: NextClips, while_waiting: Callable[[], Any]) -> FetchedFile:
        """Return a clip's bytes in a file, which must be closed before the next clip is opened.

        Args:
            job: its number, greater than those before it.
            path: its address.
            following: the clips to come.
            while_waiting: called a few times a second during a download.

        Raises:
            ClipError: it can't be read.
        """
        location = parse_address(path)
        try:
            if isinstance(location, ParquetRow):
                return self._open_row(location, while_waiting)
            if not isinstance(location, TarMember):
                raise ClipError(location.reason, location.detail)
            if is_remote(path):
                return self._open_remote_member(job, location, following, while_waiting)
            return self._copy_member(location, self._local_tar(location.container), 0)
        except OSError as error:  # the file can't be read, or there is no room for a copy
            raise ClipError("disk_full" if is_local_disk_full(error) else "unreadable", str(error)) from error

    def close(self) -> None:
        """Close all files and end all downloads."""
        for run in self._runs:
            run.cancel()
        self._runs.clear()
        if self._open_tar is not None:
            os.close(self._open_tar[1])
            self._open_tar = None
        if self._row_reader is not None:
            self._row_reader.close()
        if self._memory is not None:
            self._memory.destroy()
            self._memory = None
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)

    def _local_tar(self, container: bytes) -> int:
        """Return the descriptor of a tar on a file system, which stays open for its next members."""
        if self._open_tar is None or self._open_tar[0] != container:
            descriptor = open_container(container)
            if self._open_tar is not None:
                os.close(self._open_tar[1])
            self._open_tar = container, descriptor
        return self._open_tar[1]

    def _open_row(self, location: ParquetRow, while_waiting: Callable[[], Any]) -> FetchedFile:
        if self._row_reader is None:
            from runner.dataset.packed.rows import RowReader  # pyarrow takes time and memory that others don't need

            executor = self._executor() if is_remote(location.container) else None
            self._row_reader = RowReader(self._timeout_s, executor if self._ahead > 1 else None)
        reader = self._row_reader
        if is_remote(location.container):
            data = wait_for(self._executor().submit(reader.read, location), while_waiting)
        else:
            data = reader.read(location)
        file = self._empty_file(location.suffix, len(data))
        file.write(data)
        return file

    def _copy_member(self, member: TarMember, descriptor: int, start: int) -> FetchedFile:
        """Copy a member from an open file that has the tar's bytes from ``start`` on."""
        _check_header(member, os.pread(descriptor, _HEADER_BYTES, member.offset - _HEADER_BYTES - start))
        file = self._empty_file(member.suffix, member.size)
        try:
            _copy(descriptor, member.offset - start, member.size, file.fileno())
        except BaseException:
            file.close()
            raise
        return file

    def _empty_file(self, suffix: str, size: int) -> FetchedFile:
        """Return a file for a clip of this size."""
        if size > _MAX_IN_MEMORY:
            return FetchedFile(suffix)
        if self._memory is None:
            self._memory = _MemoryFile()
        self._memory.suffix = suffix
        return self._memory

    def _open_remote_member(
        self, job: int, member: TarMember, following: NextClips, while_waiting: Callable[[], Any]
    ) -> FetchedFile:
        while self._runs and not self._runs[0].covers(member):
            self._runs.pop(0).cancel()
        if not self._runs:
            self._last_job = job - 1
        if len(self._runs) < self._ahead:
            self._start_runs([(job, member), *_next_members(following, max(job, self._last_job))])
        run = self._runs[0]
        assert run.future is not None
        fetched = wait_for(run.future, while_waiting)
        descriptor = os.open(fetched.path, os.O_RDONLY)
        try:
            return self._copy_member(member, descriptor, run.first)
        finally:
            os.close(descriptor)

    def _start_runs(self, members: Iterable[tuple[int, TarMember]]) -> None:
        """Start the downloads of runs with these members, as many as may be in progress."""
        new: list[_Run] = []
        for job, member in members:
            if job <= self._last_job:
                continue
            if not (new and new[-1].extend(member)):
                if len(self._runs) + len(new) == self._ahead:
                    break
                new.append(_Run(member.container, member.offset - _HEADER_BYTES, member.offset + member.size))
            self._last_job = job
        for run in new:
            url = os.fsdecode(run.container)
            run.future = self._executor().submit(fetch_range, url, run.first, run.end, self._timeout_s)
        self._runs += new

    def _executor(self) -> ThreadPoolExecutor:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(_MAX_RUNS, "fetch")
        return self._threads


def _next_members(following: NextClips, after: int) -> Iterable[tuple[int, TarMember]]:
    """Yield the clips after a job that are members of tars in object stores, up to the first other clip."""
    for job, path in following:
        if job > after:
            location = parse_address(path) if is_remote(path) else None
            if not isinstance(location, TarMember):
                return
            yield job, location


def _check_header(member: TarMember, header: bytes) -> None:
    """Check that the tar still has the listed member there."""
    if zlib.crc32(header) != member.crc32:
        raise ClipError(
            "unreadable",
            f"{os.fsdecode(member.container)} has another member at byte {member.offset:,} than when it was listed: "
            "rerun the same command",
        )


def _copy(descriptor: int, first: int, count: int, target: int) -> None:
    """Copy ``count`` bytes of a file, from ``first`` on, to another file, in place of its content."""
    done = 0
    os.lseek(target, 0, os.SEEK_SET)
    while done < count:
        if sys.platform.startswith("linux"):
            copied = os.sendfile(target, descriptor, first + done, count - done)
        else:
            copied = os.write(target, os.pread(descriptor, min(count - done, _COPY_BYTES), first + done))
        if copied == 0:
            break
        done += copied
    os.ftruncate(target, done)
