"""Where the partitions of ``vggish-runner merge`` are, and where their merged output goes: a folder or a URL.

A merged output that is not finished has ``merge_in_progress.json`` with a fingerprint of the partitions: only a merge
of the same partitions may continue it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from runner.core.errors import ConfigError

if TYPE_CHECKING:
    from runner.core.files import FileDigest
    from runner.output.state.journal import ShardEntry
    from runner.output.state.plan_file import StoredPlan

UNLOCKED = "%s can't be locked (%s): make sure that no command resumes it during the merge"
"""Warning for a partition that may not be written to."""


class Copy(NamedTuple):
    """A file to copy: its names in the partition and in the merged output, and the content that it must have."""

    name: str
    merged_name: str
    expected: FileDigest


class Source(Protocol):
    """A partition.  Names of files are relative to the run's folder, as in the journal.

    Attributes:
        name: its folder or URL.
        npz_repair: how to have the shards re-run that lack npz files.
    """

    name: str
    npz_repair: str

    def plan(self) -> StoredPlan | None:
        """Return its plan; None where it has none; raises ConfigError if it can't be read."""
        ...

    def identity(self) -> Mapping[str, str]:
        """Return its weights, precision and PCA parameters; empty where they can't be read."""
        ...

    def committed(self) -> dict[int, ShardEntry]:
        """Return its committed shards."""
        ...

    def owner(self) -> str | None:
        """Return the live command that holds it, where that can be told."""
        ...

    def why_unfinished(self) -> str | None:
        """Return why its run is not finished although its shards may be committed; None if it is finished."""
        ...

    def damaged_shards(self, committed: Mapping[int, ShardEntry]) -> list[int]:
        """Return the shards with a file that is missing or has changed, npz files aside."""
        ...

    def shards_lacking_npz(self, committed: Mapping[int, ShardEntry]) -> list[int]:
        """Return the shards with a clip's npz that is missing."""
        ...

    def locked(self) -> AbstractContextManager[None]:
        """Lock it, so that no command resumes it; a warning where it may not be written to.

        Raises:
            ConfigError: another command holds it.
        """
        ...

    def changed_files(self) -> list[str]:
        """Return the names of its files that have changed since it was first read, as far as can be told."""
        ...

    def local_path(self, name: str, copy: Path, expected: FileDigest | None = None) -> Path:
        """Return the path of a file on this machine: the partition's own, or a copy of an object.

        Args:
            name: of the file.
            copy: where an object is copied to, atomically.
            expected: the content that a copy must have; None where that is not known.

        Raises:
            StoreError: the object can't be read, or has other content.
        """
        ...


class Target(Protocol):
    """A merged output.

    Attributes:
        name: its folder or URL.
    """

    name: str

    def check(self, fingerprint: str) -> None:
        """Check that it is free, or has an unfinished merge of the same partitions; raises ConfigError."""
        ...

    def merging(self, fingerprint: str) -> AbstractContextManager[None]:
        """Lock it, and write merge_in_progress.json.

        Raises:
            ConfigError: another command holds it, or it holds something else.
        """
        ...

    def existing_sizes(self) -> Mapping[str, int]:
        """Return the bytes of the shards' files by name that a stopped command has copied."""
        ...

    def copy_from(self, source: Source, name: str, merged_name: str, expected: FileDigest | None = None) -> None:
        """Copy a partition's file atomically; see ``Source.local_path``."""
        ...

    def flush(self, names: Iterable[str]) -> None:
        """Have copied files on disk, before the files that refer to them are copied."""
        ...

    def remove_wrong(self, source: Source, copies: Sequence[Copy]) -> list[str]:
        """Remove the copies that differ from the partition's files, and return their names.

        npz files that a store has copied wrongly are copied again.

        Raises:
            StoreError: the store doesn't answer, or its copies differ again.
        """
        ...

    def writing(self, name: str) -> AbstractContextManager[Path]:
        """Yield a path on this machine whose content becomes the file ``name``."""
        ...

    def finish(self, merged: str) -> None:
        """Write merged.json, and remove merge_in_progress.json."""
        ...


def merge_fingerprint(names: Sequence[str], content: Iterable[str]) -> str:
    """Return the text of merge_in_progress.json: the partitions' names, for people, and a digest of their content."""
    digest = hashlib.sha256()
    for line in content:
        digest.update(line.encode() + b"\n")
    return json.dumps({"partitions": list(names), "digest": digest.hexdigest()}, indent=2)


def check_target(location: str, names: set[str], existing: str | None, fingerprint: str) -> None:
    """Check that a merged output may be written to a location.

    Args:
        location: for messages.
        names: of all files that are there.
        existing: its merge_in_progress.json, if there is one.
        fingerprint: of this merge.

    Raises:
        ConfigError: it holds something else.
    """
    if existing is None:
        if names:
            raise ConfigError(f"{location} is not empty: choose another folder")
        return
    try:
        is_same = json.loads(existing)["digest"] == json.loads(fingerprint)["digest"]
    except (ValueError, KeyError, TypeError):
        is_same = False
    if not is_same:
        raise ConfigError(f"{location} holds an unfinished merge of other partitions: choose another folder")
