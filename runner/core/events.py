"""Events of the worker to the command, and the time that start-up takes."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

log = logging.getLogger("runner.engines.worker")

LOG_FORMAT = "[%(asctime)s][%(levelname)s] %(message)s"
"""Of runner.log."""


class Events:
    """The line to the parent; a parent that is gone is no error here (standard input's end tells of it)."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def send(self, event: str, **values: Any) -> None:
        """Send one event."""
        with self._lock:
            try:
                self._stream.write(json.dumps({"event": event, **values}) + "\n")
                self._stream.flush()
            except (OSError, ValueError):
                return


class StartupTimer:
    """Seconds of each step before the first clip: import, device, weights, compile, parity."""

    def __init__(self, spawned_at: float) -> None:
        self._spawned_at = spawned_at
        self.parts: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time a step."""
        start = time.perf_counter()
        yield
        self.add(name, time.perf_counter() - start)

    def add(self, name: str, seconds: float) -> None:
        """Record a step's seconds, on top of what it took before."""
        self.parts[name] = self.parts.get(name, 0.0) + seconds

    def metrics(self, ready_at: float) -> dict[str, float]:
        """startup_s (from the worker's start to a ready session, wall clock) and its parts."""
        whole = max(ready_at - self._spawned_at, 0.0)
        return {"startup_s": whole, **{f"startup_{name}_s": value for name, value in self.parts.items()}}


def warn(message: str, events: Events, result: dict[str, Any]) -> None:
    """Tell a warning to the log, the person and result.json."""
    log.warning("%s", message)
    events.send("warning", message=message)
    result["warnings"].append(message)
