"""The names of YAMNet's classes, from the release's ``yamnet_class_map.csv``."""

from __future__ import annotations

import csv
from pathlib import Path

from runner.core.errors import WeightsError
from runner.yamnet.constants import CLASSES

_HEADER = ["index", "mid", "display_name"]


def read_classes(path: Path) -> tuple[str, ...]:
    """Read the display names of the 521 classes, in the order of the scores.

    Args:
        path: of a CSV file with the columns index (0 to 520, in order), mid (AudioSet's id) and display_name.

    Raises:
        WeightsError: the file can't be read, or is not such a table.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            header, *rows = list(csv.reader(file, strict=True)) or [[]]
    except (OSError, ValueError, csv.Error) as error:
        raise WeightsError(f"{path} can't be read ({error}): give YAMNet's yamnet_class_map.csv") from error
    if reason := _mistake(header, rows):
        raise WeightsError(f"{path} is not YAMNet's class map: {reason}; give the release's yamnet_class_map.csv")
    return tuple(name for _, _, name in rows)


def _mistake(header: list[str], rows: list[list[str]]) -> str | None:
    """Return what is wrong with the table, if anything."""
    if header != _HEADER:
        return f"its columns are {','.join(header)[:80]!r}, not {','.join(_HEADER)}"
    if len(rows) != CLASSES:
        return f"it has {len(rows)} classes, not {CLASSES}"
    for number, row in enumerate(rows):
        if len(row) != len(_HEADER) or row[0] != str(number) or not all(row):
            return (
                f"line {number + 2} is {','.join(row)[:80]!r}, not the class with index {number}, its id and its name"
            )
    if len({mid for _, mid, _ in rows}) != CLASSES:
        return "it has a class twice"
    return None
