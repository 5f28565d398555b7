"""The worker's entry: standard output becomes events, signals end it in order, the result is written.

Events for the command go to standard output, a JSON object a line; ``stop`` on standard input, or its end, asks for an
early end.  Everything else that is printed goes to standard error, which the command points at runner.log.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING

from runner.contract.events import EndEvent, Events
from runner.contract.files import read_spec, write_result
from runner.contract.result import WorkerResult
from runner.core.failures import failure_of
from runner.core.layout import RunLayout
from runner.core.printable import LOG_FORMAT, PrintableFormatter
from runner.core.stop_signals import StopSignal
from runner.devices.host import host_facts, versions
from runner.inference.tensorflow_import import import_tensorflow

if TYPE_CHECKING:
    from runner.contract.result import Status
    from runner.contract.spec import RunSpec
    from runner.core.failures import Failure
    from runner.engines.common import Engine

log = logging.getLogger(__name__)

INTERRUPTED_STATUS = 3
"""Exit status of a worker that ended early because the user stopped the run."""


def main(spec_path: str | None = None) -> int:
    """Carry out one spec; the exit status is 0 for a finished run, 3 for an interrupted one, 1 for a failed one.

    Without a spec the worker prepares for one, whose path, as JSON, is then the first line of standard input.
    """
    if spec_path is None:
        spec_path = _await_spec()
        if not spec_path:  # the command needs no other worker
            return 0
    events = Events(_redirect_standard_output())
    handler = logging.StreamHandler()
    handler.setFormatter(PrintableFormatter(LOG_FORMAT))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    run_dir = Path(spec_path).parent.parent
    stop = StopSignal(lambda: _end_at_once(run_dir, events))
    engine: Engine | None = None
    failure: Failure | None = None
    status: Status = "failed"
    try:
        engine = _make_engine(read_spec(Path(spec_path)), events, stop)
        status = engine.run()
    except Exception as error:
        log.exception("the run failed")
        failure = failure_of(error)
    except SystemExit:  # Ray makes this of SIGTERM while it starts
        status = "interrupted"
    stop.begin(lambda: None)  # from here on nothing ends this process at once
    status = _report(run_dir, events, _result(status, failure, engine, events))
    if engine is not None:
        engine.close()
    return {"finished": 0, "interrupted": INTERRUPTED_STATUS}.get(status, 1)


def _make_engine(spec: RunSpec, events: Events, stop: StopSignal) -> Engine:
    if spec.config.engine.name == "ray":
        from runner.engines.ray.driver import RayEngine

        return RayEngine(spec, events, stop)
    from runner.engines.local import LocalEngine

    return LocalEngine(spec, events, stop)


def _result(status: Status, failure: Failure | None, engine: Engine | None, events: Events) -> WorkerResult:
    """Compose the worker's result of what the engine came to, as far as it came."""
    result = WorkerResult(
        status=status, failure=failure, host=host_facts(), versions=versions(), warnings=tuple(events.warnings)
    )
    if engine is None:
        return result
    return replace(result, metrics=engine.metrics, startup=engine.startup, stats=engine.stats, repeats=engine.repeats)


def _report(run_dir: Path, events: Events, result: WorkerResult) -> Status:
    """Write result.json and tell the command the status, which is failed where a finished run can't be written."""
    try:
        write_result(RunLayout(run_dir).result, result)
    except OSError as error:  # the command learns it from the event
        log.error("result.json could not be written: %s", error)
        if result.status == "finished":
            result = replace(result, status="failed", failure=failure_of(error))
    events.send(EndEvent(result.status, result.failure))
    return result.status


def _end_at_once(run_dir: Path, events: Events) -> None:
    """End this process, which has no work in progress; the system releases its locks and ends its decode processes."""
    _report(run_dir, events, WorkerResult(status="interrupted"))
    os._exit(INTERRUPTED_STATUS)


def _await_spec() -> str:
    """Wait for a run, while TensorFlow is imported; return the path of its spec, empty where none comes."""
    importlib.import_module("runner.engines.local")  # not at the same time: both import NumPy
    importlib.import_module("cattrs.preconf.json")  # which the spec is read with
    threading.Thread(target=_import_ahead, name="import", daemon=True).start()
    line = sys.stdin.readline()
    if not line:
        return ""
    spec_path = str(json.loads(line))
    _move_log(RunLayout(Path(spec_path).parent.parent).log)
    print("this worker was started ahead of its run", file=sys.stderr, flush=True)
    return spec_path


def _import_ahead() -> None:
    with contextlib.suppress(Exception):  # the run's own import reports it
        import_tensorflow(freeze=True)


def _move_log(path: Path) -> None:
    """Send standard error to a log, with what the file that it went to so far has."""
    with path.open("ab") as log_file:
        os.lseek(2, 0, os.SEEK_SET)
        while earlier := os.read(2, 1 << 16):
            log_file.write(earlier)
        log_file.flush()
        os.dup2(log_file.fileno(), 2)


def _redirect_standard_output() -> IO[str]:
    """Keep standard output for events, and send whatever else is printed to standard error."""
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return events
