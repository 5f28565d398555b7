"""Reads the runner's own files; one that was truncated or edited is an error of one sentence."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

from runner.core.errors import ResumeError

Json: TypeAlias = "str | int | float | bool | list[Json] | dict[str, Json] | None"
"""A value of a JSON file, before the one function that reads this file has made its own type of it."""


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


def read_json(path: Path) -> dict[str, Json]:
    """Return the object in a JSON file.

    Raises:
        ResumeError: the file can't be read, or holds something else.
    """
    with readable(path):
        return json_object(path.read_text(encoding="utf-8"))


def json_object(text: str | bytes) -> dict[str, Json]:
    """Parse a JSON object.

    Raises:
        ValueError: the text is no JSON, or something else.
    """
    values: Json = json.loads(text)
    if not isinstance(values, dict):
        raise ValueError("it holds no object")
    return values
