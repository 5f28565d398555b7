"""A decode process: audio files in, windows of waveform out through shared memory.

It imports neither TensorFlow nor anything slow.  A slot is a stretch of shared memory that holds ``SLOT_WINDOWS``
windows; windows of successive clips share one, so that thousands of tiny clips cost few messages.
"""

from __future__ import annotations

import signal
import time
from collections import deque
from dataclasses import dataclass
from multiprocessing import shared_memory
from multiprocessing.connection import Connection
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from runner.audio import read_clip
from runner.errors import ClipError
from runner.framing import WindowCutter, cut
from runner.hardware import peak_rss_mib
from runner.memory import SLOT_WINDOWS, SLOTS_PER_WORKER, WINDOW_BYTES
from runner.vggish.constants import EXAMPLE_SAMPLES

_HEADER_BYTES = 64
"""Before the slots: the job under way (int64), read by the parent if this process dies; 64 keeps slots aligned."""
SHARED_BYTES = _HEADER_BYTES + SLOTS_PER_WORKER * SLOT_WINDOWS * WINDOW_BYTES


class ClipTask(NamedTuple):
    """One clip to decode; ``job`` is unique to this attempt at it."""

    job: int
    path: bytes
    start: float | None
    end: float | None


class Segment(NamedTuple):
    """So many ``windows`` of a job, from its example ``first``, at the next rows of a slot."""

    job: int
    first: int
    windows: int


class ClipResult(NamedTuple):
    """How a clip's decoding ended; ``reason`` is None where nothing is to be told, ``seconds`` is what was decoded."""

    job: int
    embedded: bool
    reason: str | None
    detail: str | None
    examples: int
    seconds: float
    sample_rate: int | None
    channels: int | None
    padded: bool


class Handover(NamedTuple):
    """What a decode process sends: a slot with its segments (None: no windows), and the clips that are finished.

    ``rss_peak_mib`` and ``cpu_s`` are the process's own, since it started.
    """

    slot: int | None
    segments: list[Segment]
    finished: list[ClipResult]
    rss_peak_mib: float
    cpu_s: float


@dataclass(frozen=True)
class DecodeOptions:
    """The front end's choices that decoding needs."""

    hop_s: float
    short_clips: str
    tail: str
    resampler: str


class SharedSlots:
    """The shared memory of one decode process, seen from either side."""

    def __init__(self, memory: shared_memory.SharedMemory) -> None:
        self._memory = memory
        assert memory.buf is not None
        self._current: NDArray[np.int64] = np.ndarray((1,), np.int64, memory.buf)
        self.windows: NDArray[np.float32] = np.ndarray(
            (SLOTS_PER_WORKER, SLOT_WINDOWS, EXAMPLE_SAMPLES), np.float32, memory.buf, _HEADER_BYTES
        )

    @property
    def current_job(self) -> int:
        """The job under way, -1 for none."""
        return int(self._current[0])

    @current_job.setter
    def current_job(self, job: int) -> None:
        self._current[0] = job

    def close(self) -> None:
        """Let go of the memory (the views die with it)."""
        del self._current, self.windows
        self._memory.close()


class _Decoder:
    """The loop of one decode process."""

    def __init__(self, connection: Connection, slots: SharedSlots, options: DecodeOptions) -> None:
        self._connection = connection
        self._slots = slots
        self._options = options
        self._tasks: deque[ClipTask] = deque()
        self._free: deque[int] = deque(range(SLOTS_PER_WORKER))
        self._slot: int | None = None
        self._rows = 0
        self._segments: list[Segment] = []
        self._finished: list[ClipResult] = []

    def run(self) -> None:
        while True:
            while not self._tasks:
                self._receive()
            task = self._tasks.popleft()
            self._slots.current_job = task.job
            result = self._decode(task)  # hands over meanwhile, so the list below may be a new one
            self._finished.append(result)
            self._slots.current_job = -1
            while self._connection.poll():
                self._receive()
            if not self._tasks:
                self._hand_over()

    def _receive(self) -> None:
        message = self._connection.recv()
        if isinstance(message, int):
            self._free.append(message)
        elif message is None:
            raise SystemExit(0)
        else:
            self._tasks.extend(message)

    def _decode(self, task: ClipTask) -> ClipResult:
        options = self._options
        cutter = WindowCutter(options.hop_s, pad_short=options.short_clips == "pad", pad_tail=options.tail == "pad")
        rate: int | None = None
        channels: int | None = None
        try:
            with read_clip(task.path, task.start, task.end, resampler=options.resampler) as clip:
                rate, channels = clip.sample_rate, clip.channels
                sent = 0
                for windows in cut(iter(clip), cutter):
                    self._put(task.job, sent, windows)
                    sent += len(windows)
            if cutter.examples == 0:
                raise ClipError("too_short", f"{cutter.samples} samples at 16 kHz; one example needs {EXAMPLE_SAMPLES}")
        except ClipError as error:
            return ClipResult(task.job, False, error.reason, error.detail, 0, 0.0, rate, channels, False)
        except Exception as error:
            detail = f"{type(error).__name__}: {error}"
            return ClipResult(task.job, False, "decode_error", detail, 0, 0.0, rate, channels, False)
        reason = clip.note.split(":", 1)[0] if clip.note else None
        return ClipResult(
            task.job, True, reason, clip.note, cutter.examples, clip.seconds, rate, channels, cutter.padded
        )

    def _put(self, job: int, first: int, windows: NDArray[np.float32]) -> None:
        start = 0
        while start < len(windows):
            slot = self._claim_slot()
            count = min(SLOT_WINDOWS - self._rows, len(windows) - start)
            self._slots.windows[slot, self._rows : self._rows + count] = windows[start : start + count]
            self._segments.append(Segment(job, first + start, count))
            self._rows += count
            start += count
            if self._rows == SLOT_WINDOWS:
                self._hand_over()

    def _claim_slot(self) -> int:
        if self._slot is None:
            while not self._free:
                self._receive()
            self._slot = self._free.popleft()
        return self._slot

    def _hand_over(self) -> None:
        if not self._segments and not self._finished:
            return
        slot = self._slot if self._segments else None
        self._connection.send(Handover(slot, self._segments, self._finished, peak_rss_mib(), time.process_time()))
        if slot is not None:
            self._slot, self._rows = None, 0
        self._segments, self._finished = [], []


def decode_main(connection: Connection, memory_name: str, options: DecodeOptions) -> None:
    """Entry point of a decode process; ends when told to, or when the worker is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    slots = SharedSlots(shared_memory.SharedMemory(memory_name))
    try:
        _Decoder(connection, slots, options).run()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
    finally:
        slots.close()
