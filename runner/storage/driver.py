"""Calls of fsspec's drivers that end without the driver: at a deadline, or when nobody needs the answer any more."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import wait
from functools import partial
from typing import TYPE_CHECKING, Any

from runner.core.interruption import CHECK_S, check_interruption

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

NO_ANSWER = "no answer, or only refusals"


def call_driver(
    filesystem: AbstractFileSystem,
    method: str | Callable[..., Any],
    *arguments: Any,
    deadline: float | None = None,
    check: Callable[[], object] = lambda: None,
    **options: Any,
) -> Any:
    """Call a method of a driver; cancel it at the deadline or when the command is interrupted.

    A driver that is not asynchronous can't be cancelled, and has only its own time limits.

    Args:
        filesystem: the driver's.
        method: the name of a method, or an asynchronous function of the file system and ``arguments``.
        arguments: for the method.
        deadline: by ``time.monotonic``; None for the driver's own time limits.
        check: called several times a second; the call is cancelled when it raises.
        options: for the method.

    Raises:
        Exception: of the driver, or of ``check``.
        TimeoutError: the deadline has passed.
        Interrupted: see ``check_interruption``.
    """
    if not getattr(filesystem, "async_impl", False):
        assert isinstance(method, str)
        return getattr(filesystem, method)(*arguments, **options)
    function = getattr(filesystem, f"_{method}") if isinstance(method, str) else partial(method, filesystem)
    future = asyncio.run_coroutine_threadsafe(function(*arguments, **options), filesystem.loop)
    try:
        while not wait([future], CHECK_S).done:
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError(NO_ANSWER)
            check()
            check_interruption()
        return future.result()
    finally:
        future.cancel()
