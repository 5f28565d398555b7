"""Errors of the command line: one line each on standard error."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Protocol

from runner.core.errors import RunnerError
from runner.core.printable import printable
from runner.core.redact import without_credentials


class SubCommand(Protocol):
    """The ``main`` of a sub-command."""

    def __call__(self, arguments: Sequence[str] | None = None) -> int:
        """Run with these arguments, or else the command line's; return the exit status."""
        ...


def print_error(message: object) -> None:
    """Print ``error: MESSAGE`` on standard error, without credentials."""
    print(f"error: {printable(without_credentials(str(message)))}", file=sys.stderr)


def reports_errors(main: Callable[[Sequence[str] | None], int]) -> SubCommand:
    """Have a sub-command print an error of the runner or the operating system, and return exit status 1."""

    @functools.wraps(main)
    def reporting(arguments: Sequence[str] | None = None) -> int:
        try:
            return main(arguments)
        except (RunnerError, OSError) as error:
            print_error(error)
            return 1

    return reporting
