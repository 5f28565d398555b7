"""Changes in a data set since a run of it was planned."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from runner.dataset.packed.address import container_of, is_packed

OLDER_LISTING = (
    "the data set has changed since this partition started, which keeps its listing: partitions that start now have "
    "another one, unless dataset.listing names one for all"
)


@dataclass(frozen=True)
class Changes:
    """Changes in the rows since the plan.

    Attributes:
        exists: bool [rows], whether each row's file is in the data set as it is listed now.
        changed: rows whose files changed.
        relabeled: rows with another label.
        removed: rows that are no longer listed.
        missing_files: number of files that no longer exist.
        new_clips: number of rows that are new, at the end.
    """

    exists: NDArray[np.bool_]
    changed: Sequence[int] = ()
    relabeled: Sequence[int] = ()
    removed: Sequence[int] = ()
    missing_files: int = 0
    new_clips: int = 0

    def notes(self) -> list[str]:
        """Return a line for each kind of change, for the user."""
        lines = []
        if self.changed:
            files = "source file" if len(self.changed) == 1 else "source files"
            lines.append(f"re-embedding {len(self.changed):,} {files} changed since the run started")
        if self.relabeled:
            lines.append(f"re-running the shards of {len(self.relabeled):,} labels changed since the run started")
        if self.missing_files:
            lines.append(
                f"{self.missing_files:,} source files are gone: keeping embeddings, skipping the others as missing"
            )
        if self.new_clips:
            lines.append(f"embedding {self.new_clips:,} new clips after the others")
        return lines


def reconcile(planned: pa.Table, listed: pa.Table) -> tuple[pa.Table, Changes]:
    """Return the planned rows with their present labels, sizes and times, and new rows at the end; and the changes.

    Rows of files that no longer exist keep their values.
    """
    paths, listed_paths = planned["path"].to_pylist(), listed["path"].to_pylist()
    new_rows = {key: row for row, key in enumerate(_keys(listed_paths, listed))}
    listed_row = np.array([new_rows.pop(key, -1) for key in _keys(paths, planned)], np.int64)
    is_listed = listed_row >= 0
    now = listed.select(["label", "bytes", "mtime_ns"]).take(pa.array(listed_row, mask=~is_listed))
    exists = is_listed & has_file(now)
    table, differs = planned, {}
    moved = np.zeros(len(paths), bool)
    if any(map(is_packed, paths[:1])):  # clips may have moved within their container
        current = [
            listed_paths[row] if is_there else path
            for path, row, is_there in zip(paths, listed_row, exists, strict=True)
        ]
        moved = np.array([path != before for path, before in zip(current, paths, strict=True)], bool)
        column = pa.chunked_array([pa.array(current, pa.binary())])
        table = table.set_column(table.schema.get_field_index("path"), table.schema.field("path"), column)
    for name, known in (("label", is_listed), ("bytes", exists), ("mtime_ns", exists)):
        before, after = planned[name].combine_chunks(), now[name].combine_chunks()
        same = pc.fill_null(pc.equal(before, after), pa.scalar(False))
        both_missing = pc.and_(pc.is_null(before), pc.is_null(after))
        differs[name] = known & ~_flags(pc.or_(same, both_missing))
        values = pc.if_else(pa.array(known), after, before)
        table = table.set_column(table.schema.get_field_index(name), table.schema.field(name), values)
    is_new = np.zeros(listed.num_rows, bool)
    is_new[list(new_rows.values())] = True
    added = listed.filter(pa.array(is_new))  # `take` would concatenate names, which fails beyond 2 GiB
    changes = Changes(
        exists=np.concatenate([exists, has_file(added)]),
        changed=np.flatnonzero(differs["bytes"] | differs["mtime_ns"] | moved).tolist(),
        relabeled=np.flatnonzero(differs["label"]).tolist(),
        removed=np.flatnonzero(~is_listed).tolist(),
        missing_files=int(np.count_nonzero(~exists & has_file(planned))),
        new_clips=added.num_rows,
    )
    return pa.concat_tables([table, added]).combine_chunks(), changes


def _keys(paths: Sequence[bytes], table: pa.Table) -> Iterator[tuple[bytes, str]]:
    """Yield what identifies each row's clip, wherever it lies in its container."""
    return zip(map(container_of, paths), table["clip"].to_pylist(), strict=True)


def rows_of(listed: pa.Table, names: pa.ChunkedArray) -> pa.Table:
    """Return the rows of these clips that are listed."""
    return listed.filter(pc.is_in(listed["clip"], value_set=names.combine_chunks()))


def has_file(table: pa.Table) -> NDArray[np.bool_]:
    """Return whether each row's file existed when it was listed, bool [rows]."""
    return _flags(pc.fill_null(pc.greater_equal(table["bytes"], 0), pa.scalar(False)))


def _flags(values: pa.Array | pa.ChunkedArray) -> NDArray[np.bool_]:
    flags: NDArray[np.bool_] = np.asarray(values, bool)
    return flags
