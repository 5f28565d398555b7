"""The optional dependencies of the package."""

from __future__ import annotations


def extra_hint(extra: str) -> str:
    """Return the command that installs an extra, for messages."""
    return f"pip install 'vggish-runner[{extra}]'"
