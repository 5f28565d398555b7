"""Quote values for Hydra's override grammar and for a shell."""

from __future__ import annotations

import re
import shlex

_PLAIN = re.compile(r"[A-Za-z_/.][\w/.\-+@%:]*", re.ASCII)

_WORDS = re.compile(r"null|true|false|nan|inf|\.[0-9_]+(e[+-]?[0-9_]+)?", re.IGNORECASE)
"""Texts that Hydra reads as another type."""

_INTERPOLATION = re.compile(r"(\\*)\$\{")


def hydra_value(text: str) -> str:
    """Return the right side of an override whose value is this text."""
    if _PLAIN.fullmatch(text) and not _WORDS.fullmatch(text):
        return text
    from hydra.core.override_parser.types import Quote, QuotedString

    return QuotedString(_INTERPOLATION.sub(r"\1\1\\${", text), Quote.double).with_quotes()


def shell_override(key: str, text: str) -> str:
    """Return the override that sets a key to a text, quoted for Hydra and then for a shell."""
    return shlex.quote(f"{key}={hydra_value(text)}")


def shell_lines(command: str, width: int = 88) -> list[str]:
    """Break a command into lines of ``width`` characters, as far as its words allow, that a shell reads as one."""
    lines = [""]
    for word in map(shlex.quote, shlex.split(command)):
        if lines[-1] and len(lines[-1]) + len(word) + 3 > width:
            lines[-1] += " \\"
            lines.append(f"  {word}")
        else:
            lines[-1] += f" {word}" if lines[-1] else word
    return lines
