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
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from runner.files import write_atomic
from runner.terminal import RunProgress

log = logging.getLogger(__name__)

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
    """Counts Ctrl-C and SIGTERM instead of raising, and passes each on to ``on_signal``."""

    def __init__(self) -> None:
        self.count = 0
        self.signal = signal.SIGINT
        self.on_signal: Callable[[int], None] = lambda count: None

    @contextmanager
    def installed(self) -> Iterator[InterruptGuard]:
        """Handle the signals for as long as the context lasts (the main thread only; elsewhere nothing changes)."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @property
    def exit_status(self) -> int:
        """What the shell expects of a process that ended by this signal."""
        return 128 + int(self.signal)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        self.signal = signal.Signals(number)
        self.on_signal(self.count)


def run_worker(
    spec: dict[str, Any],
    run_dir: Path,
    progress: RunProgress,
    guard: InterruptGuard,
    started_worker: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Carry out ``spec`` in a fresh process and return its part of result.json.

    ``started_worker`` is called once the process runs: it takes seconds to be ready, which others can use.

    A worker that dies without a result gives one with ``status`` failed and a ``failure`` that names the signal or
    exit status, and holds its log's tail.
    """
    started = time.monotonic()
    last: dict[str, Any] = {}
    process = start_worker(spec, run_dir)
    started_worker()

    def ask_to_stop(count: int) -> None:
        if count == 1:
            log.warning("stopping: the shards under way are finished first (Ctrl-C again to stop at once)")
            _ask(process)
            grace = spec["config"]["engine"]["stop_grace_s"] + _ABANDON_GRACE_S
            timer = threading.Timer(grace, process.kill)
            timer.daemon = True
            timer.start()
        else:
            process.kill()

    guard.on_signal = ask_to_stop
    if guard.count:
        ask_to_stop(guard.count)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            event = json.loads(line)
            last = event if event["event"] == "end" else last
            _show(event, progress)
        status = process.wait()
    finally:
        guard.on_signal = lambda count: None
        if process.poll() is None:
            process.kill()
            process.wait()
        if process.stdin:
            process.stdin.close()
    result = _read_result(run_dir)
    if result is None or (status not in (0, 3) and result.get("status") != "failed"):
        failure = last.get("failure") or describe_death(status, run_dir)
        result = {**(result or {}), "status": "failed", "failure": failure}
    if result["status"] == "failed":
        failure = result.setdefault("failure", {})
        failure.setdefault("log_tail", log_tail(run_dir))
        if guard.count:
            result["status"] = "killed"
            result["failure"] = {"kind": "interrupted", "message": "stopped at once by the user", "signal": None}
    result["worker_s"] = time.monotonic() - started
    return result


def start_worker(spec: dict[str, Any], run_dir: Path) -> subprocess.Popen[str]:
    """Write spec.json and start the worker on it, in a process group of its own, its log going to runner.log."""
    folder = run_dir / ".runner"
    folder.mkdir(exist_ok=True)
    path = folder / "spec.json"
    write_atomic(path, json.dumps({**spec, "spawned_at": time.time()}, indent=2))
    (run_dir / "result.json").unlink(missing_ok=True)
    environment = {key: value for key, value in os.environ.items() if key != "HYDRA_FULL_ERROR"}
    environment.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent.parent), environment.get("PYTHONPATH", "")])
    environment["PYTHONUNBUFFERED"] = "1"
    # NumPy's products in the decode processes: each is one of several, and waiting threads of OpenBLAS spin.
    # TensorFlow's own threads know nothing of these.
    environment |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with (run_dir / "runner.log").open("ab") as worker_log:
        return subprocess.Popen(
            [sys.executable, "-m", "runner.worker", str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=worker_log,
            text=True,
            encoding="utf-8",
            env=environment,
            start_new_session=True,
        )


def describe_death(status: int, run_dir: Path) -> dict[str, Any]:
    """The ``failure`` of a worker that ended with ``status`` and left no result."""
    tail = log_tail(run_dir)
    if status >= 0:
        message = f"the worker ended with exit status {status} and left no result; see runner.log"
        return {"kind": "exit", "message": message, "signal": None, "log_tail": tail}
    name = signal.Signals(-status).name
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
    """The last lines of runner.log."""
    try:
        with (run_dir / "runner.log").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 16_384))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return "\n".join(lines[-_LOG_TAIL_LINES:])


def _ask(process: subprocess.Popen[str]) -> None:
    try:
        assert process.stdin is not None
        process.stdin.write("stop\n")
        process.stdin.flush()
    except (OSError, ValueError):
        return


def _show(event: dict[str, Any], progress: RunProgress) -> None:
    kind = event["event"]
    if kind == "phase":
        progress.phase(_PHASES[event["name"]])
    elif kind == "progress":
        under_way = event.get("clips_under_way", 0.0)
        counts = event["clips"], event["audio_s"], event["elapsed_s"], event["skipped"], event["session_clips"]
        progress.counts(*counts, under_way=under_way)
    elif kind == "warning":
        log.warning("%s", event["message"])


def _read_result(run_dir: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads((run_dir / "result.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return found
