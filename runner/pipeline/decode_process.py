"""One decode process, as the pool sees it: its pipe, the clips it has, and its heartbeat."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Sequence
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING

from runner.core.stop_signals import held_back
from runner.pipeline.decode_worker import decode_main
from runner.pipeline.messages import Decode, encode

if TYPE_CHECKING:
    from runner.pipeline.messages import ClipTask, DecodeOptions, DecodeReport, SlotGrant
    from runner.pipeline.slots import SlotMemory

CONTEXT = multiprocessing.get_context("spawn")
"""``spawn`` keeps TensorFlow's threads and locks out of decode processes."""


class DecodeProcess:
    """A decode process; it starts when this is made, and waits for its memory.

    Args:
        index: its place in the slot memory's header.
        options: configuration of decoding.

    Attributes:
        index: its place in the slot memory's header.
        process: multiprocessing's handle.
        connection: the parent's end of its pipe.
        tasks: clips that it has not finished, each with its size in bytes, by job.
        slot: the slot that it fills.
        waits_for_slot: whether it is to get the next free slot.
        is_ready: whether it has started well.
        timed_out: whether it was killed because its decoder made no progress.
    """

    def __init__(self, index: int, options: DecodeOptions) -> None:
        self.connection, child_connection = CONTEXT.Pipe()
        self.process = CONTEXT.Process(
            target=decode_main, args=(child_connection, index, os.getpid(), options), name="decode", daemon=True
        )
        if os.name == "posix":
            resource_tracker.ensure_running()  # which lets signals in again
        with held_back():  # one that comes while the process is starting is ignored as well
            self.process.start()
        child_connection.close()
        self._send_lock = threading.Lock()
        self.index = index
        self.tasks: dict[int, tuple[ClipTask, int]] = {}
        self._message_bytes: deque[int] = deque()
        self.slot: int | None = None
        self.waits_for_slot = False
        self.is_ready = False
        self.timed_out = False
        self._flush_requested = True
        self._heartbeat: tuple[int, int] | None = None
        self._silent_s = 0.0

    @property
    def messages(self) -> int:
        """``Decode`` messages with clips that it has not finished."""
        return len(self._message_bytes)

    @property
    def load(self) -> tuple[int, int]:
        """Messages, and bytes of files, that it has not finished."""
        return len(self._message_bytes), sum(self._message_bytes)

    def attach(self, memory: SlotMemory, *, resample: bool = True) -> None:
        """Send the slot memory, and whether to resample; a process that is dead already is noticed later."""
        memory.set_current_job(self.index, -1)
        try:
            memory.send(self.connection, self.process.pid or 0)
            self.connection.send(resample)
        except OSError:
            return
        self.waits_for_slot = True

    def submit(self, tasks: Sequence[tuple[ClipTask, int]], *, last: bool) -> None:
        """Send clips, each with its size in bytes (negative: unknown); ``last`` asks for a flush after them."""
        self._message_bytes.append(sum([max(size, 0) for _, size in tasks]))
        self.tasks.update([(sized[0].job, sized) for sized in tasks])
        self._flush_requested = last
        self.send(Decode([task for task, _ in tasks], last))

    def flush(self) -> None:
        """Have the process submit its slot once its clips are done, unless it was asked already."""
        if not self._flush_requested:
            self._flush_requested = True
            self.send(Decode([], last=True))

    def send(self, message: SlotGrant | Decode | None) -> None:
        """Send a message, None to end it, from any thread; a process that is dead is noticed later."""
        with self._send_lock, contextlib.suppress(OSError):
            self.connection.send_bytes(encode(message))

    def note_finished(self, report: DecodeReport) -> None:
        """Forget the clips and messages that a report says are finished."""
        for _ in range(report.decoded):
            self._message_bytes.popleft()
        for result in report.finished:
            self.tasks.pop(result.job, None)

    def silent_s(self, heartbeat: tuple[int, int] | None, elapsed_s: float) -> float:
        """Return the seconds without a new heartbeat, given the present one and the seconds since the last call.

        A process without a heartbeat is idle or waits for the parent: that is no silence.
        """
        if heartbeat is None or heartbeat != self._heartbeat:
            self._heartbeat, self._silent_s = heartbeat, 0.0
        else:
            self._silent_s += elapsed_s
        return self._silent_s

    def close(self) -> None:
        """Kill the process if it is alive, and close the pipe."""
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.connection.close()
