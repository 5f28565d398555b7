"""What became of the rows of a data set since a run of it was planned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from runner.dataset.packed.address import container_of, is_packed

OLDER_LISTING = (
    "the data set has changed since this part began, which keeps the listing that it began with: parts that begin now "
    "have another, unless dataset.listing names one for all"
)


@dataclass(frozen=True)
class Changes:
    """What became of the rows since the plan.

    ``there`` (bool [rows]) is whether each one's file is in the data set as it is listed now; ``changed`` are rows
    whose files changed, ``relabelled`` those with another label, ``removed`` those that are listed no more;
    ``vanished`` and ``added`` count files that are gone and rows that are new.
    """

    there: NDArray[np.bool_]
    changed: Sequence[int] = ()
    relabelled: Sequence[int] = ()
    removed: Sequence[int] = ()
    vanished: int = 0
    added: int = 0

    def notes(self) -> list[str]:
        """A line for each kind of change."""
        lines = []
        if self.changed:
            lines.append(f"{len(self.changed):,} source files changed since the run started: re-embedding them")
        if self.relabelled:
            lines.append(f"{len(self.relabelled):,} labels changed since the run started: re-running their shards")
        if self.vanished:
            lines.append(f"{self.vanished:,} source files are gone: those embedded stay, others are skipped as missing")
        if self.added:
            lines.append(f"{self.added:,} clips are new: they are embedded after the others")
        return lines


def reconcile(planned: pa.Table, listed: pa.Table) -> tuple[pa.Table, Changes]:
    """The planned rows with labels, sizes and times of their files as they are now, and new ones at the end.

    What is not known any more of a file that is gone stays as it was.
    """
    paths, listed_paths = planned["path"].to_pylist(), listed["path"].to_pylist()
    keys, listed_keys = (
        zip(map(container_of, places), each["clip"].to_pylist(), strict=True)
        for places, each in ((paths, planned), (listed_paths, listed))
    )
    places = {key: row for row, key in enumerate(listed_keys)}
    at = np.array([places.pop(key, -1) for key in keys], np.int64)
    is_listed = at >= 0
    now = listed.select(["label", "bytes", "mtime_ns"]).take(pa.array(at, mask=~is_listed))
    there = is_listed & has_file(now)
    table, differs = planned, {}
    moved = np.zeros(len(paths), bool)
    if any(map(is_packed, paths[:1])):  # a clip's place in its container may be another now
        current = [listed_paths[row] if known else path for path, row, known in zip(paths, at, there, strict=True)]
        moved = np.array([path != before for path, before in zip(current, paths, strict=True)], bool)
        column = pa.chunked_array([pa.array(current, pa.binary())])
        table = table.set_column(table.schema.get_field_index("path"), table.schema.field("path"), column)
    for name, known in (("label", is_listed), ("bytes", there), ("mtime_ns", there)):
        before, after = planned[name].combine_chunks(), now[name].combine_chunks()
        same = pc.fill_null(pc.equal(before, after), pa.scalar(False))
        both_missing = pc.and_(pc.is_null(before), pc.is_null(after))
        differs[name] = known & ~_flags(pc.or_(same, both_missing))
        values = pc.if_else(pa.array(known), after, before)
        table = table.set_column(table.schema.get_field_index(name), table.schema.field(name), values)
    is_new = np.zeros(listed.num_rows, bool)
    is_new[list(places.values())] = True
    added = listed.filter(pa.array(is_new))  # `take` would join the names, of which there may be more than 2 GiB
    changes = Changes(
        there=np.concatenate([there, has_file(added)]),
        changed=np.flatnonzero(differs["bytes"] | differs["mtime_ns"] | moved).tolist(),
        relabelled=np.flatnonzero(differs["label"]).tolist(),
        removed=np.flatnonzero(~is_listed).tolist(),
        vanished=int(np.count_nonzero(~there & has_file(planned))),
        added=added.num_rows,
    )
    return pa.concat_tables([table, added]).combine_chunks(), changes


def among(listed: pa.Table, names: pa.ChunkedArray) -> pa.Table:
    """The rows of these clips, where they are listed."""
    return listed.filter(pc.is_in(listed["clip"], value_set=names.combine_chunks()))


def has_file(table: pa.Table) -> NDArray[np.bool_]:
    """Whether a file was found for each row."""
    return _flags(pc.fill_null(pc.greater_equal(table["bytes"], 0), pa.scalar(False)))


def _flags(values: pa.Array | pa.ChunkedArray) -> NDArray[np.bool_]:
    flags: NDArray[np.bool_] = np.asarray(values, bool)
    return flags
