"""The worker's entry: standard output becomes events, signals end it in order, the result is written."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import IO, Any

from runner.core.events import LOG_FORMAT, Events
from runner.core.failures import failure_of
from runner.core.files import write_atomic
from runner.core.printable import PrintableFormatter
from runner.core.readable import read_json
from runner.core.stop_signals import StopSignal
from runner.devices.host import host_facts, versions
from runner.engines.local import _carry_out

log = logging.getLogger("runner.engines.worker")

KILLED_STATUS = 3
"""Exit status of a worker that ended early because it was told to."""


def main(spec_path: str) -> int:
    """Carry out one spec; the exit status is 0 for a finished run, 3 for one told to stop, 1 for a failed one."""
    events = Events(_take_standard_output())
    handler = logging.StreamHandler()
    handler.setFormatter(PrintableFormatter(LOG_FORMAT))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    run_dir = Path(spec_path).parent.parent
    result: dict[str, Any] = {"host": host_facts(), "versions": versions(), "metrics": {}}
    stop = StopSignal(lambda: _end_at_once(run_dir, events))
    spec: dict[str, Any] = {}
    try:
        spec |= read_json(Path(spec_path))
        _carry_out(spec, run_dir, events, result, stop)
    except Exception as error:
        log.exception("the run failed")
        result["status"] = "failed"
        result["failure"] = {**failure_of(error)._asdict(), "signal": None}
    except SystemExit:  # what Ray makes of SIGTERM while it starts
        result["status"] = "killed"
    stop.begin(lambda: None)  # from here on nothing ends this process at once
    _tell(run_dir, events, result)
    if spec and spec["config"]["engine"]["name"] == "ray":
        from runner.engines.ray.cluster import disconnect

        disconnect()
    return {"finished": 0, "killed": KILLED_STATUS}.get(result["status"], 1)


def _tell(run_dir: Path, events: Events, result: dict[str, Any]) -> None:
    """Leave the result to the parent."""
    try:
        write_atomic(run_dir / "result.json", json.dumps(result, indent=2))
    except OSError as error:  # the parent is told in another way
        log.error("result.json could not be written: %s", error)
        if result["status"] == "finished":
            result |= {"status": "failed", "failure": {**failure_of(error)._asdict(), "signal": None}}
    events.send("end", status=result["status"], failure=result.get("failure"))


def _end_at_once(run_dir: Path, events: Events) -> None:
    """End this process, which has nothing under way; the system gives up its locks, and ends its decode processes."""
    _tell(run_dir, events, {"status": "killed", "metrics": {}})
    os._exit(KILLED_STATUS)


def _take_standard_output() -> IO[str]:
    """Keep standard output for events, and send what anything else prints to standard error."""
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return events
