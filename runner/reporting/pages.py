"""HTML pages from the templates of this package."""

from __future__ import annotations

from pathlib import Path
from string import Template

_TEMPLATES = Path(__file__).with_name("templates")


def fill(name: str, **values: str) -> str:
    """Return a template with its ``$placeholders`` replaced by HTML that is escaped already."""
    return Template((_TEMPLATES / name).read_text(encoding="utf-8")).substitute(values)
