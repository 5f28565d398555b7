"""Are the npz files of a run in an object store still there?  One of each shard is looked at: all are too many."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

from runner.core.layout import NPZ, NPZ_FILES, STATE

if TYPE_CHECKING:
    from runner.output.state.journal import ShardEntry
    from runner.storage.object_store import Store


def shards_lacking_npz(store: Store, entries: Iterable[ShardEntry]) -> set[int]:
    """The shards that are done whose last npz file is gone, or has another size than was put."""
    lists = {entry.shard: name for entry in entries for name in entry.files if name.startswith(f"{STATE}/{NPZ_FILES}/")}

    def is_lacking(name: str) -> bool:
        try:
            described = json.loads(store.read(name) or b"")
            last = next(reversed(described), None)
            return last is not None and store.size(f"{NPZ}/{last}") != described[last][0]
        except (ValueError, TypeError, LookupError):
            return True

    found = store.each(is_lacking, lists.values())
    return {shard for shard, lacking in zip(lists, found, strict=True) if lacking}
