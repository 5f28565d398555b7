"""Makes text safe for a terminal, whatever file names and labels it holds."""

from __future__ import annotations

import logging
import os
import re
import sys

LOG_FORMAT = "[%(asctime)s][%(levelname)s] %(message)s"
"""Of runner.log."""

_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters, except tab and line feed
    "\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069"  # marks that change the direction of text, or end a line
    "\ud800-\udfff]"  # bytes of file names that are not text: printing them would fail
)


def printable(text: str) -> str:
    """Return a text with characters that a terminal would act on, or could not show, as escapes (``\\x1b``)."""
    return _UNSAFE.sub(_escape, text)


def print_page(text: str) -> None:
    """Print a text, made printable; end silently where the reader has gone, as ``head`` does."""
    try:
        print(printable(text), flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for Python's own last flush


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    if 0xDC80 <= code <= 0xDCFF:
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


class PrintableFormatter(logging.Formatter):
    """Format log records, which are read on terminals too."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the printable line of a record."""
        return printable(super().format(record))
