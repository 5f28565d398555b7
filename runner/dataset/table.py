"""The table of a data set's clips, and the manifest around it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pyarrow as pa

if TYPE_CHECKING:
    from runner.core.readable import Json

SCHEMA = pa.schema(
    [
        ("clip", pa.string()),
        ("path", pa.binary()),
        ("start", pa.float64()),
        ("end", pa.float64()),
        ("label", pa.string()),
        ("bytes", pa.int64()),
        ("mtime_ns", pa.int64()),
    ]
)
"""The columns of a table of clips, and of manifest.parquet.

``clip`` is the path relative to the root, with ``#t=start,end`` for a part of a file; ``path`` the absolute path in the
file system's bytes, or a URL; ``start`` and ``end`` are seconds; ``bytes`` is the file's size and ``mtime_ns`` its time
of modification (−1: unknown).  For a packed clip ``clip`` is its name in the container, ``path`` an address as in
``runner.dataset.packed.address``, ``bytes`` the clip's own size and ``mtime_ns`` the container's time.
"""

CHUNK_CLIPS = 65_536
"""Clips that are Python objects at a time while a folder is listed, and rows of a row group of manifest.parquet."""


@dataclass(frozen=True)
class PartitionInfo:
    """One partition of a data set, ``dataset.partition=index/count``.

    Attributes:
        index: its number, from 1.
        count: the number of partitions.
        digest: of the complete data set.
        clips: of the complete data set.
        shards: the numbers that its shards have in the complete data set.
        sizes: clips of each of its shards.
        labels: distinct labels of the complete data set, for formats that number them; None where none needs them.
    """

    index: int
    count: int
    digest: str
    clips: int
    shards: list[int]
    sizes: list[int]
    labels: list[str] | None = None

    @staticmethod
    def from_json(values: Json) -> PartitionInfo | None:
        """Return the partition that ``dataclasses.asdict`` wrote; None for anything but an object.

        Raises:
            TypeError: the keys are not those of a partition.
        """
        if not isinstance(values, dict):
            return None
        return PartitionInfo(**values)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Manifest:
    """The clips of a run.

    Attributes:
        root: folder or URL of the data set.
        table: the clips, with the columns of ``SCHEMA``.
        digest: of the clips' names, times, labels and sizes; equal on all machines with the same data.
        is_demo: whether they are the built-in demo clips.
        description: one line for the terminal.
        ignored: files that are not clips, counted by extension or reason.
        partition: which partition they are; None for the complete data set.
        whole: the table that the partition was cut from; None for the complete data set.
    """

    root: str
    table: pa.Table
    digest: str
    is_demo: bool
    description: str
    ignored: dict[str, int] = field(default_factory=dict)
    partition: PartitionInfo | None = None
    whole: pa.Table | None = None


def file_stats(paths: Sequence[str]) -> list[tuple[int, int]]:
    """Return size in bytes and time of modification in ns of each file, (−1, −1) where it can't be read."""
    stats: dict[str, tuple[int, int]] = {}
    for path in paths:
        if path not in stats:
            try:
                status = os.stat(path)
                stats[path] = status.st_size, status.st_mtime_ns
            except (OSError, ValueError):
                stats[path] = -1, -1
    return [stats[path] for path in paths]
