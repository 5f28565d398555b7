"""A decode process: audio files in, windows of waveform out through shared memory.

Imports stay light: no TensorFlow.  Windows of successive clips fill one slot, so that thousands of tiny clips cost few
messages; a slot is submitted to the parent when it is full, when it has been open for long, or when the parent has no
more clips.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from runner.audio.framing import WindowCutter, cut, scaled
from runner.audio.reader import leveled, read_clip
from runner.audio.source_windows import SourceWindowCutter, WindowKind, window_filter
from runner.core.errors import ClipError
from runner.core.stop_signals import die_with, ignore
from runner.dataset.packed.address import is_packed
from runner.dataset.packed.clips import PackedClips
from runner.devices.host import peak_own_mib
from runner.pipeline.messages import ClipResult, Decode, DecodeReport, Segment, SlotGrant, decode_message, encode
from runner.pipeline.slots import SlotMemory
from runner.storage.prefetch import Prefetcher, is_remote

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from runner.audio.framing import Cutter
    from runner.audio.preparation import Preparation
    from runner.audio.reader import ClipReader
    from runner.pipeline.messages import ClipTask, DecodeOptions
    from runner.storage.prefetch import FetchedFile

    Array = NDArray[Any]

_OPEN_S = 0.5
"""Longest time that a slot is open before it is submitted: slow decoding must not keep a device waiting."""

_CONVERT_SAMPLES = 1 << 20
"""Samples of a slot that become float32 at a time."""

READY = b"ready"
"""Message of a decode process that has started well."""


class SlotWriter:
    """Fills one slot after another with windows.

    A slot holds windows of one kind.  At the model's rate it is int16 while all its windows are; the first float32 ones
    convert it to float32.
    """

    def __init__(self, memory: SlotMemory) -> None:
        self._memory = memory
        self._slot: int | None = None
        self._opened_at = 0.0
        self.kind = WindowKind("int16", (memory.window_samples,))
        self.rows = 0
        self.segments: list[Segment] = []

    @property
    def is_open(self) -> bool:
        """Whether it has a slot to write to."""
        return self._slot is not None

    @property
    def is_full(self) -> bool:
        """Whether no more windows fit."""
        return self.rows == self._memory.rows_of(self.kind)

    @property
    def is_due(self) -> bool:
        """Whether the slot holds windows and has been open for ``_OPEN_S``."""
        return self.rows > 0 and time.monotonic() - self._opened_at > _OPEN_S

    def open(self, slot: int) -> None:
        """Begin an empty slot."""
        self._slot, self.rows, self.segments = slot, 0, []
        self._opened_at = time.monotonic()

    def close(self) -> int:
        """Return the slot, and write to it no longer."""
        assert self._slot is not None
        slot, self._slot, self.rows = self._slot, None, 0
        return slot

    def takes(self, kind: WindowKind) -> bool:
        """Whether windows of a kind can join those in the slot."""
        return self.rows == 0 or kind == self.kind or kind.source_rate is self.kind.source_rate is None

    def put(self, job: int, first: int, windows: Array, kind: WindowKind) -> int:
        """Write as many of the windows as fit; return their number."""
        assert self._slot is not None
        if self.rows == 0:
            self.kind = kind
        elif self.kind != kind and kind.dtype == "float32":
            self._convert_to_float()
        count = min(self._memory.rows_of(self.kind) - self.rows, len(windows))
        target = self._memory.windows(self._slot, self.kind)[self.rows : self.rows + count]
        target[:] = windows[:count] if windows.dtype == target.dtype else scaled(windows[:count])
        self.segments.append(Segment(job, first, count))
        self.rows += count
        return count

    def _convert_to_float(self) -> None:
        assert self._slot is not None
        samples = self._memory.windows(self._slot, self.kind)
        self.kind = self.kind._replace(dtype="float32")
        floats = self._memory.windows(self._slot, self.kind)
        at_once = max(1, _CONVERT_SAMPLES // self._memory.window_samples)
        for end in range(self.rows, 0, -at_once):  # from the end: a float32 row lies beyond its int16 one
            start = max(0, end - at_once)
            floats[start:end] = scaled(samples[start:end].copy())


class BusyClock:
    """Counts the seconds between ``start`` and ``stop``, those since the last ``start`` included."""

    def __init__(self) -> None:
        self._before = 0.0
        self._since: float | None = None

    def start(self) -> None:
        """Begin, or resume, counting."""
        self._since = time.perf_counter()

    def stop(self) -> None:
        """Pause counting."""
        self._before, self._since = self.seconds, None

    @property
    def seconds(self) -> float:
        """Seconds so far; never less than before."""
        return self._before if self._since is None else self._before + time.perf_counter() - self._since


class _Decoder:
    """The loop of one decode process."""

    def __init__(
        self, connection: Connection, memory: SlotMemory, process: int, options: DecodeOptions, *, resample: bool
    ) -> None:
        self._connection = connection
        self._resample = resample
        self._memory = memory
        self._process = process
        self._options = options
        self._tasks: deque[tuple[ClipTask, bool]] = deque()
        self._flush_requested = False
        self._free_slots: deque[int] = deque()
        self._writer = SlotWriter(memory)
        self._finished: list[ClipResult] = []
        self._messages_done = 0
        self._busy = BusyClock()
        self._prefetcher = Prefetcher(options.prefetch, options.download_timeout_s)
        self._packed = PackedClips(options.prefetch, options.download_timeout_s)

    def run(self) -> None:
        while True:
            while not self._tasks:
                self._receive()
            task, ends_message = self._tasks.popleft()
            self._memory.set_current_job(self._process, task.job)
            self._memory.heartbeat(self._process)
            self._busy.start()
            result = self._decode(task)
            self._busy.stop()
            self._finished.append(result)
            self._messages_done += ends_message
            self._memory.set_current_job(self._process, -1)
            while self._connection.poll():
                self._receive()
            if (ends_message and not self._tasks) or self._writer.is_due:
                self._report()  # otherwise with the next slot: each report interrupts the worker

    def _receive(self) -> None:
        message = decode_message(self._connection.recv_bytes())
        if isinstance(message, SlotGrant):
            self._free_slots.append(message.slot)
        elif isinstance(message, Decode):
            final = len(message.tasks) - 1
            self._tasks.extend((task, index == final) for index, task in enumerate(message.tasks))
            self._flush_requested = message.last
            if not message.tasks and not self._tasks:
                self._report()
        else:
            raise SystemExit(0)

    def _report(self) -> None:
        """Submit the open slot if it is due; otherwise report progress, and the clips that are not in it."""
        if self._writer.rows and (self._writer.is_due or (self._flush_requested and not self._tasks)):
            self._submit_slot()
            return
        in_slot = {segment.job for segment in self._writer.segments} if self._writer.rows else set()
        done = [result for result in self._finished if result.job not in in_slot]
        self._finished = [result for result in self._finished if result.job in in_slot]
        self._send(None, [], done)

    def _decode(self, task: ClipTask) -> ClipResult:
        options = self._options
        rate: int | None = None
        channels: int | None = None
        try:
            with self._opened(task) as clip:
                rate, channels = clip.sample_rate, clip.channels
                blocks, cutter = self._blocks_and_cutter(clip)
                sent = 0
                if clip.known_duration_s > options.max_duration_s:
                    raise ClipError("too_long", f"{clip.known_duration_s:,.0f} s, more than dataset.max_duration_s")
                for windows in cut(blocks, cutter):
                    if clip.seconds > options.max_duration_s:
                        raise ClipError("too_long", f"longer than dataset.max_duration_s={options.max_duration_s:g}")
                    self._memory.heartbeat(self._process)
                    self._put(task.job, sent, windows, WindowKind.of(windows, clip.rate))
                    sent += len(windows)
                    if duration_s := clip.known_duration_s:
                        self._memory.set_fraction(self._process, min(1.0, clip.seconds / duration_s))
            if clip.warning and clip.warning.startswith("truncated") and options.on_truncated == "skip":
                raise ClipError("truncated", clip.warning.partition(": ")[2])
            if cutter.examples == 0:
                own = f"{cutter.samples} samples at {options.preparation.rate / 1000:g} kHz"
                raise ClipError("too_short", f"{own}; one example needs {options.framing.needed_samples}")
        except ClipError as error:
            return ClipResult.skipped(task.job, error.reason, error.detail, rate, channels)
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise  # the parent is gone
        except Exception as error:
            return ClipResult.skipped(task.job, "decode_error", f"{type(error).__name__}: {error}", rate, channels)
        reason = clip.warning.split(":", 1)[0] if clip.warning else None
        return ClipResult(
            task.job, True, reason, clip.warning, cutter.examples, clip.seconds, rate, channels, cutter.padded
        )

    def _blocks_and_cutter(self, clip: ClipReader) -> tuple[Iterator[Array], Cutter]:
        """Return a clip's blocks, resampled where the device does not do that, and what cuts them into windows."""
        framing, preparation = self._options.framing, clip.preparation
        if not self._resample and framing.is_plain and preparation.keeps_level:
            at_rate = window_filter(clip.rate, preparation, framing)
            if at_rate and self._memory.rows_of(WindowKind("float32", (at_rate.frames, 1), clip.rate)):
                return clip.blocks(), SourceWindowCutter(at_rate, preparation, framing)
        return iter(clip), WindowCutter(framing)

    @contextlib.contextmanager
    def _opened(self, task: ClipTask) -> Iterator[ClipReader]:
        """Open a clip; one in a store or a packed file becomes a local file first, while later ones are prefetched."""
        if not (is_packed(task.path) or is_remote(task.path)):
            with read_clip(task.path, task.start, task.end, preparation=self._preparation(task, task.path)) as clip:
                yield clip
            return
        with self._fetched(task) as file:
            preparation = self._preparation(task, file.path, file.suffix)
            with read_clip(file.path, task.start, task.end, preparation=preparation, suffix=file.suffix) as clip:
                yield clip

    def _preparation(self, task: ClipTask, path: str | bytes, suffix: str | None = None) -> Preparation:
        """Return how a clip is prepared; its level takes a reading of its own."""
        options = self._options
        if not options.preparation.needs_level:
            return options.preparation
        with read_clip(path, task.start, task.end, preparation=options.preparation, suffix=suffix) as clip:

            def check() -> None:
                self._memory.heartbeat(self._process)
                if clip.seconds > options.max_duration_s:
                    raise ClipError("too_long", f"longer than dataset.max_duration_s={options.max_duration_s:g}")

            return leveled(clip, check)

    def _fetched(self, task: ClipTask) -> FetchedFile:
        if is_packed(task.path):
            later = ((queued.job, queued.path) for queued, _ in self._tasks)
            return self._packed.open_clip(task.job, task.path, later, lambda: self._memory.heartbeat(self._process))
        self._prefetcher.begin(task.job, task.path)
        for queued, _ in self._tasks:
            if is_remote(queued.path) and not self._prefetcher.begin(queued.job, queued.path):
                break
        return self._prefetcher.pop(task.job, task.path, lambda: self._memory.heartbeat(self._process))

    def _put(self, job: int, first: int, windows: Array, kind: WindowKind) -> None:
        done = 0
        if len(windows) and not self._writer.takes(kind):
            self._submit_slot()
        while done < len(windows):
            if not self._writer.is_open:
                self._writer.open(self._wait_for_slot())
            done += self._writer.put(job, first + done, windows[done:], kind)
            if self._writer.is_full or self._writer.is_due:
                self._submit_slot()

    def _wait_for_slot(self) -> int:
        self._busy.stop()
        self._memory.heartbeat(self._process, waiting=True)
        while not self._free_slots:
            self._receive()
        self._memory.heartbeat(self._process)
        self._busy.start()
        return self._free_slots.popleft()

    def _submit_slot(self) -> None:
        segments, finished, self._finished = self._writer.segments, self._finished, []
        self._send(self._writer.close(), segments, finished)

    def _send(self, slot: int | None, segments: list[Segment], finished: Sequence[ClipResult]) -> None:
        if slot is None and not finished and not self._messages_done:
            return
        report = DecodeReport(
            slot=slot,
            kind=self._writer.kind,
            segments=segments,
            finished=list(finished),
            decoded=self._messages_done,
            rss_peak_mib=peak_own_mib(),
            cpu_s=time.process_time(),
            busy_s=self._busy.seconds,
        )
        self._messages_done = 0
        self._connection.send_bytes(encode(report))


def decode_main(connection: Connection, process: int, parent: int, options: DecodeOptions) -> None:
    """Run a decode process until it is asked to end, or the worker is gone."""
    ignore()
    die_with(parent)
    try:
        memory = SlotMemory.receive(connection)
        decoder = _Decoder(connection, memory, process, options, resample=connection.recv())
        connection.send_bytes(READY)
        decoder.run()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
