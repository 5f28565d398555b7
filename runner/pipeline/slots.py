"""Slots: the shared memory through which decode processes hand over waveform, without a copy through a pipe.

A slot holds a batch's worth of windows, int16 (16 kHz mono 16-bit files, as they are) or float32 (all else), and is
what a replica embeds: on a CPU the session reads it in place, on CUDA it is copied from page-locked memory.

On Linux the memory has no name: it is gone with the last process that holds it, whatever kills them, and the limit of
/dev/shm does not apply to it.  Elsewhere it is ``multiprocessing.shared_memory``, which its resource tracker removes.
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

from runner.vggish.constants import EXAMPLE_SAMPLES
from runner.vggish.framing import _whole_pages, slot_bytes

if TYPE_CHECKING:
    from runner.vggish.framing import Windows

_JOB_STRIDE = 8
"""int64 values between two processes' places in the header: a cache line each."""

_WHOLE = 1_000_000

_NAMELESS = hasattr(os, "memfd_create")


class SlotMemory:
    """The slots of one pool, seen from either side.

    Args:
        slots: how many.
        rows: windows that each holds.
        processes: decode processes that may be at work at once.
    """

    def __init__(self, slots: int, rows: int, processes: int) -> None:
        self._owner = True
        if _NAMELESS:
            descriptor = os.memfd_create("vggish-runner")
            os.ftruncate(descriptor, _layout(slots, rows, processes)[2])
            self._attach(slots, rows, processes, descriptor)
        else:
            memory = shared_memory.SharedMemory(create=True, size=_layout(slots, rows, processes)[2])
            self._attach(slots, rows, processes, memory)
        self._jobs[:] = -1

    @classmethod
    def receive(cls, connection: Connection) -> SlotMemory:
        """The memory that the other end's ``send`` gives, in a decode process."""
        slots, rows, processes, name = connection.recv()
        found = cls.__new__(cls)
        found._owner = False
        source = reduction.recv_handle(connection) if _NAMELESS else shared_memory.SharedMemory(name)
        found._attach(slots, rows, processes, source)
        return found

    def send(self, connection: Connection, pid: int) -> None:
        """Give the memory to the process at the other end.

        Raises:
            OSError: that process is gone.
        """
        name = None if self._named is None else self._named.name
        connection.send((self.slots, self.rows, self.processes, name))
        if _NAMELESS:
            reduction.send_handle(connection, self._descriptor, pid)

    def windows(self, slot: int, dtype: Any) -> Windows:
        """A slot's memory as windows [rows, 15600] of int16 or float32; 64-byte aligned."""
        flat = self._bytes[slot][: self.rows * EXAMPLE_SAMPLES * np.dtype(dtype).itemsize]
        windows: Windows = flat.view(dtype).reshape(self.rows, EXAMPLE_SAMPLES)
        return windows

    @property
    def bytes(self) -> NDArray[np.uint8]:
        """All slots' memory, [slots, bytes of a slot]; page-aligned."""
        return self._bytes

    def current_job(self, process: int) -> int:
        """The job that a process has under way, -1 for none."""
        return int(self._jobs[process * _JOB_STRIDE])

    def set_current_job(self, process: int, job: int) -> None:
        """Say which job a process has under way; nothing of it is done yet."""
        self._jobs[process * _JOB_STRIDE + 3] = 0
        self._jobs[process * _JOB_STRIDE] = job

    def set_part(self, process: int, part: float) -> None:
        """Say what part of its job a process has decoded, 0 to 1."""
        self._jobs[process * _JOB_STRIDE + 3] = round(part * _WHOLE)

    def parts_done(self) -> float:
        """What the parts come to, in clips, of all processes that have said so."""
        return float(np.maximum(self._jobs[3::_JOB_STRIDE], 0).sum()) / _WHOLE

    def beat(self, process: int, *, waiting: bool = False) -> None:
        """Say that a process has come on; ``waiting``: that what comes next is up to the parent."""
        place = process * _JOB_STRIDE
        self._jobs[place + 1] += 1
        self._jobs[place + 2] = waiting

    def pulse(self, process: int) -> tuple[int, int] | None:
        """(job, beats) of a process that decodes; None while it has nothing to do, or waits for the parent."""
        job, beats, waiting = (int(value) for value in self._jobs[process * _JOB_STRIDE :][:3])
        return None if job < 0 or waiting else (job, beats)

    def close(self) -> None:
        """Let go of the memory (views of it die with it); its owner frees it."""
        del self._bytes, self._jobs
        if self._named is not None:
            self._named.close()
            if self._owner:
                self._named.unlink()
            return
        with contextlib.suppress(BufferError):  # a view is still held somewhere: the memory goes with it
            self._map.close()
        os.close(self._descriptor)

    def _attach(self, slots: int, rows: int, processes: int, source: int | shared_memory.SharedMemory) -> None:
        self.slots, self.rows, self.processes = slots, rows, processes
        header, slot_bytes, size = _layout(slots, rows, processes)
        self._named = source if isinstance(source, shared_memory.SharedMemory) else None
        if isinstance(source, shared_memory.SharedMemory):
            buffer: Any = source.buf
        else:
            self._descriptor = source
            buffer = self._map = mmap.mmap(source, size)
        self._jobs: NDArray[np.int64] = np.ndarray((processes * _JOB_STRIDE,), np.int64, buffer)
        self._bytes: NDArray[np.uint8] = np.ndarray((slots, slot_bytes), np.uint8, buffer, header)


def _layout(slots: int, rows: int, processes: int) -> tuple[int, int, int]:
    header = _whole_pages(processes * _JOB_STRIDE * 8)
    return header, slot_bytes(rows), header + slots * slot_bytes(rows)
