"""Processes that write the files of shards, so that the worker's interpreter is left to the threads that feed a GPU.

A thread that writes needs the interpreter hundreds of times a shard, and waits for it each time.  Here it gathers the
shard's embeddings, sends them through a pipe, and waits for the entry.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import queue
import time
from collections.abc import Callable, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

import numpy as np

from runner.core.stop_signals import die_with, held_back, ignore
from runner.devices.host import peak_own_mib
from runner.output.rows import ClipRow
from runner.output.spill import BatchRows, chunks_of, concatenate
from runner.pipeline.decode_process import CONTEXT

if TYPE_CHECKING:
    from pathlib import Path

    from runner.output.state.journal import ShardEntry
    from runner.output.writer import ShardFiles

log = logging.getLogger(__name__)


class WriterProcess:
    """One process that writes shards, as the worker sees it; it starts when this is made.

    Args:
        make_files: makes the writer of a shard's files, in the process; pickled.

    Attributes:
        rss_peak_mib: largest resident set of the process.
        cpu_s: its processor time.
    """

    def __init__(self, make_files: Callable[[], ShardFiles]) -> None:
        self.rss_peak_mib = self.cpu_s = 0.0
        self._is_ready = False
        self._connection, child_connection = CONTEXT.Pipe()
        arguments = (child_connection, os.getpid(), make_files)
        self._process = CONTEXT.Process(target=write_main, args=arguments, name="writer", daemon=True)
        if os.name == "posix":
            resource_tracker.ensure_running()  # which lets signals in again
        with held_back():  # one that comes while the process is starting is ignored as well
            self._process.start()
        child_connection.close()

    @property
    def is_ready(self) -> bool:
        """Whether it has started, which takes a second.

        Raises:
            EOFError, OSError: it is dead.
        """
        if not self._is_ready and self._connection.poll():
            self._connection.recv_bytes()
            self._is_ready = True
        return self._is_ready

    def write(self, shard: int, rows: Sequence[ClipRow], row_digest: str) -> ShardEntry:
        """Write a shard's files; see ``ShardFiles.write``.

        Raises:
            EOFError, OSError: the process is dead, or (as it tells) the files can't be written.
        """
        chunks = [chunk for row in rows for chunk in chunks_of(row.embeddings)]
        embeddings = concatenate(chunks) if chunks else np.empty((0, 0), np.float32)
        plain = [row[:-1] for row in rows]  # pickled far faster than named ones
        self._connection.send_bytes(pickle.dumps((shard, row_digest, plain), pickle.HIGHEST_PROTOCOL))
        self._connection.send_bytes(np.ascontiguousarray(embeddings).reshape(-1).view(np.uint8).data)
        entry, error, self.rss_peak_mib, self.cpu_s = pickle.loads(self._connection.recv_bytes())
        if error is not None:
            raise error
        written: ShardEntry = entry
        return written

    def close(self) -> None:
        """End the process, killing it if it does not end in a second."""
        with contextlib.suppress(OSError):
            self._connection.send_bytes(b"")
        self._process.join(timeout=1.0)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._connection.close()


class WriterProcesses:
    """Writes the files of shards in processes, as many at a time; in place of ``ShardFiles``, from as many threads.

    The calling thread writes a shard too large for memory, shards that come while the processes start, and all once one
    has died.

    Args:
        make_files: makes the writer of a shard's files; pickled.
        count: processes.

    Attributes:
        parallel: shards to write at a time.
    """

    def __init__(self, make_files: Callable[[], ShardFiles], count: int) -> None:
        self.parallel = count
        self._own = make_files()
        self._processes = [WriterProcess(make_files) for _ in range(count)]
        self._idle: queue.SimpleQueue[WriterProcess] = queue.SimpleQueue()
        for process in self._processes:
            self._idle.put(process)
        self._is_broken = False

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self._own.folder

    @property
    def rss_peak_mib(self) -> float:
        """Largest resident sets of the processes, in all."""
        return sum(process.rss_peak_mib for process in self._processes)

    @property
    def cpu_s(self) -> float:
        """Processor time of the processes."""
        return sum(process.cpu_s for process in self._processes)

    def write(self, shard: int, rows: Sequence[ClipRow], row_digest: str) -> ShardEntry:
        """Write a complete shard; see ``ShardFiles.write``."""
        if self._is_broken or sum(row.examples for row in rows) > self._own.info.group_examples:
            return self._own.write(shard, rows, row_digest)
        process = self._idle.get()
        try:
            if process.is_ready:
                return process.write(shard, rows, row_digest)
        except (EOFError, BrokenPipeError, ConnectionResetError) as error:
            self._is_broken = True
            log.warning("a process that writes shards died (%s): the worker's threads write", type(error).__name__)
        finally:
            self._idle.put(process)
        return self._own.write(shard, rows, row_digest)

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.close()


def write_main(connection: Connection, parent: int, make_files: Callable[[], ShardFiles]) -> None:
    """Write shards until asked to end, or the worker is gone."""
    ignore()
    die_with(parent)
    files = make_files()
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        connection.send_bytes(b"ready")
        while message := connection.recv_bytes():
            shard, row_digest, plain = pickle.loads(message)
            rows = _with_embeddings(plain, connection.recv_bytes())
            entry, error = None, None
            try:
                entry = files.write(shard, rows, row_digest)
            except Exception as failure:
                log.exception("can't write shard %d", shard)
                error = failure
            connection.send_bytes(_reply(entry, error))


def _with_embeddings(plain: list[tuple[object, ...]], data: bytes) -> list[ClipRow]:
    """Return the rows with their parts of all embeddings, float32 [n, width]."""
    rows = [ClipRow._make((*values, ())) for values in plain]
    embeddings = np.frombuffer(data, np.float32).reshape(max(1, sum(row.examples for row in rows)), -1)
    first = 0
    for number, row in enumerate(rows):
        if row.examples:
            rows[number] = row._replace(embeddings=BatchRows(embeddings, first, first + row.examples))
            first += row.examples
    return rows


def _reply(entry: ShardEntry | None, error: Exception | None) -> bytes:
    usage = peak_own_mib(), time.process_time()
    try:
        return pickle.dumps((entry, error, *usage))
    except Exception:  # an error that can't be pickled
        return pickle.dumps((None, RuntimeError(f"{type(error).__name__}: {error}"), *usage))
