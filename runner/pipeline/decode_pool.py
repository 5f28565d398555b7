"""The decode pool: processes that decode clips into slots, and are replaced when they die."""

from __future__ import annotations

import atexit
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.audio.source_windows import SourceWindows, window_filter
from runner.core.errors import EngineError
from runner.devices.detection import DeviceType
from runner.devices.host import usable_cores
from runner.inference.memory import planned_decode_workers
from runner.pipeline.decode_process import DecodeProcess
from runner.pipeline.decode_worker import READY
from runner.pipeline.messages import (
    ClipResult,
    Decoded,
    DecodeOptions,
    DecodeReport,
    FilledSlot,
    SlotGrant,
    decode_message,
)
from runner.pipeline.slots import SlotMemory

if TYPE_CHECKING:
    from runner.audio.framing import Windows
    from runner.config.schema import RunConfig
    from runner.pipeline.messages import ClipTask

_NVIDIA_DRIVER = Path("/dev/nvidiactl")
"""It exists where the driver of NVIDIA's GPUs is loaded (Linux)."""

_MAX_FAILED_STARTS = 3

_MAX_CRASHES = 3
"""Decode processes that may die on a clip before it is skipped: one that was killed for another reason costs
nothing."""

_CHECK_EVERY_S = 0.2

_MAX_CHECK_S = 1.0
"""Longest silence that one check adds: while a person or a scheduler stops all processes (SIGSTOP), this one does not
check, and no decoder is to blame."""

_MAX_MESSAGES = 2
"""Messages of clips that a process has at most: later clips can still go to whichever is free."""

_CLIPS_PER_DECODER = 16
"""Least clips for each decode process of a small data set: one takes as long to start as several clips to decode."""


class DecodePool:
    """Decode processes behind one interface; used by one thread, except for ``release``.

    Args:
        options: configuration of decoding.
        workers: processes to start at once; they wait for ``open``.
        decode_timeout_s: time without progress after which a process is killed and its clip skipped.

    Attributes:
        deaths: decode processes that died and were replaced.
        rss_peak_mib: largest resident set of each process, by process id, without the slots.
        cpu_s: processor time of each, its start included.
        busy_s: time that each decoded.
    """

    def __init__(self, options: DecodeOptions, workers: int, decode_timeout_s: float = float("inf")) -> None:
        self._options = options
        self._decode_timeout_s = decode_timeout_s
        self._last_check = 0.0
        self._memory: SlotMemory | None = None
        self._resample = True
        self._free_slots: deque[int] = deque()
        self._grant_lock = threading.Lock()
        self._failed_starts = 0
        self._retries: list[tuple[ClipTask, int]] = []
        self.deaths = 0
        self.rss_peak_mib: dict[int, float] = {}
        self.cpu_s: dict[int, float] = {}
        self.busy_s: dict[int, float] = {}
        self._processes: list[DecodeProcess] = []
        atexit.register(self._kill_all)  # multiprocessing's own way is SIGTERM, which decode processes ignore
        for index in range(workers):
            self._processes.append(DecodeProcess(index, options))

    def __len__(self) -> int:
        return len(self._processes)

    def open(self, workers: int, spare_slots: int, rows: int, *, resample: bool = True) -> None:
        """Bring the pool to ``workers`` processes and give it its slots: one for each process and the spare ones.

        Args:
            workers: processes; those there already are kept.
            spare_slots: slots besides those being filled: waiting for a replica, or in one.
            rows: windows at the model's rate of a slot.
            resample: whether the processes resample; otherwise windows of ``source_windows.RATES`` keep their rate.
        """
        self._resample = resample
        self._processes = [
            process if process.process.is_alive() else self._restart(process) for process in self._processes
        ]
        workers = max(workers, len(self._processes))
        for index in range(len(self._processes), workers):
            self._processes.append(DecodeProcess(index, self._options))
        self._memory = SlotMemory(workers + spare_slots, rows, self._options.framing.window_samples, workers)
        self._free_slots.extend(range(self._memory.slots))
        for process in self._processes:
            process.attach(self._memory, resample=resample)
        self._grant_slots()

    @property
    def memory(self) -> SlotMemory:
        """The slots, once the pool is open."""
        assert self._memory is not None, "the pool is not open"
        return self._memory

    def windows(self, filled: FilledSlot) -> Windows | SourceWindows:
        """Return the windows of a filled slot; valid until its release."""
        windows = self.memory.windows(filled.slot, filled.kind)
        if filled.kind.source_rate is not None:
            at_rate = window_filter(filled.kind.source_rate, self._options.preparation, self._options.framing)
            assert at_rate is not None, "windows of this rate are resampled by decode processes"
            return SourceWindows(windows, at_rate, filled.rows)
        return windows[: filled.rows]

    @property
    def outstanding(self) -> int:
        """Clips in the pool that are not finished."""
        return sum(len(process.tasks) for process in self._processes) + len(self._retries)

    @property
    def has_room(self) -> bool:
        """Whether some process would take more clips now."""
        return any(process.messages < _MAX_MESSAGES for process in self._processes)

    def submit(self, tasks: Sequence[tuple[ClipTask, int]], *, last: bool) -> None:
        """Submit clips, each with its size in bytes, to the process with the least work.

        ``last`` says that no more will come for now, so that the process should submit its slot after them.
        """
        min(self._processes, key=lambda process: process.load).submit(tasks, last=last)

    def flush(self) -> None:
        """Have every process submit its slot once its clips are done; may be called repeatedly."""
        for process in self._processes:
            process.flush()

    def receive(self, timeout: float) -> Iterator[Decoded]:
        """Yield the slots and finished clips that come within ``timeout`` seconds; replace processes that died.

        Raises:
            EngineError: decode processes die at their start.
        """
        self._kill_hung()
        by_connection: dict[Any, DecodeProcess] = {process.connection: process for process in self._processes}
        for connection in wait(list(by_connection), timeout):
            process = by_connection[connection]
            try:
                data = process.connection.recv_bytes()
            except (EOFError, OSError):
                yield from self._replace_dead(process)
                continue
            if data == READY:
                process.is_ready, self._failed_starts = True, 0
                continue
            report = decode_message(data)
            assert isinstance(report, DecodeReport)
            yield self._handle_report(process, report)

    def release(self, slot: int) -> None:
        """Return a slot to the pool, from any thread: a process that waits for one gets it at once."""
        self._grant_slots(slot)

    def retries(self) -> list[tuple[ClipTask, int]]:
        """Return the clips that dead processes had not finished, each with its size; submit them again as new jobs."""
        retries, self._retries = self._retries, []
        return retries

    def close(self) -> None:
        """End all processes, killing those that do not end in a second, and free their memory."""
        for process in self._processes:
            process.send(None)
        for process in self._processes:
            process.process.join(timeout=1.0)
            process.close()
        self._processes.clear()
        atexit.unregister(self._kill_all)
        if self._memory is not None:
            self._memory.close()
            self._memory = None

    def _handle_report(self, process: DecodeProcess, report: DecodeReport) -> Decoded:
        pid = process.process.pid or 0
        self.rss_peak_mib[pid] = report.rss_peak_mib
        self.cpu_s[pid], self.busy_s[pid] = report.cpu_s, report.busy_s
        process.note_finished(report)
        if report.slot is None:
            return Decoded(None, report.finished)
        with self._grant_lock:
            process.slot, process.waits_for_slot = None, True
        self._grant_slots()
        rows = sum(segment.windows for segment in report.segments)
        return Decoded(FilledSlot(report.slot, report.kind, rows, report.segments), report.finished)

    def _grant_slots(self, *released: int) -> None:
        """Add slots that were released, and grant free ones to processes that wait."""
        with self._grant_lock:
            self._free_slots.extend(released)
            for process in self._processes:
                if not self._free_slots:
                    break
                if process.waits_for_slot:
                    process.slot, process.waits_for_slot = self._free_slots.popleft(), False
                    process.send(SlotGrant(process.slot))

    def _kill_hung(self) -> None:
        """Kill processes whose decoder makes no progress; ``receive`` then finds them dead."""
        now = time.monotonic()
        elapsed_s = now - self._last_check
        if elapsed_s < _CHECK_EVERY_S:
            return
        self._last_check = now
        for process in self._processes:
            heartbeat = self.memory.last_heartbeat(process.index)
            silent_s = process.silent_s(heartbeat, min(elapsed_s, _MAX_CHECK_S))
            if silent_s > self._decode_timeout_s and not process.timed_out:
                process.timed_out = True
                process.process.kill()

    def _restart(self, dead: DecodeProcess) -> DecodeProcess:
        self.deaths += 1
        dead.close()
        return DecodeProcess(dead.index, self._options)

    def _replace_dead(self, dead: DecodeProcess) -> Iterator[Decoded]:
        """Replace a process that died.

        Its clips are tried again, the current one as well, unless the process hung on it or several died on it.
        """
        dead.process.join(timeout=5.0)
        exitcode = dead.process.exitcode
        fatal = self.memory.current_job(dead.index)
        if not dead.is_ready:
            self._failed_starts += 1
            if self._failed_starts >= _MAX_FAILED_STARTS:
                raise EngineError(f"decode processes die at their start (exit status {exitcode}): see runner.log")
        with self._grant_lock:
            self._processes.remove(dead)
        replacement = self._restart(dead)
        replacement.attach(self.memory, resample=self._resample)
        with self._grant_lock:
            self._processes.append(replacement)
        self._grant_slots(*(() if dead.slot is None else (dead.slot,)))
        current = dead.tasks.pop(fatal, None)
        self._retries.extend(dead.tasks.values())
        if current is None:
            return
        task, size = current
        if not dead.timed_out and task.crashes + 1 < _MAX_CRASHES:
            self._retries.append((task._replace(crashes=task.crashes + 1), size))
            return
        reason, detail = "decoder_crashed", f"{_MAX_CRASHES} decode processes died on it (exit status {exitcode})"
        if dead.timed_out:
            reason, detail = "timeout", f"the decoder made no progress for {self._decode_timeout_s:g} s"
        yield Decoded(None, [ClipResult.skipped(task.job, reason, detail)])

    def _kill_all(self) -> None:
        for process in self._processes:
            process.process.kill()


def decode_options(config: RunConfig) -> DecodeOptions:
    """Return the part of a run's configuration that decode processes need."""
    return DecodeOptions(
        preparation=config.preparation,
        framing=config.framing,
        on_truncated=config.dataset.on_truncated,
        max_duration_s=config.dataset.max_duration_s,
        prefetch=config.dataset.prefetch,
        download_timeout_s=config.dataset.download_timeout_s,
    )


def decoders_for(planned: int, clips: int) -> int:
    """Return the number of decode processes for ``clips`` clips: the planned one, or fewer for a small data set."""
    return max(1, min(planned, -(-clips // _CLIPS_PER_DECODER)))


def initial_decode_processes(config: RunConfig, clips: int) -> int:
    """Decode processes to start while TensorFlow is imported, before the device is known.

    A GPU, which is expected where it is asked for or its driver is loaded, is fed from the first moment.
    """
    cores, name = usable_cores(), config.device.name
    planned = config.memory.decode_workers or 1
    if name == "gpu" or (name == "auto" and _NVIDIA_DRIVER.exists()):
        planned = planned_decode_workers(config.memory, DeviceType.GPU, cores)
    return decoders_for(min(planned, max(1, cores // 2)), clips)
