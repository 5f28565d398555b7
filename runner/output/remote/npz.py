"""Checks the npz files of a run in an object store: one of each shard, as all are too many."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

from runner.core.layout import RunLayout

if TYPE_CHECKING:
    from runner.output.state.journal import ShardEntry
    from runner.storage.object_store import ObjectStore


def shards_lacking_npz(store: ObjectStore, entries: Iterable[ShardEntry]) -> set[int]:
    """Return the committed shards whose last npz file is missing, or has another size than was uploaded."""
    folder = f"{RunLayout.npz_lists}/"
    lists = {entry.shard: name for entry in entries for name in entry.files if name.startswith(folder)}

    def lacks_npz(name: str) -> bool:
        try:
            files = json.loads(store.read(name) or b"")
            last = next(reversed(files), None)
            return last is not None and store.size(f"{RunLayout.npz}/{last}") != files[last][0]
        except (ValueError, TypeError, LookupError):
            return True

    lacking = store.map(lacks_npz, lists.values())
    return {shard for shard, is_lacking in zip(lists, lacking, strict=True) if is_lacking}
