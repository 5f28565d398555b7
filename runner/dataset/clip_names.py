"""Names of clips: a file's path, with ``#t=START,END`` where a row of a manifest is a stretch of it."""

from __future__ import annotations

import re

_RANGE = re.compile(r"\A(.*)#t=(\d+(?:\.\d+)?(?:e-?\d+)?)?,(\d+(?:\.\d+)?(?:e-?\d+)?)?\Z", re.DOTALL)


def split_range(clip: str) -> tuple[str, float | None, float | None]:
    """Return the path of a clip's file, and where the clip starts and ends in it, in seconds."""
    match = _RANGE.match(clip)
    if match is None:
        return clip, None, None
    path, start, end = match.groups()
    return path, None if start is None else float(start), None if end is None else float(end)
