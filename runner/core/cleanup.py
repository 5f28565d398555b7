"""Work that is due when a command ends, registered by the code that makes it necessary."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar

from runner.core.interruption import begin_cleanup

_stack: ContextVar[ExitStack | None] = ContextVar("cleanup", default=None)


@contextmanager
def cleanup() -> Iterator[None]:
    """Run the callbacks that are registered inside it at its end, last first, also after an error."""
    with ExitStack() as stack:
        token = _stack.set(stack)
        try:
            yield
        finally:
            _stack.reset(token)
            begin_cleanup()


def at_cleanup(callback: Callable[[], object]) -> None:
    """Register a callback with the innermost ``cleanup`` under way; outside of any it is the caller's own business."""
    stack = _stack.get()
    if stack is not None:
        stack.callback(callback)
