"""Reads the runner's own files; one that was truncated or edited is an error of one sentence."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from runner.core.errors import ResumeError


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Convert errors of reading ``path``, and of nothing else, in the block.

    Raises:
        ResumeError: the file can't be read, or has other content than its name says.
    """
    try:
        yield
    except (OSError, ValueError, KeyError) as error:  # pyarrow's and json's are among them
        reason = str(error).partition("\n")[0]
        raise ResumeError(f"{path} can't be read ({reason}): restore it, or choose another output.dir") from error


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        ResumeError: the file can't be read, or holds something else.
    """
    with readable(path):
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("it holds no object")
    return values
