"""The decode pool: processes that can die without the run.

Processes and not threads, because Python threads decode no faster than one (vggish.md's measurement) and because a
decoder library that crashes on a file must cost that clip alone.  A start method of ``spawn`` keeps TensorFlow's
threads and locks out of them.  birdnet's engine and PyTorch's DataLoader do the same; unlike theirs, a slot is filled
across clips, and a dead process is replaced.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import shared_memory
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runner.decode import SHARED_BYTES, ClipResult, ClipTask, DecodeOptions, Handover, Segment, SharedSlots, decode_main

_CONTEXT = multiprocessing.get_context("spawn")
_START_ATTEMPTS = 3
_FULL_CLIPS = 32
"""A process with this many clips on its hands gets no more: late clips can still go to whoever is free."""
_FULL_BYTES = 8 << 20


@dataclass
class _Process:
    process: Any
    connection: Connection
    memory: shared_memory.SharedMemory
    slots: SharedSlots
    tasks: dict[int, ClipTask] = field(default_factory=dict)
    sizes: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Decoded:
    """What came from the pool: windows [n, 15600] (valid until the next ``receive``), segments, finished clips."""

    windows: NDArray[np.float32]
    segments: Sequence[Segment]
    finished: Sequence[ClipResult]


class DecodePool:
    """Decode processes behind one interface; used by one thread.

    Args:
        options: the front end's choices.
        workers: processes to start with.
    """

    def __init__(self, options: DecodeOptions, workers: int) -> None:
        self._options = options
        self._processes: list[_Process] = []
        self._failed_starts = 0
        self._retries: list[tuple[ClipTask, int]] = []
        self.rss_peak_mib: dict[int, float] = {}
        """The largest resident set of each decode process, by process id."""
        self.cpu_s: dict[int, float] = {}
        """The processor time of each, its start included."""
        self.grow_to(workers)

    def __len__(self) -> int:
        return len(self._processes)

    @property
    def outstanding(self) -> int:
        """Clips handed to the pool whose end is not known yet."""
        return sum(len(process.tasks) for process in self._processes) + len(self._retries)

    def grow_to(self, workers: int) -> None:
        """Start processes until there are ``workers``."""
        while len(self._processes) < workers:
            self._processes.append(self._start())

    @property
    def has_room(self) -> bool:
        """Whether some process would take another clip now."""
        return any(self._has_room(process) for process in self._processes)

    def submit(self, task: ClipTask, size: int) -> None:
        """Give a clip of ``size`` bytes to the process with the least on its hands."""
        process = min(self._processes, key=lambda each: (sum(each.sizes.values()), len(each.tasks)))
        process.tasks[task.job] = task
        process.sizes[task.job] = max(size, 0)
        # A dead process is noticed, and its clips given to another, by `receive`.
        self._send(process, [task])

    def receive(self, timeout: float) -> Iterator[Decoded]:
        """Give what has come within ``timeout`` seconds; slots go back to their process as the iteration goes on."""
        by_connection: dict[Any, _Process] = {process.connection: process for process in self._processes}
        for connection in wait(list(by_connection), timeout):
            process = by_connection[connection]
            try:
                handover: Handover = process.connection.recv()
            except (EOFError, OSError):
                yield from self._bury(process)
                continue
            self.rss_peak_mib[process.process.pid] = handover.rss_peak_mib
            self.cpu_s[process.process.pid] = handover.cpu_s
            rows = sum(segment.windows for segment in handover.segments)
            windows = process.slots.windows[handover.slot or 0, :rows]
            for result in handover.finished:
                process.tasks.pop(result.job, None)
                process.sizes.pop(result.job, None)
            yield Decoded(windows, handover.segments, handover.finished)
            if handover.slot is not None:
                self._send(process, handover.slot)

    def retries(self) -> Iterator[tuple[ClipTask, int]]:
        """Clips that a dead process had not finished, each with its size: to be submitted again as a new job."""
        while self._retries:
            yield self._retries.pop()

    def close(self) -> None:
        """End all processes, politely and then not, and free their memory."""
        for process in self._processes:
            self._send(process, None)
        for process in self._processes:
            process.process.join(timeout=1.0)
            self._release(process)
        self._processes.clear()

    def _start(self) -> _Process:
        ours, theirs = _CONTEXT.Pipe()
        memory = shared_memory.SharedMemory(create=True, size=SHARED_BYTES)
        slots = SharedSlots(memory)
        slots.current_job = -1
        process = _CONTEXT.Process(
            target=decode_main, args=(theirs, memory.name, self._options), name="decode", daemon=True
        )
        process.start()
        theirs.close()
        return _Process(process, ours, memory, slots)

    def _has_room(self, process: _Process) -> bool:
        return not process.tasks or (len(process.tasks) < _FULL_CLIPS and sum(process.sizes.values()) < _FULL_BYTES)

    @staticmethod
    def _send(process: _Process, message: object) -> None:
        try:
            process.connection.send(message)
        except OSError:
            return

    def _bury(self, dead: _Process) -> Iterator[Decoded]:
        """Replace a process that died: the clip under way is lost, those that waited behind it are tried again."""
        dead.process.join(timeout=5.0)
        fatal = dead.slots.current_job
        if fatal < 0:
            self._failed_starts += 1
            if self._failed_starts >= _START_ATTEMPTS:
                status = dead.process.exitcode
                raise RuntimeError(f"decode processes die at their start (exit status {status}): see runner.log")
        self._processes.remove(dead)
        self._processes.append(self._start())
        lost = dead.tasks.pop(fatal, None)
        self._retries.extend((task, dead.sizes.get(task.job, 0)) for task in dead.tasks.values())
        exitcode = dead.process.exitcode
        self._release(dead)
        if lost is not None:
            detail = f"the decode process died on this clip (exit status {exitcode})"
            result = ClipResult(lost.job, False, "decoder_died", detail, 0, 0.0, None, None, False)
            yield Decoded(np.empty((0, 0), np.float32), (), (result,))

    @staticmethod
    def _release(process: _Process) -> None:
        if process.process.is_alive():
            process.process.kill()
            process.process.join()
        process.connection.close()
        process.slots.close()
        process.memory.unlink()
