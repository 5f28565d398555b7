"""The worker's process: its start, its signals, its events, and the reason for its end."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from runner.contract.events import EndEvent, PhaseEvent, ProgressEvent, WarningEvent, parse_event
from runner.contract.files import read_worker_result
from runner.contract.result import WorkerResult
from runner.core.errors import ResumeError
from runner.core.failures import Failure
from runner.core.layout import RunLayout
from runner.core.printable import printable
from runner.core.stop_signals import REQUEUE_SIGNAL, STOP_SIGNALS, Requests, install_handler, leave_terminal
from runner.jobs.spawn import start_worker

if TYPE_CHECKING:
    from runner.contract.events import Event
    from runner.contract.spec import RunSpec
    from runner.jobs.terminal import RunProgress

log = logging.getLogger(__name__)

_RAYS_STATUS = 1
"""Exit status of a driver that Ray ends on the spot because its cluster is gone."""

_LOG_TAIL_LINES = 40

_ABANDON_GRACE_S = 10.0
"""Seconds past its own grace that a worker may take to stop before it is killed."""

_PHASES = {
    "lock": "starting",
    "import": "importing TensorFlow",
    "device": "looking for devices",
    "weights": "loading weights and compiling",
    "parity": "checking the device's numbers",
    "embed": "embedding",
    "cluster": "connecting to Ray",
    "repeat": "embedding again, to measure",
    "curve": "measuring batch sizes",
    "trace": "tracing a few batches",
}


class InterruptGuard:
    """Counts Ctrl-C, SIGTERM and SIGHUP instead of raising, and passes each on to ``on_signal``."""

    def __init__(self) -> None:
        self._requests = Requests()
        self.on_signal: Callable[[int], None] = finish_step

    @contextmanager
    def installed(self) -> Iterator[InterruptGuard]:
        """Handle the signals for as long as the context lasts (the main thread only; elsewhere nothing changes)."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = install_handler(self._handle)
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @property
    def count(self) -> int:
        """How often the user asked for an end."""
        return self._requests.count

    @property
    def exit_status(self) -> int:
        """The shell's exit status for a process that ended by this signal."""
        return 128 + int(self._requests.signal)

    @property
    def requeues(self) -> bool:
        """Whether the job is to be queued again, by the handler that is restored after the context."""
        return self.count > 0 and self._requests.signal == REQUEUE_SIGNAL

    def pass_on(self) -> None:
        """Raise the signal again, after the context, for the handler that is restored by then."""
        signal.raise_signal(self._requests.signal)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == getattr(signal, "SIGHUP", None):
            leave_terminal()
        if self._requests.add(number):
            self.on_signal(self.count)


def finish_step(count: int) -> None:
    """Without a worker: finish the current step, which takes seconds, unless an end is asked for again."""
    if count > 1:
        raise KeyboardInterrupt
    log.warning("finishing the current step (press Ctrl-C again to abort)")


class _Ending:
    """Ends a worker: a request first, a kill if it takes too long or is to end at once.

    Attributes:
        killed: why the worker was killed, if it was.
    """

    def __init__(self, process: subprocess.Popen[str], grace_s: float) -> None:
        self._process, self._grace_s = process, grace_s
        self.killed: str | None = None

    def __call__(self, count: int) -> None:
        """An end was asked for, for the ``count``-th time."""
        if count > 1:
            self._kill("stopped at once by the user")
            return
        log.warning("stopping after the current shards (press Ctrl-C again to abort)")
        _request_stop(self._process)
        late = (
            f"stopped by the user; the shards under way were not done in engine.shutdown_timeout_s={self._grace_s:g} s"
        )
        timer = threading.Timer(self._grace_s + _ABANDON_GRACE_S, self._kill, (late,))
        timer.daemon = True
        timer.start()

    def _kill(self, why: str) -> None:
        if self._process.poll() is None:
            self.killed = self.killed or why
            self._process.kill()


def run_worker(
    spec: RunSpec,
    progress: RunProgress,
    guard: InterruptGuard,
    on_started: Callable[[], None] = lambda: None,
    on_event: Callable[[Event], None] = lambda event: None,
) -> WorkerResult:
    """Carry out ``spec`` in a fresh process and return its result.

    The result of a worker that dies without one is failed, with the signal or exit status and the log's tail; that of
    one that was killed because the user stopped the run is interrupted.

    Args:
        spec: the run's.
        progress: shows the worker's counts.
        guard: counts requests to end.
        on_started: called once the process runs, which then takes seconds to be ready.
        on_event: called with each event of the worker; must not take long.
    """
    started, run_dir = time.monotonic(), spec.run_dir
    end: EndEvent | None = None
    process = start_worker(spec)
    ending = _Ending(process, spec.config.engine.shutdown_timeout_s)
    guard.on_signal = ending
    try:
        if guard.count:
            ending(guard.count)
        on_started()
        assert process.stdout is not None
        for line in process.stdout:
            if event := parse_event(line):
                end = event if isinstance(event, EndEvent) else end
                on_event(event)
                with suppress(OSError):  # a terminal that is gone ends no run
                    _handle_event(event, progress)
        status = process.wait()
    finally:
        guard.on_signal = finish_step
        if process.poll() is None:
            process.kill()
            process.wait()
        if process.stdin:
            process.stdin.close()
    killed = ending.killed
    if guard.count and spec.config.engine.name == "ray" and status == _RAYS_STATUS and end is None:
        killed = "stopped at once: Ray's own processes were told to stop, too, and ended the run's"
    return replace(_outcome(status, end, run_dir, killed), worker_s=time.monotonic() - started)


def _outcome(status: int, end: EndEvent | None, run_dir: Path, killed: str | None) -> WorkerResult:
    """Return the result that a worker left, or one with the reason for its end.

    Args:
        status: its exit status, negative for a signal.
        end: its last event, if there was one.
        run_dir: the run's folder.
        killed: why the command killed it, if it did.
    """
    result = _read_result(run_dir)
    if result is not None and (status in (0, 3) or result.status == "failed"):
        if result.status != "failed" or result.failure is None:
            return result
        return replace(result, failure=replace(result.failure, log_tail=log_tail(run_dir)))
    result = result or WorkerResult(status="failed")
    if killed is None and -status in STOP_SIGNALS:
        killed = f"the worker was stopped at once by {_signal_name(-status)}"
    elif status not in (-signal.SIGKILL, _RAYS_STATUS):
        killed = None
    if killed is not None:
        failure = Failure("interrupted", killed, log_tail=log_tail(run_dir))
        return replace(result, status="interrupted", failure=failure)
    failure = (end.failure if end else None) or describe_exit(status, run_dir)
    return replace(result, status="failed", failure=replace(failure, log_tail=log_tail(run_dir)))


def describe_exit(status: int, run_dir: Path) -> Failure:
    """Return the failure of a worker that ended with ``status`` and left no result."""
    tail = log_tail(run_dir)
    if status >= 0:
        message = f"the worker ended with exit status {status} and left no result that can be read: "
        message += "see runner.log, and rerun the same command to resume"
        return Failure("exit", message, log_tail=tail)
    name = _signal_name(-status)
    kind = "signal"
    message = f"the worker was killed by {name}"
    if name == "SIGKILL":
        kind = "out_of_memory"
        message += ": most likely the system ran out of memory; try memory=conservative"
    if name == "SIGABRT" and ("bad_alloc" in tail or "out of memory" in tail.lower()):
        kind = "out_of_memory"
        message += ", because it got no more memory; try memory=conservative"
    message += "; shards that are done stay, and the run can go on from them"
    return Failure(kind, message, name, tail)


def log_tail(run_dir: Path) -> str:
    """The last lines of runner.log, as text that is safe to show."""
    try:
        with RunLayout(run_dir).log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 16_384))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return "\n".join(map(printable, lines[-_LOG_TAIL_LINES:]))


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # the real-time signals have no names
        return f"signal {number}"


def _request_stop(process: subprocess.Popen[str]) -> None:
    try:
        assert process.stdin is not None
        process.stdin.write("stop\n")
        process.stdin.flush()
    except (OSError, ValueError):
        return


def _handle_event(event: Event, progress: RunProgress) -> None:
    if isinstance(event, PhaseEvent):
        progress.phase(event.text or _PHASES[event.name])
    elif isinstance(event, ProgressEvent):
        counts = event.clips, event.audio_s, event.elapsed_s, event.skipped, event.attempt_clips
        progress.counts(*counts, under_way=event.clips_under_way)
    elif isinstance(event, WarningEvent):
        log.warning("%s", event.message)


def _read_result(run_dir: Path) -> WorkerResult | None:
    path = RunLayout(run_dir).result
    try:
        return read_worker_result(path) if path.exists() else None
    except ResumeError as error:
        log.warning("%s", error)
        return None
