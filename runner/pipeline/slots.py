"""Slots: shared memory for waveform between decode processes and the worker, without a copy through a pipe.

A slot holds windows of one kind: at the model's rate a batch of int16 (from mono 16-bit files of that rate) or float32,
or fewer at their file's own rate, which the device resamples.  On a CPU the session reads it in place, on CUDA it is
copied from page-locked memory.

On Linux the memory has no name: the kernel frees it with the last process that holds it, whatever kills them, and the
limit of /dev/shm does not apply.  Elsewhere it is ``multiprocessing.shared_memory``; its resource tracker removes it.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from multiprocessing import reduction, shared_memory
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from runner.audio.framing import slot_bytes, whole_pages

if TYPE_CHECKING:
    from runner.audio.source_windows import WindowKind

_STRIDE = 8
"""int64 values of each process in the header, a cache line."""

_JOB, _BEATS, _WAITING, _FRACTION = range(4)
"""Values of a process: its job (-1: none), heartbeats, whether it waits for the parent, and the decoded fraction."""

_WHOLE = 1_000_000
"""The fraction of a clip that is decoded altogether."""

_NAMELESS = hasattr(os, "memfd_create")


class SlotMemory:
    """The slots of one pool, and a header with the state of each decode process; seen from either side.

    Args:
        slots: number of slots.
        rows: windows at the model's rate of a slot.
        window_samples: samples of such a window.
        processes: number of decode processes.
        source: descriptor or shared memory of the other side; the memory is allocated when None.
    """

    def __init__(
        self,
        slots: int,
        rows: int,
        window_samples: int,
        processes: int,
        source: int | shared_memory.SharedMemory | None = None,
    ) -> None:
        self.slots, self.rows, self.window_samples, self.processes = slots, rows, window_samples, processes
        header_bytes = whole_pages(processes * _STRIDE * 8)
        bytes_per_slot = slot_bytes(rows, window_samples)
        size = header_bytes + slots * bytes_per_slot
        self._is_owner = source is None
        if source is None:
            source = _allocate(size)
        self._named = source if isinstance(source, shared_memory.SharedMemory) else None
        if isinstance(source, shared_memory.SharedMemory):
            buffer: Any = source.buf
        else:
            self._descriptor = source
            buffer = self._map = mmap.mmap(source, size)
        self._header: NDArray[np.int64] = np.ndarray((processes, _STRIDE), np.int64, buffer)
        self._bytes: NDArray[np.uint8] = np.ndarray((slots, bytes_per_slot), np.uint8, buffer, header_bytes)
        if self._is_owner:
            self._header[:] = -1

    @classmethod
    def receive(cls, connection: Connection) -> SlotMemory:
        """Attach, in a decode process, to the memory that the other end sends by ``send``."""
        slots, rows, window_samples, processes, name = connection.recv()
        source = reduction.recv_handle(connection) if _NAMELESS else shared_memory.SharedMemory(name)
        return cls(slots, rows, window_samples, processes, source)

    def send(self, connection: Connection, pid: int) -> None:
        """Share the memory with the process at the other end.

        Raises:
            OSError: that process is dead.
        """
        name = None if self._named is None else self._named.name
        connection.send((self.slots, self.rows, self.window_samples, self.processes, name))
        if _NAMELESS:
            reduction.send_handle(connection, self._descriptor, pid)

    def rows_of(self, kind: WindowKind) -> int:
        """Return the windows of a kind that a slot has room for."""
        return min(self.rows, int(self._bytes.shape[1]) // kind.bytes)

    def windows(self, slot: int, kind: WindowKind) -> NDArray[Any]:
        """Return a slot's memory as windows of a kind, [rows, *shape]; 64-byte aligned."""
        rows = self.rows_of(kind)
        flat: NDArray[Any] = self._bytes[slot][: rows * kind.bytes].view(kind.dtype)
        return flat.reshape(rows, *kind.shape)

    @property
    def bytes(self) -> NDArray[np.uint8]:
        """All slots' memory, [slots, bytes of a slot]; page-aligned."""
        return self._bytes

    def current_job(self, process: int) -> int:
        """Return the job that a process decodes, -1 for none."""
        return int(self._header[process, _JOB])

    def set_current_job(self, process: int, job: int) -> None:
        """Note the job that a process begins to decode, -1 for none."""
        self._header[process, _FRACTION] = 0
        self._header[process, _JOB] = job

    def set_fraction(self, process: int, fraction: float) -> None:
        """Note the fraction of its job that a process has decoded, 0 to 1."""
        self._header[process, _FRACTION] = round(fraction * _WHOLE)

    def fractions_decoded(self) -> float:
        """Return the sum of the processes' fractions: clips."""
        return float(np.maximum(self._header[:, _FRACTION], 0).sum()) / _WHOLE

    def heartbeat(self, process: int, *, waiting: bool = False) -> None:
        """Note that a process makes progress; ``waiting``: that it waits for the parent."""
        self._header[process, _BEATS] += 1
        self._header[process, _WAITING] = waiting

    def last_heartbeat(self, process: int) -> tuple[int, int] | None:
        """Return (job, heartbeats) of a process that decodes; None for one that is idle or waits for the parent."""
        job, beats, waiting = (int(value) for value in self._header[process, [_JOB, _BEATS, _WAITING]])
        return None if job < 0 or waiting else (job, beats)

    def close(self) -> None:
        """Detach from the memory (views of it become invalid); its owner frees it."""
        del self._bytes, self._header
        if self._named is not None:
            self._named.close()
            if self._is_owner:
                self._named.unlink()
            return
        with contextlib.suppress(BufferError):  # a view is still held somewhere: the memory goes with it
            self._map.close()
        os.close(self._descriptor)


def _allocate(size: int) -> int | shared_memory.SharedMemory:
    if not _NAMELESS:
        return shared_memory.SharedMemory(create=True, size=size)
    descriptor = os.memfd_create("vggish-runner")
    os.ftruncate(descriptor, size)
    return descriptor
