"""The manifest of a folder of audio files."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from runner.core.errors import DatasetError
from runner.dataset.digests import digest_of
from runner.dataset.listing import walk, walk_store
from runner.dataset.shards import _AMBIGUOUS
from runner.dataset.table import CHUNK_CLIPS, SCHEMA, Manifest

if TYPE_CHECKING:
    from runner.config.schema import FolderDataset


def _from_folder(root: Path | str, dataset: FolderDataset, *, is_demo: bool) -> Manifest:
    wanted = {"." + extension.lower().lstrip(".") for extension in dataset.extensions}
    ignored: Counter[str] = Counter()
    chunks = _Chunks(os.path.join(os.fsencode(root), b""), labelled=dataset.label_from == "parent")
    everything = dataset.pattern == "*"
    found = walk_store(root, dataset.download_timeout_s) if isinstance(root, str) else walk(root, ignored)
    for relative, size, mtime_ns in found:
        extension = os.path.splitext(relative)[1].lower()
        if extension not in wanted:
            ignored[extension or "(no extension)"] += 1
        elif not everything and not fnmatchcase(relative, dataset.pattern):
            ignored["(not in dataset.pattern)"] += 1
        else:
            chunks.add(relative, size, mtime_ns)
    table = chunks.table()
    if not table.num_rows:
        seen = ", ".join(f"{count} {name}" for name, count in ignored.most_common(5)) or "no files at all"
        raise DatasetError(
            f"dataset.root={root} holds no clips (looked for {', '.join(sorted(wanted))}; found {seen}): "
            "name another folder, or the right dataset.extensions and dataset.pattern"
        )
    kind, left_out = ("demo clips", {}) if is_demo else ("clips", dict(ignored))
    return Manifest(str(root), table, digest_of(table), is_demo, f"{table.num_rows:,} {kind} in {root}", left_out)


class _Chunks:
    """Collects the files of a folder as rows of ``SCHEMA``, without a Python object a file for longer than a chunk.

    Args:
        prefix: of all paths, in the file system's bytes.
        labelled: whether the parent folder's name is the label.
    """

    def __init__(self, prefix: bytes, *, labelled: bool) -> None:
        self._prefix = prefix
        self._labelled = labelled
        self._names: list[str] = []
        self._sizes: list[int] = []
        self._times: list[int] = []
        self._batches: list[pa.RecordBatch] = []
        self._no_times = pa.nulls(CHUNK_CLIPS, pa.float64())  # one for all chunks: nothing is ever written to it

    def add(self, relative: str, size: int, mtime_ns: int) -> None:
        """Take a file."""
        self._names.append(relative)
        self._sizes.append(size)
        self._times.append(mtime_ns)
        if len(self._names) == CHUNK_CLIPS:
            self._flush()

    def table(self) -> pa.Table:
        """All of them, in the order in which they came."""
        if self._names:
            self._flush()
        return pa.Table.from_batches(self._batches, SCHEMA)

    def _flush(self) -> None:
        count, encoded = len(self._names), [os.fsencode(name) for name in self._names]
        labels = map(parent_of, encoded) if self._labelled else itertools.repeat(None, count)
        self._batches.append(
            pa.record_batch(
                [
                    pa.array(map(shown, encoded), pa.string(), size=count),
                    pa.array([self._prefix + name for name in encoded], pa.binary()),
                    self._no_times[:count],
                    self._no_times[:count],
                    pa.array(labels, pa.string(), size=count),
                    pa.array(self._sizes, pa.int64()),
                    pa.array(self._times, pa.int64()),
                ],
                schema=SCHEMA,
            )
        )
        self._names, self._sizes, self._times = [], [], []


def shown(name: bytes) -> str:
    r"""A name as text, another for each: bytes that are not UTF-8 as ``\xff``, a backslash that reads so ``\x5c``."""
    plain = _AMBIGUOUS.sub(rb"\\x5c", name) if b"\\x" in name else name
    return plain.decode("utf-8", "backslashreplace")


def parent_of(name: bytes) -> str | None:
    folder, slash, _ = name.rpartition(b"/")
    return shown(folder.rpartition(b"/")[2]) if slash else None
