"""Takes credentials out of what is shown, logged or stored."""

from __future__ import annotations

import re
from pathlib import Path

from runner.core.files import write_atomic

# Hydra writes the colons of a sweep's overrides with a backslash
_USER = re.compile(r"([A-Za-z][\w+.\-]*\\?://)[^\s/'\"]*@")

_QUERY = re.compile(r"([A-Za-z][\w+.\-]*\\?://[^\s'\"?#]*)[?#][^\s'\"]*")


def without_credentials(text: str) -> str:
    """A text with user, password and query taken out of every address in it."""
    return _QUERY.sub(r"\1", _USER.sub(r"\1", text))


def hide_credentials(folder: Path) -> None:
    """Take credentials out of what Hydra has written of the command line into a run's or a sweep's folder."""
    for path in (*folder.glob("*.yaml"), *(folder / ".hydra").glob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        if (clean := without_credentials(text)) != text:
            write_atomic(path, clean)
