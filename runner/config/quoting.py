"""Values as Hydra's override grammar and a shell must be given them."""

from __future__ import annotations

import re
import shlex

_PLAIN = re.compile(r"[A-Za-z_/.][\w/.\-+@%:]*", re.ASCII)

_WORDS = re.compile(r"null|true|false|nan|inf|\.[0-9_]+(e[+-]?[0-9_]+)?", re.IGNORECASE)
"""What Hydra takes for something else than text."""

_INTERPOLATION = re.compile(r"(\\*)\$\{")


def hydra_value(text: str) -> str:
    """The text as the right side of an override that means just this text."""
    if _PLAIN.fullmatch(text) and not _WORDS.fullmatch(text):
        return text
    from hydra.core.override_parser.types import Quote, QuotedString

    return QuotedString(_INTERPOLATION.sub(r"\1\1\\${", text), Quote.double).with_quotes()


def shell_override(key: str, text: str) -> str:
    """The override that sets a key to a text, quoted for Hydra and then for a shell."""
    return shlex.quote(f"{key}={hydra_value(text)}")


def shell_lines(command: str, width: int = 88) -> list[str]:
    """A command in lines that fit on a page, as far as its words do, and that a shell takes as one."""
    lines = [""]
    for word in map(shlex.quote, shlex.split(command)):
        if lines[-1] and len(lines[-1]) + len(word) + 3 > width:
            lines[-1] += " \\"
            lines.append(f"  {word}")
        else:
            lines[-1] += f" {word}" if lines[-1] else word
    return lines
