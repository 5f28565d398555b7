"""A map over threads that begins only a few calls ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def map_ahead(call: Callable[[T], R], items: Iterable[T], threads: int, ahead: int) -> Iterator[R]:
    """Yield the results in order, as ``map`` does, with at most ``ahead`` calls begun before their turn."""
    remaining = iter(items)
    pool = ThreadPoolExecutor(threads)
    try:
        begun: deque[Future[R]] = deque(pool.submit(call, item) for item in islice(remaining, ahead))
        while begun:
            result = begun.popleft().result()
            begun.extend(pool.submit(call, item) for item in islice(remaining, 1))
            yield result
    finally:
        pool.shutdown(cancel_futures=True)
