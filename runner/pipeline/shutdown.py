"""The early end of a pipeline, by a thread's error or on request, and queues that it unblocks."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

POLL_S = 0.1
"""Longest time that a blocked thread takes to notice an error of another."""


class Shutdown:
    """Whether a run ends early: an error ends all its threads, a request lets the shards in progress finish.

    Args:
        timeout_s: seconds that the shards in progress may still take after a request.
        on_error: called in the thread that failed, once for each error.

    Attributes:
        error: the first error of any thread.
    """

    def __init__(self, timeout_s: float, on_error: Callable[[], None]) -> None:
        self._timeout_s = timeout_s
        self._on_error = on_error
        self._deadline: float | None = None
        self._failed = threading.Event()
        self.error: BaseException | None = None

    def request(self) -> None:
        """Ask for an early end; a second request changes nothing."""
        if self._deadline is None:
            self._deadline = time.monotonic() + self._timeout_s

    @property
    def requested(self) -> bool:
        """Whether an early end was asked for."""
        return self._deadline is not None

    @property
    def is_overdue(self) -> bool:
        """Whether the time after a request is over."""
        return self._deadline is not None and time.monotonic() > self._deadline

    @property
    def has_failed(self) -> bool:
        """Whether a thread has had an error."""
        return self._failed.is_set()

    def fail(self, error: BaseException) -> None:
        """End the run with an error; the first one counts."""
        if self.error is None:
            self.error = error
        self._failed.set()
        self._on_error()

    def guard(self, function: Callable[..., object], *arguments: object) -> None:
        """Call a function, and end the run with any error of it."""
        try:
            function(*arguments)
        except BaseException as error:
            self.fail(error)


class Channel(Generic[T]):
    """A bounded queue between threads; once the run has failed, it drops what is put and gives nothing.

    Args:
        size: messages that may wait in it.
        shutdown: the run's.
    """

    def __init__(self, size: int, shutdown: Shutdown) -> None:
        self._queue: queue.Queue[T | None] = queue.Queue(size)
        self._shutdown = shutdown

    def put(self, message: T | None) -> None:
        """Wait for room, and add a message; None tells one reader that there will be no more."""
        while not self._shutdown.has_failed:
            try:
                self._queue.put(message, timeout=POLL_S)
                return
            except queue.Full:
                continue

    def get(self) -> T | None:
        """Wait for the next message; None at the end, or when the run has failed."""
        while not self._shutdown.has_failed:
            try:
                return self._queue.get(timeout=POLL_S)
            except queue.Empty:
                continue
        return None
