"""A range of rows: the clips of a shard, or rows of a table."""

from __future__ import annotations

from typing import NamedTuple


class Span(NamedTuple):
    """Rows ``first`` up to, not including, ``end``; in JSON it is a list of the two."""

    first: int
    end: int

    @property
    def rows(self) -> int:
        """The number of rows."""
        return self.end - self.first
