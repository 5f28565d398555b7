"""Times of recording from file names, as recorders write them."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

from runner.dataset.clip_names import split_range

if TYPE_CHECKING:
    import pyarrow as pa

_DATE = r"(?P<year>(?:19|20)\d\d)(?P<d>[-_]?)(?P<month>\d\d)(?P=d)(?P<day>\d\d)"
_TIME = r"(?P<hour>\d\d)(?P<t>[-_.:h]?)(?P<minute>\d\d)(?:(?P=t)(?P<second>\d\d))?"
_ZONE = r"(?P<zone>Z|UTC|[+-]\d\d:?\d\d)?"

_LONG = re.compile(rf"(?<!\d){_DATE}[-_T ]{{0,2}}{_TIME}(?:\.\d+)?{_ZONE}(?!\d)", re.ASCII)
"""20230115_053000 (AudioMoth, Song Meter, Swift), 2023-01-15T05_30_00Z, 2023-01-15 05-30."""

_SHORT = re.compile(
    r"(?<!\d)(?P<year>\d\d)(?P<month>\d\d)(?P<day>\d\d)[-_]?(?P<hour>\d\d)(?P<minute>\d\d)(?P<second>\d\d)(?!\d)",
    re.ASCII,
)
"""230115053000 (SoundTrap, after its serial number), 230115_053000."""

_HEXADECIMAL = re.compile(r"[0-9A-F]{8}")
"""5C3B2A10: seconds since 1970 in UTC, of AudioMoth's firmware before 1.2."""

_CANDIDATE = (
    r"(?:19|20)\d\d[-_]?[01]\d[-_]?[0-3]\d[-_T ]{0,2}[0-2]\d[-_.:h]?[0-5]\d"
    r"|\d\d[01]\d[0-3]\d[-_]?[0-2]\d[0-5]\d[0-5]\d"
    r"|(?:^|/)[5-7][0-9A-F]{7}(?:[.#]|$)"
)
"""In every clip's name with a time, by one of the three above: Arrow looks for it without the interpreter."""

_AUDIOMOTH = range(1_451_606_400, 1_893_456_000)
"""2016 to 2029 in seconds since 1970: other hexadecimal names are no AudioMoth's."""


def recorded_at(name: str) -> datetime | None:
    """Return when a recording began, by its file name; None where the name has no date and time.

    The result has a time zone only where the name says so: ``Z``, ``UTC``, an offset, or AudioMoth's hexadecimal
    names, which are in UTC.

    Args:
        name: of the file, with or without folders.
    """
    stem = _stem(name)
    if _HEXADECIMAL.fullmatch(stem) and int(stem, 16) in _AUDIOMOTH:
        return datetime.fromtimestamp(int(stem, 16), timezone.utc)
    for pattern, century in ((_LONG, 0), (_SHORT, 2000)):
        for match in pattern.finditer(stem):
            if (when := _datetime(match, century)) is not None:
                return when
    return None


def recorded_at_reader(option: str) -> Callable[[pa.StringArray], pa.StringArray]:
    """Return the function from clips' names to the column ``recorded_at``: when each one's file begins, in ISO 8601.

    The column is null where a name has no time.

    Args:
        option: ``dataset.recorded_at``: auto, none, or strptime's pattern of a file name without its ending.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    def read(clip: str) -> str | None:
        path, _, _ = split_range(clip)
        when = recorded_at(path) if option == "auto" else _by_pattern(path, option)
        return None if when is None else when.isoformat()

    def column(clips: pa.StringArray) -> pa.StringArray:
        if option == "none":
            return pa.nulls(len(clips), pa.string())
        if option != "auto":
            return pa.array(map(read, clips.to_pylist()), pa.string())
        names = pc.if_else(pc.match_substring_regex(clips, _CANDIDATE), clips, None).to_pylist()
        return pa.array([name and read(name) for name in names], pa.string())

    return column


def _by_pattern(name: str, pattern: str) -> datetime | None:
    try:
        return datetime.strptime(_stem(name), pattern)
    except ValueError:
        return None


def _stem(name: str) -> str:
    return posixpath.splitext(posixpath.basename(name))[0]


def _datetime(match: re.Match[str], century: int) -> datetime | None:
    """Return the time that a match says; None where there is no such day or hour."""
    parts = match.groupdict()
    year, month, day, hour, minute = (int(parts[key]) for key in ("year", "month", "day", "hour", "minute"))
    try:
        when = datetime(century + year, month, day, hour, minute, int(parts["second"] or 0))
    except ValueError:
        return None
    return when.replace(tzinfo=_zone(parts["zone"])) if parts.get("zone") else when


def _zone(text: str) -> timezone:
    if text in ("Z", "UTC"):
        return timezone.utc
    offset = timedelta(hours=int(text[1:3]), minutes=int(text[-2:]))
    return timezone(-offset if text[0] == "-" else offset)
