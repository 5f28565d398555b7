"""The manifest of a folder of audio files, or of all objects below a URL."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from runner.core.errors import DatasetError
from runner.dataset.clip_names import display_name, parent_name
from runner.dataset.digests import digest_of
from runner.dataset.listing import walk, walk_store
from runner.dataset.table import CHUNK_CLIPS, SCHEMA, Manifest

if TYPE_CHECKING:
    from runner.config.schema import FolderDataset


def list_folder(root: Path | str, dataset: FolderDataset, *, is_demo: bool) -> Manifest:
    """List the audio files below a folder or URL.

    Args:
        root: an absolute path, or a URL.
        dataset: its extensions, pattern and labels.
        is_demo: whether they are the built-in demo clips.

    Raises:
        DatasetError: there are none, or the root can't be listed.
    """
    extensions = {"." + extension.lower().lstrip(".") for extension in dataset.extensions}
    ignored: Counter[str] = Counter()
    rows = _TableBuilder(os.path.join(os.fsencode(root), b""), label_by_parent=dataset.label_from == "parent")
    takes_all = dataset.pattern == "*"
    files = walk_store(root, dataset.download_timeout_s) if isinstance(root, str) else walk(root, ignored)
    for relative, size, mtime_ns in files:
        extension = os.path.splitext(relative)[1].lower()
        if extension not in extensions:
            ignored[extension or "(no extension)"] += 1
        elif not takes_all and not fnmatchcase(relative, dataset.pattern):
            ignored["(not in dataset.pattern)"] += 1
        else:
            rows.add(relative, size, mtime_ns)
    table = rows.table()
    if not table.num_rows:
        files_seen = ", ".join(f"{count} {name}" for name, count in ignored.most_common(5)) or "no files at all"
        raise DatasetError(
            f"dataset.root={root} holds no clips (looked for {', '.join(sorted(extensions))}; found {files_seen}): "
            "choose another folder, or the right dataset.extensions and dataset.pattern"
        )
    clips = f"{table.num_rows:,} {'demo clips' if is_demo else 'clips'}"
    return Manifest(str(root), table, digest_of(table), is_demo, f"{clips} in {root}", {} if is_demo else dict(ignored))


class _TableBuilder:
    """Collects files as rows of ``SCHEMA``, with Python objects for one chunk of them at a time.

    Args:
        prefix: of all paths, in the file system's bytes.
        label_by_parent: whether the parent folder's name is the label.
    """

    def __init__(self, prefix: bytes, *, label_by_parent: bool) -> None:
        self._prefix = prefix
        self._label_by_parent = label_by_parent
        self._names: list[str] = []
        self._sizes: list[int] = []
        self._mtimes_ns: list[int] = []
        self._batches: list[pa.RecordBatch] = []
        self._no_times = pa.nulls(CHUNK_CLIPS, pa.float64())  # shared by all chunks

    def add(self, relative: str, size: int, mtime_ns: int) -> None:
        """Add a file."""
        self._names.append(relative)
        self._sizes.append(size)
        self._mtimes_ns.append(mtime_ns)
        if len(self._names) == CHUNK_CLIPS:
            self._flush()

    def table(self) -> pa.Table:
        """Return all files, in the order in which they were added."""
        if self._names:
            self._flush()
        return pa.Table.from_batches(self._batches, SCHEMA)

    def _flush(self) -> None:
        count, encoded = len(self._names), [os.fsencode(name) for name in self._names]
        labels = map(parent_name, encoded) if self._label_by_parent else itertools.repeat(None, count)
        self._batches.append(
            pa.record_batch(
                [
                    pa.array(map(display_name, encoded), pa.string(), size=count),
                    pa.array([self._prefix + name for name in encoded], pa.binary()),
                    self._no_times[:count],
                    self._no_times[:count],
                    pa.array(labels, pa.string(), size=count),
                    pa.array(self._sizes, pa.int64()),
                    pa.array(self._mtimes_ns, pa.int64()),
                ],
                schema=SCHEMA,
            )
        )
        self._names, self._sizes, self._mtimes_ns = [], [], []
