"""The data set as a table of clips: every audio file of a folder, or the rows of a manifest file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

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

CHUNK_CLIPS = 65_536
"""Clips that are Python objects at a time while a folder is listed, and rows of a row group of manifest.parquet."""


@dataclass(frozen=True)
class Manifest:
    """The clips of a run.

    ``table`` has the columns of ``SCHEMA``: ``clip`` is the path relative to ``root`` (with ``#t=start,end`` for a part
    of a file), ``path`` the absolute path in the file system's bytes, ``bytes`` the file's size and ``mtime_ns`` its
    time of modification (−1: unknown).  Of a packed clip ``clip`` is its name in the container, ``path`` an address as
    in ``runner.dataset.packed.address``, ``bytes`` the clip's own and ``mtime_ns`` the container's.
    ``digest`` is the same for the same data on another machine.  ``ignored`` counts files that are no clips.
    ``part`` tells of a partition: which, of how many, and the whole's digest, clips, and the numbers and sizes of
    the shards in it.  ``whole`` is all that it was cut from.
    """

    root: str
    table: pa.Table
    digest: str
    is_demo: bool
    description: str
    ignored: dict[str, int] = field(default_factory=dict)
    part: dict[str, Any] | None = None
    whole: pa.Table | None = None


def stamps(paths: Sequence[str]) -> list[tuple[int, int]]:
    """(size in bytes, mtime in ns; −1: unknown) of each file."""
    known: dict[str, tuple[int, int]] = {}
    for path in paths:
        if path not in known:
            try:
                found = os.stat(path)
                known[path] = found.st_size, found.st_mtime_ns
            except (OSError, ValueError):
                known[path] = -1, -1
    return [known[path] for path in paths]
