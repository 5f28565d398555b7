"""Text that is safe to show on a terminal, whatever file names and cells of manifests it holds."""

from __future__ import annotations

import logging
import re

_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters, as those that move the cursor, but tab and line feed
    "\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069"  # what turns the direction of text, or ends a line
    "\ud800-\udfff]"  # bytes of a file name that are no text: printing them would fail
)


def printable(text: str) -> str:
    """A text with what a terminal would act on, or could not show, as escapes (``\\x1b``)."""
    return _UNSAFE.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    if 0xDC80 <= code <= 0xDCFF:
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


class PrintableFormatter(logging.Formatter):
    """For logs, which are read on terminals too."""

    def format(self, record: logging.LogRecord) -> str:
        """A record's line."""
        return printable(super().format(record))
