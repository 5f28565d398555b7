"""Commit objects of an output in an object store."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from runner.core.layout import COMMITS, EMBEDDINGS, TFRECORD
from runner.output.state.journal import from_line

if TYPE_CHECKING:
    from runner.output.state.journal import ShardEntry
    from runner.storage.object_store import Store

FAILED_PUT_S = 20.0
"""How long a run that failed may take to put each of its other files."""

SAMPLED_SHARDS = 40
"""The shards that the map of embeddings is drawn from at most; they stay in the working folder."""


def commit_name(shard: int) -> str:
    """The object that says that a shard is done."""
    return f"{COMMITS}/shard-{shard:05d}.json"


def read_commits(store: Store, state: Iterable[str]) -> dict[int, ShardEntry | None]:
    """The shards with a commit object among the names of a run's state, in order; None for one that can't be read."""
    commits = dict(sorted(_commits(state).items()))
    entries = (from_line(line.strip()) if line else None for line in store.each(store.read, commits.values()))
    return {
        number: entry if entry is not None and entry.shard == number else None
        for number, entry in zip(commits, entries, strict=True)
    }


def sizes_of_shards(store: Store, state: Mapping[str, int]) -> dict[str, int]:
    """The bytes of all files that shards are made of, with those of the state; npz files are too many to list."""
    return {**state, **store.sizes(EMBEDDINGS), **store.sizes(TFRECORD)}


def is_complete(entry: ShardEntry, present: Mapping[str, int]) -> bool:
    """Whether a shard's files are in the store, in their sizes; npz files are looked at by ``shards_lacking_npz``."""
    return all(present.get(name) == size for name, (size, _) in entry.files.items())


def sampled(shards: int) -> set[int]:
    """The shards, of so many, that the map of embeddings is drawn from."""
    return set(range(0, shards, max(1, -(-shards // SAMPLED_SHARDS))))


def _commits(state: Iterable[str]) -> dict[int, str]:
    names = ((name.removeprefix(f"{COMMITS}/shard-").removesuffix(".json"), name) for name in state)
    return {int(number): name for number, name in names if number.isdecimal()}
