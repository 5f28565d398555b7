"""Commit objects: ``.runner/commits/shard-NNNNN.json`` is the journal's line of a shard in an object store."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from runner.core.layout import SHARD_FOLDERS, RunLayout
from runner.output.state.journal import from_line

if TYPE_CHECKING:
    from runner.output.state.journal import ShardEntry
    from runner.storage.object_store import ObjectStore

_PREFIX, _SUFFIX = f"{RunLayout.commits}/shard-", ".json"

_MAX_SAMPLED_SHARDS = 40


def commit_name(shard: int) -> str:
    """Return the name of a shard's commit object."""
    return f"{_PREFIX}{shard:05d}{_SUFFIX}"


def commit_names(names: Iterable[str]) -> dict[int, str]:
    """Return the commit objects among objects' names, by shard."""
    numbers = ((name.removeprefix(_PREFIX).removesuffix(_SUFFIX), name) for name in names)
    return {int(number): name for number, name in numbers if number.isdecimal()}


def read_commits(store: ObjectStore, names: Iterable[str]) -> dict[int, ShardEntry | None]:
    """Read the commit objects among objects' names, in the order of their shards; None for one that is damaged."""
    commits = dict(sorted(commit_names(names).items()))
    entries = (from_line(line.strip()) if line else None for line in store.map(store.read, commits.values()))
    return {
        number: entry if entry is not None and entry.shard == number else None
        for number, entry in zip(commits, entries, strict=True)
    }


def list_shard_files(store: ObjectStore, state: Mapping[str, int]) -> dict[str, int]:
    """Return the bytes of the objects of all shards by name, except npz files, which are too many to list.

    Args:
        store: the run's.
        state: the bytes of all objects below the state folder.
    """
    files = dict(state)
    for folder in SHARD_FOLDERS:
        files |= store.list_recursive(folder)
    return files


def is_complete(entry: ShardEntry, present: Mapping[str, int]) -> bool:
    """Return whether all files of a shard are present in their sizes, npz files aside (``shards_lacking_npz``)."""
    return all(present.get(name) == digest.bytes for name, digest in entry.files.items())


def sampled_shards(shards: int) -> set[int]:
    """Return the shards, out of ``shards``, that the projection of embeddings is drawn from."""
    return set(range(0, shards, max(1, -(-shards // _MAX_SAMPLED_SHARDS))))
