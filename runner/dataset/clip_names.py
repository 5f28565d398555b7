"""Names of clips as text, from the bytes of file names."""

from __future__ import annotations

import re

_AMBIGUOUS_BACKSLASH = re.compile(rb"\\(?=x(?:5c|[89a-f][0-9a-f]))")


def display_name(name: bytes) -> str:
    r"""Return a name as text, different for different bytes.

    Bytes that are not UTF-8 become ``\xff`` and the like; a backslash that could be mistaken for that becomes ``\x5c``.
    """
    plain = _AMBIGUOUS_BACKSLASH.sub(rb"\\x5c", name) if b"\\x" in name else name
    return plain.decode("utf-8", "backslashreplace")


def parent_name(path: bytes) -> str | None:
    """Return the name of the folder that a file is in; None for a path without one."""
    folder, slash, _ = path.rpartition(b"/")
    return display_name(folder.rpartition(b"/")[2]) if slash else None
