"""What an interrupted command still asks of stores: its threads nothing, its cleanup little."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fsspec.asyn import AsyncFileSystem

from runner.core.interruption import Interrupted, begin_cleanup, begin_command, cleanup_limit_s, interrupt
from runner.storage.driver import call_driver
from runner.storage.retry import with_retries
from tests.commands import wait_until

LIMIT_S = 60.0


@pytest.fixture(autouse=True)
def _a_command() -> Iterator[None]:
    yield
    begin_command()


class Silent(AsyncFileSystem):
    """A store that takes requests and answers none of them in time."""

    cachable = False

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.canceled = threading.Event(), threading.Event()

    async def _cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        self.asked.set()
        try:
            await asyncio.sleep(LIMIT_S)
        except asyncio.CancelledError:
            self.canceled.set()
            raise
        return b""


class Throttling:
    """A request that is refused a number of times."""

    def __init__(self, times: float) -> None:
        self.left = times
        self.asked = threading.Event()

    def __call__(self) -> str:
        self.asked.set()
        self.left -= 1
        if self.left >= 0:
            raise OSError(16, "Slow down")
        return "done"


def error_of_interrupted(call: Callable[[], object], asked: threading.Event) -> BaseException | None:
    """What a thread raises that is interrupted once it has asked a store."""
    with ThreadPoolExecutor(1) as threads:
        result = threads.submit(call)
        assert asked.wait(30)
        interrupt()
        return result.exception(timeout=30)


def test_a_thread_does_not_wait_for_a_store_that_throttles() -> None:
    request = Throttling(float("inf"))
    error = error_of_interrupted(lambda: with_retries(request, LIMIT_S), request.asked)
    assert isinstance(error, Interrupted)


def test_a_thread_does_not_wait_for_a_store_that_is_silent() -> None:
    store = Silent()
    error = error_of_interrupted(
        lambda: with_retries(lambda: call_driver(store, "cat_file", "name"), LIMIT_S), store.asked
    )
    assert isinstance(error, Interrupted)
    assert store.canceled.wait(30)


def test_a_thread_makes_no_further_request() -> None:
    interrupt()
    request = Throttling(0)
    with ThreadPoolExecutor(1) as threads, pytest.raises(Interrupted):
        threads.submit(with_retries, request, LIMIT_S).result(timeout=30)
    assert not request.asked.is_set()


def test_the_main_thread_and_threads_of_the_cleanup_still_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runner.storage.retry.FIRST_PAUSE_S", 0.001)
    interrupt()
    assert with_retries(Throttling(2), LIMIT_S) == "done"
    begin_cleanup()
    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(with_retries, Throttling(2), LIMIT_S).result(timeout=30) == "done"


def test_requests_of_the_cleanup_share_one_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runner.core.interruption._CLEANUP_S", 0.5)
    assert cleanup_limit_s(LIMIT_S) == LIMIT_S
    interrupt()
    assert 0 < cleanup_limit_s(LIMIT_S) <= 0.5
    wait_until(lambda: cleanup_limit_s(LIMIT_S) == 0, "the cleanup has no end", within_s=10)


def test_a_second_interruption_ends_the_cleanup() -> None:
    interrupt()
    assert 0 < cleanup_limit_s(LIMIT_S) <= 10
    interrupt()
    assert cleanup_limit_s(LIMIT_S) == 0
