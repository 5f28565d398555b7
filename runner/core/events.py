"""Events of the worker to the command, and the time that start-up takes."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

log = logging.getLogger(__name__)

LOG_FORMAT = "[%(asctime)s][%(levelname)s] %(message)s"
"""Of runner.log."""


class Events:
    """Sends events to the command; a command that is gone is no error here (standard input ends then).

    Attributes:
        warnings: those sent, for result.json.
    """

    def __init__(self, stream: IO[str]) -> None:
        self.warnings: list[str] = []
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

    def warn(self, message: str) -> None:
        """Log a warning, and send it, once however often it comes."""
        if message not in self.warnings:
            log.warning("%s", message)
            self.warnings.append(message)
            self.send("warning", message=message)


class StartupTimer:
    """Seconds of each step before the first clip: import, device, weights, compile, parity.

    Args:
        spawned_at: when the worker was started, in seconds since the epoch.
    """

    def __init__(self, spawned_at: float) -> None:
        self._spawned_at = spawned_at
        self.steps: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time a step."""
        start = time.perf_counter()
        yield
        self.add(name, time.perf_counter() - start)

    def add(self, name: str, seconds: float) -> None:
        """Record a step's seconds, on top of what it took before."""
        self.steps[name] = self.steps.get(name, 0.0) + seconds

    def metrics(self, ready_at: float) -> dict[str, float]:
        """Return startup_s (from the worker's start to a ready session, wall clock) and that of each step."""
        total = max(ready_at - self._spawned_at, 0.0)
        return {"startup_s": total, **{f"startup_{name}_s": value for name, value in self.steps.items()}}
