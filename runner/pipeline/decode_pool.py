"""The decode pool: processes that can die without the run.

Processes and not threads, because Python threads decode no faster than one (vggish.md's measurement) and because a
decoder library that crashes on a file must cost that clip alone.  A start method of ``spawn`` keeps TensorFlow's
threads and locks out of them.  birdnet's engine and PyTorch's DataLoader do the same; unlike theirs, a slot is filled
across clips, and a dead process is replaced.  tf.data and grain were weighed: ``benchmarks/loaders.py``.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any

from runner.core.errors import EngineError
from runner.core.stop_signals import held_back
from runner.pipeline.decode_worker import READY, decode_main
from runner.pipeline.messages import (
    ClipResult,
    Decode,
    Decoded,
    DecodeOptions,
    DecodeReport,
    FilledSlot,
    SlotGrant,
    decode_message,
    packed,
)
from runner.pipeline.slots import SlotMemory

if TYPE_CHECKING:
    from runner.config.schema import RunConfig
    from runner.pipeline.messages import ClipTask
    from runner.vggish.framing import Windows

_CONTEXT = multiprocessing.get_context("spawn")

_START_ATTEMPTS = 3

_ATTEMPTS = 3
"""A clip on which so many decode processes died is given up: one that was killed for another reason costs nothing."""

_LOOK_EVERY_S = 0.2

_LOOK_COUNTS_S = 1.0
"""Silence that one look can add at most: what passes while this process does not look, because a person or a scheduler
stopped all of them (SIGSTOP), is nobody's silence."""

_MESSAGES_AHEAD = 2
"""Messages of clips that a process has on its hands at most: late clips can still go to whoever is free."""


@dataclass
class _Process:
    place: int
    process: Any
    connection: Connection
    ahead: deque[int] = field(default_factory=deque)
    """Bytes of each message of clips that it is not done with."""
    bytes_ahead: int = 0
    tasks: dict[int, tuple[ClipTask, int]] = field(default_factory=dict)
    slot: int | None = None
    waits_for_slot: bool = False
    pulse: tuple[int, int] | None = None
    silent_s: float = 0.0
    timed_out: bool = False
    ready: bool = False
    flush_requested: bool = True


class DecodePool:
    """Decode processes behind one interface; used by one thread, but for ``release``.

    Args:
        options: the front end's choices.
        workers: processes to start with; they wait for ``open``.
        decode_timeout_s: a process whose decoder gives nothing for so long is killed, and its clip given up.
    """

    def __init__(self, options: DecodeOptions, workers: int, decode_timeout_s: float = float("inf")) -> None:
        self._options = options
        self._decode_timeout_s = decode_timeout_s
        self._looked_at = 0.0
        self._processes: list[_Process] = []
        self._memory: SlotMemory | None = None
        self._free: deque[int] = deque()
        self._released: deque[int] = deque()
        self._wake_reader, self._wake_writer = _CONTEXT.Pipe(duplex=False)
        self._failed_starts = 0
        self._retries: list[tuple[ClipTask, int]] = []
        self.deaths = 0
        """Decode processes that died and were replaced."""
        self.rss_peak_mib: dict[int, float] = {}
        """The largest resident set of each decode process, by process id, without the slots."""
        self.cpu_s: dict[int, float] = {}
        """The processor time of each, its start included."""
        self.busy_s: dict[int, float] = {}
        """The time that each decoded."""
        atexit.register(self._kill_all)  # multiprocessing's own way is SIGTERM, which decode processes ignore
        for place in range(workers):
            self._processes.append(self._start(place))

    def __len__(self) -> int:
        return len(self._processes)

    def open(self, workers: int, spare_slots: int, rows: int) -> None:
        """Bring the pool to ``workers`` processes and give it its slots: one a process and the spare ones.

        Args:
            workers: processes; those there already are kept.
            spare_slots: slots beside those being filled: waiting for a replica, or in one.
            rows: windows a slot holds.
        """
        self._processes = [self._start_anew(each) if not each.process.is_alive() else each for each in self._processes]
        workers = max(workers, len(self._processes))
        for place in range(len(self._processes), workers):
            self._processes.append(self._start(place))
        self._memory = SlotMemory(workers + spare_slots, rows, workers)
        self._free.extend(range(self._memory.slots))
        for process in self._processes:
            self._attach_memory(process)

    @property
    def memory(self) -> SlotMemory:
        """The slots; there once the pool is open."""
        assert self._memory is not None, "the pool is not open"
        return self._memory

    def windows(self, filled: FilledSlot) -> Windows:
        """What a filled slot holds, [rows, 15600]; valid until its release."""
        return self.memory.windows(filled.slot, filled.dtype)[: filled.rows]

    @property
    def outstanding(self) -> int:
        """Clips handed to the pool whose end is not known yet."""
        return sum(len(process.tasks) for process in self._processes) + len(self._retries)

    @property
    def has_room(self) -> bool:
        """Whether some process would take more clips now."""
        return any(len(process.ahead) < _MESSAGES_AHEAD for process in self._processes)

    def submit(self, tasks: Sequence[tuple[ClipTask, int]], *, last: bool) -> None:
        """Give clips, each with its size in bytes, to the process with the least on its hands.

        ``last`` says that no more will come for now, so that the process should hand over what it has at the end.
        """
        process = min(self._processes, key=lambda each: (len(each.ahead), each.bytes_ahead))
        size = sum(max(size, 0) for _, size in tasks)
        process.ahead.append(size)
        process.bytes_ahead += size
        process.tasks.update((task.job, (task, size)) for task, size in tasks)
        process.flush_requested = last
        # A dead process is noticed, and its clips given to another, by `receive`.
        self._send(process, Decode([task for task, _ in tasks], last))

    def no_more(self) -> None:
        """Have every process hand over what it holds once its clips are done; may be called again and again."""
        for process in self._processes:
            if not process.flush_requested:
                process.flush_requested = True
                self._send(process, Decode([], last=True))

    def receive(self, timeout: float) -> Iterator[Decoded]:
        """Give what has come within ``timeout`` seconds."""
        self._kill_hung()
        by_connection: dict[Any, _Process] = {process.connection: process for process in self._processes}
        for connection in wait([*by_connection, self._wake_reader], timeout):
            if connection is self._wake_reader:
                self._wake_reader.recv_bytes()
                self._give_slots()
                continue
            process = by_connection[connection]
            try:
                data = process.connection.recv_bytes()
            except (EOFError, OSError):
                yield from self._replace_dead(process)
                continue
            if data == READY:
                process.ready, self._failed_starts = True, 0
                continue
            handover = decode_message(data)
            assert isinstance(handover, DecodeReport)
            yield self._take(process, handover)

    def release(self, slot: int) -> None:
        """Give a slot back; from any thread."""
        self._released.append(slot)
        self._wake_writer.send_bytes(b"!")

    def retries(self) -> list[tuple[ClipTask, int]]:
        """Clips that a dead process had not finished, each with its size: to be submitted again as new jobs."""
        lost, self._retries = self._retries, []
        return lost

    def close(self) -> None:
        """End all processes, politely and then not, and free their memory."""
        for process in self._processes:
            self._send(process, None)
        for process in self._processes:
            process.process.join(timeout=1.0)
            self._release(process)
        self._processes.clear()
        atexit.unregister(self._kill_all)
        self._wake_reader.close()
        self._wake_writer.close()
        if self._memory is not None:
            self._memory.close()
            self._memory = None

    def _take(self, process: _Process, handover: DecodeReport) -> Decoded:
        pid = process.process.pid
        self.rss_peak_mib[pid] = handover.rss_peak_mib
        self.cpu_s[pid], self.busy_s[pid] = handover.cpu_s, handover.busy_s
        for _ in range(handover.decoded):
            process.bytes_ahead -= process.ahead.popleft()
        for result in handover.finished:
            process.tasks.pop(result.job, None)
        if handover.slot is None:
            return Decoded(None, handover.finished)
        process.slot, process.waits_for_slot = None, True
        self._give_slots()
        rows = sum(segment.windows for segment in handover.segments)
        return Decoded(FilledSlot(handover.slot, handover.dtype, rows, handover.segments), handover.finished)

    def _give_slots(self) -> None:
        while self._released:
            self._free.append(self._released.popleft())
        for process in self._processes:
            if process.waits_for_slot and self._free:
                process.slot, process.waits_for_slot = self._free.popleft(), False
                self._send(process, SlotGrant(process.slot))

    def _kill_hung(self) -> None:
        """Kill processes whose decoder gives nothing: ``receive`` then finds them dead."""
        now = time.monotonic()
        since = now - self._looked_at
        if since < _LOOK_EVERY_S:
            return
        self._looked_at = now
        for process in self._processes:
            pulse = self.memory.pulse(process.place)
            if pulse != process.pulse or pulse is None:
                process.pulse, process.silent_s = pulse, 0.0
                continue
            process.silent_s += min(since, _LOOK_COUNTS_S)
            if process.silent_s > self._decode_timeout_s and not process.timed_out:
                process.timed_out = True
                process.process.kill()

    def _start(self, place: int) -> _Process:
        ours, theirs = _CONTEXT.Pipe()
        process = _CONTEXT.Process(
            target=decode_main, args=(theirs, place, os.getpid(), self._options), name="decode", daemon=True
        )
        if os.name == "posix":
            resource_tracker.ensure_running()  # which lets signals in again
        with held_back():  # one that comes while the process is starting is ignored as well
            process.start()
        theirs.close()
        return _Process(place, process, ours)

    def _start_anew(self, dead: _Process) -> _Process:
        self.deaths += 1
        self._release(dead)
        return self._start(dead.place)

    def _attach_memory(self, process: _Process) -> None:
        """Give a process its memory and its first slot."""
        self.memory.set_current_job(process.place, -1)
        try:
            self.memory.send(process.connection, process.process.pid)
        except OSError:
            return  # dead already: `receive` will notice
        process.waits_for_slot = True
        self._give_slots()

    @staticmethod
    def _send(process: _Process, message: SlotGrant | Decode | None) -> None:
        try:
            process.connection.send_bytes(packed(message))
        except OSError:
            return

    def _replace_dead(self, dead: _Process) -> Iterator[Decoded]:
        """Replace a process that died.

        Its clips are tried again, the one under way too, unless it is what the process was stuck in or several died of.
        """
        dead.process.join(timeout=5.0)
        exitcode = dead.process.exitcode
        fatal = self.memory.current_job(dead.place)
        if not dead.ready:
            self._failed_starts += 1
            if self._failed_starts >= _START_ATTEMPTS:
                raise EngineError(f"decode processes die at their start (exit status {exitcode}): see runner.log")
        self._processes.remove(dead)
        if dead.slot is not None:
            self._free.append(dead.slot)
        replacement = self._start_anew(dead)
        self._processes.append(replacement)
        self._attach_memory(replacement)
        lost = dead.tasks.pop(fatal, None)
        self._retries.extend(dead.tasks.values())
        if lost is None:
            return
        task, size = lost
        if not dead.timed_out and task.attempt + 1 < _ATTEMPTS:
            self._retries.append((task._replace(attempt=task.attempt + 1), size))
            return
        reason, detail = "decoder_crashed", f"{_ATTEMPTS} decode processes died on this clip (exit status {exitcode})"
        if dead.timed_out:
            reason, detail = "timeout", f"the decoder made no progress for {self._decode_timeout_s:g} s"
        yield Decoded(None, [ClipResult(task.job, False, reason, detail, 0, 0.0, None, None, False)])

    def _kill_all(self) -> None:
        for process in self._processes:
            process.process.kill()

    @staticmethod
    def _release(process: _Process) -> None:
        if process.process.is_alive():
            process.process.kill()
            process.process.join()
        process.connection.close()


_CLIPS_PER_DECODER = 16
"""A small data set gets fewer decode processes than planned: to start one takes as long as to decode several clips."""


def decode_options(config: RunConfig) -> DecodeOptions:
    """What decode processes need to know of a run's configuration."""
    frontend = config.frontend
    return DecodeOptions(
        frontend.hop_s,
        frontend.short_clips,
        frontend.tail,
        frontend.resampler,
        config.dataset.on_truncated,
        config.dataset.max_duration_s,
        config.dataset.prefetch,
        config.dataset.download_timeout_s,
    )


def decoders_for(planned: int, clips: int) -> int:
    """Decode processes for so many clips: those planned, or fewer."""
    return max(1, min(planned, -(-clips // _CLIPS_PER_DECODER)))
