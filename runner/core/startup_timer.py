"""The time that a worker takes to start."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


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
