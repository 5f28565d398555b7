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
