"""Starts the worker, relays what it tells, and says how it ended."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from runner.core.files import make_folder, remove, write_atomic
from runner.core.paths import PACKAGE
from runner.core.printable import printable
from runner.core.stop_signals import REQUEUE_SIGNAL, STOP_SIGNALS, Requests, held_back, leave_terminal, take

if TYPE_CHECKING:
    from runner.jobs.terminal import RunProgress

log = logging.getLogger(__name__)

_RAYS_STATUS = 1
"""Of a driver that Ray ends on the spot because its cluster is gone."""

WORKER = (sys.executable, "-m", "runner.engines.worker")

_LOG_TAIL_LINES = 40

_ABANDON_GRACE_S = 10.0
"""How long past its own grace a worker that was told to stop may take before it is killed."""

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
        self.on_signal: Callable[[int], None] = give_up

    @contextmanager
    def installed(self) -> Iterator[InterruptGuard]:
        """Handle the signals for as long as the context lasts (the main thread only; elsewhere nothing changes)."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = take(self._handle)
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @property
    def count(self) -> int:
        """How often an end was asked for."""
        return self._requests.count

    @property
    def exit_status(self) -> int:
        """What the shell expects of a process that ended by this signal."""
        return 128 + int(self._requests.signal)

    @property
    def requeues(self) -> bool:
        """Whether the job is to be queued again, by who handles the signal after the context."""
        return self.count > 0 and self._requests.signal == REQUEUE_SIGNAL

    def pass_on(self) -> None:
        """Have the signal handled by who handles it now, after the context."""
        signal.raise_signal(self._requests.signal)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == getattr(signal, "SIGHUP", None):
            leave_terminal()
        if self._requests.add(number):
            self.on_signal(self.count)


def give_up(count: int) -> None:
    """Without a worker: what is under way takes seconds and is finished, unless an end is asked for again."""
    if count > 1:
        raise KeyboardInterrupt
    log.warning("what is under way is finished first (Ctrl-C again to stop at once)")


class _Ending:
    """Ends a worker: it is asked to at first, and killed if it takes too long or is to end at once."""

    def __init__(self, process: subprocess.Popen[str], grace_s: float) -> None:
        self._process, self._grace_s = process, grace_s
        self.killed: str | None = None
        """Why the worker was killed, if it was."""

    def __call__(self, count: int) -> None:
        """An end was asked for, for the ``count``-th time."""
        if count > 1:
            self._kill("stopped at once by the user")
            return
        log.warning("stopping after the current shards (press Ctrl-C again to abort)")
        _ask(self._process)
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
    spec: dict[str, Any],
    run_dir: Path,
    progress: RunProgress,
    guard: InterruptGuard,
    on_started: Callable[[], None] = lambda: None,
    told: Callable[[dict[str, Any]], None] = lambda event: None,
) -> dict[str, Any]:
    """Carry out ``spec`` in a fresh process and return its part of result.json.

    ``on_started`` is called once the process runs: it takes seconds to be ready, which others can use.  ``told`` is
    called with each event of the worker, and must not take long.

    A worker that dies without a result gives one with ``status`` failed and a ``failure`` that names the signal or
    exit status, and holds its log's tail; one that was killed because an end was asked for has the status killed.
    """
    started = time.monotonic()
    last: dict[str, Any] = {}
    process = start_worker(spec, run_dir)
    ending = _Ending(process, spec["config"]["engine"]["shutdown_timeout_s"])
    guard.on_signal = ending
    try:
        if guard.count:
            ending(guard.count)
        on_started()
        assert process.stdout is not None
        for line in process.stdout:
            if event := _event(line):
                last = event if event["event"] == "end" else last
                told(event)
                with suppress(OSError):  # a terminal that is gone ends no run
                    _handle_event(event, progress)
        status = process.wait()
    finally:
        guard.on_signal = give_up
        if process.poll() is None:
            process.kill()
            process.wait()
        if process.stdin:
            process.stdin.close()
    killed = ending.killed
    if guard.count and spec["config"]["engine"].get("name") == "ray" and status == _RAYS_STATUS and not last:
        killed = "stopped at once: Ray's own processes were told to stop, too, and ended the run's"
    return {**_outcome(status, last, run_dir, killed), "worker_s": time.monotonic() - started}


def _outcome(status: int, last: dict[str, Any], run_dir: Path, killed: str | None) -> dict[str, Any]:
    """The result that a worker left, or one that says how it ended.

    Args:
        status: its exit status, negative for a signal.
        last: its event ``end``, if there was one.
        run_dir: the run's folder.
        killed: why it was killed by us, if it was.
    """
    result = _read_result(run_dir)
    if result is not None and (status in (0, 3) or result["status"] == "failed"):
        if result["status"] == "failed":
            result.setdefault("failure", {}).setdefault("log_tail", log_tail(run_dir))
        return result
    result = result or {}
    if killed is None and -status in STOP_SIGNALS:
        killed = f"the worker was stopped at once by {_signal_name(-status)}"
    elif status not in (-signal.SIGKILL, _RAYS_STATUS):
        killed = None
    if killed is not None:
        failure = {"kind": "interrupted", "message": killed, "signal": None, "log_tail": log_tail(run_dir)}
        return {**result, "status": "killed", "failure": failure}
    failure = {"log_tail": log_tail(run_dir), **(last.get("failure") or describe_exit(status, run_dir))}
    return {**result, "status": "failed", "failure": failure}


def start_worker(spec: dict[str, Any], run_dir: Path) -> subprocess.Popen[str]:
    """Write spec.json and start the worker on it, in a process group of its own, its log going to runner.log."""
    folder = run_dir / ".runner"
    make_folder(folder)
    path = folder / "spec.json"
    write_atomic(path, json.dumps({**spec, "spawned_at": time.time()}, indent=2))
    remove(run_dir / "result.json")  # for good: an old one must not tell of what is done from now on
    environment = {key: value for key, value in os.environ.items() if key != "HYDRA_FULL_ERROR"}
    environment.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
    environment["PYTHONPATH"] = os.pathsep.join([str(PACKAGE.parent), environment.get("PYTHONPATH", "")])
    environment["PYTHONUNBUFFERED"] = "1"
    # NumPy's products in the decode processes: each is one of several, and waiting threads of OpenBLAS spin.
    # TensorFlow's own threads know nothing of these.
    environment |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with (run_dir / "runner.log").open("ab") as worker_log, held_back():  # until the worker can handle them
        return subprocess.Popen(
            [*WORKER, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=worker_log,
            text=True,
            encoding="utf-8",
            errors="replace",
            env=environment,
            start_new_session=True,
        )


def describe_exit(status: int, run_dir: Path) -> dict[str, Any]:
    """The ``failure`` of a worker that ended with ``status`` and left no result."""
    tail = log_tail(run_dir)
    if status >= 0:
        message = f"the worker ended with exit status {status} and left no result that can be read: "
        message += "see runner.log, and rerun the same command to resume"
        return {"kind": "exit", "message": message, "signal": None, "log_tail": tail}
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
    return {"kind": kind, "message": message, "signal": name, "log_tail": tail}


def log_tail(run_dir: Path) -> str:
    """The last lines of runner.log, as text that is safe to show."""
    try:
        with (run_dir / "runner.log").open("rb") as file:
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


def _event(line: str) -> dict[str, Any] | None:
    """An event of the worker; None for what else was printed, and for a line that its death cut off."""
    try:
        event = json.loads(line)
    except ValueError:
        log.debug("the worker printed %r", line)
        return None
    return event if isinstance(event, dict) and "event" in event else None


def _ask(process: subprocess.Popen[str]) -> None:
    try:
        assert process.stdin is not None
        process.stdin.write("stop\n")
        process.stdin.flush()
    except (OSError, ValueError):
        return


def _handle_event(event: dict[str, Any], progress: RunProgress) -> None:
    kind = event["event"]
    if kind == "phase":
        progress.phase(event.get("text") or _PHASES[event["name"]])
    elif kind == "progress":
        under_way = event.get("clips_under_way", 0.0)
        counts = event["clips"], event["audio_s"], event["elapsed_s"], event["skipped"], event["session_clips"]
        progress.counts(*counts, under_way=under_way)
    elif kind == "warning":
        log.warning("%s", event["message"])


def _read_result(run_dir: Path) -> dict[str, Any] | None:
    try:
        found = json.loads((run_dir / "result.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        log.warning("%s can't be read (%s)", run_dir / "result.json", error)
        return None
    return found if isinstance(found, dict) and "status" in found else None
