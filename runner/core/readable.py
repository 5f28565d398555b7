"""Reading our own files, which a full disk, a copy or a hand may have cut off: that is told in one sentence."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from runner.core.errors import ResumeError


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """While ``path`` is read, and nothing else is done.

    Raises:
        ResumeError: it can't be read, or is not what its name says.
    """
    try:
        yield
    except (OSError, ValueError, KeyError) as error:  # pyarrow's and json's are among them
        said = str(error).partition("\n")[0]
        raise ResumeError(
            f"{path} can't be read ({said}): bring it back as it was, or name another output.dir"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """The object that a JSON file of ours holds.

    Raises:
        ResumeError: as ``readable``.
    """
    with readable(path):
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it holds no object")
    return found
