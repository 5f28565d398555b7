"""Names of clips: a file's path as text, with ``#t=START,END`` where a row of a manifest is a part of the file."""

from __future__ import annotations

import re

_RANGE = re.compile(r"\A(.*)#t=(\d+(?:\.\d+)?(?:e-?\d+)?)?,(\d+(?:\.\d+)?(?:e-?\d+)?)?\Z", re.DOTALL)

_AMBIGUOUS_BACKSLASH = re.compile(rb"\\(?=x(?:5c|[89a-f][0-9a-f]))")


def display_name(path: bytes) -> str:
    r"""Return a path as text, different for different bytes.

    Bytes that are not UTF-8 become ``\xff`` and the like; a backslash that could be mistaken for that becomes ``\x5c``.
    """
    plain = _AMBIGUOUS_BACKSLASH.sub(rb"\\x5c", path) if b"\\x" in path else path
    return plain.decode("utf-8", "backslashreplace")


def parent_name(path: bytes) -> str | None:
    """Return the name of the folder that a file is in; None for a path without one."""
    folder, slash, _ = path.rpartition(b"/")
    return display_name(folder.rpartition(b"/")[2]) if slash else None


def join_range(path: str, start: float | None, end: float | None) -> str:
    """Return the name of a clip from ``start`` to ``end`` (seconds) of a file."""
    if start is None and end is None:
        return path
    return f"{path}#t={_format_seconds(start)},{_format_seconds(end)}"


def split_range(clip: str) -> tuple[str, float | None, float | None]:
    """Return the path of a clip's file, and where the clip starts and ends in it, in seconds."""
    match = _RANGE.match(clip) if "#t=" in clip else None
    if match is None:
        return clip, None, None
    path, start, end = match.groups()
    return path, None if start is None else float(start), None if end is None else float(end)


def _format_seconds(seconds: float | None) -> str:
    return "" if seconds is None else repr(seconds).removesuffix(".0")
