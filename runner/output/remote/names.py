"""What the objects of a shard are called in a store.

A shard's files have the names that they have in a folder.  An object is made and never replaced, so that nothing that
arrives late changes what a commit object tells of; where another attempt at the shard left other bytes under the name,
a part of their SHA-256 comes after the number (``part-00003-0123456789ab.parquet``).  Objects that no commit object
tells of are removed by the command that has the output, when it begins and when it ends.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from runner.core.layout import CLIP_PARTS, EMBEDDINGS, NPZ_FILES, STATE, TFRECORD

if TYPE_CHECKING:
    from runner.output.state.journal import ShardEntry

_PART = re.compile(
    rf"({EMBEDDINGS}|{TFRECORD}|{STATE}/{CLIP_PARTS}|{STATE}/{NPZ_FILES})/part-\d+(-[0-9a-f]{{12}})?\.\w+"
)


def named_by_content(name: str, sha256: str) -> str:
    """Another name for an object of this content, where its own is taken."""
    stem, dot, suffix = name.rpartition(".")
    return f"{stem}-{sha256[:12]}{dot}{suffix}"


def name_in_folder(name: str) -> str:
    """What an object's file is called in a folder."""
    found = _PART.fullmatch(name)
    return name.replace(found[2], "") if found and found[2] else name


def strays(present: Iterable[str], counted: Iterable[ShardEntry]) -> list[str]:
    """The objects of shards, among these, that none of the shards that count has."""
    theirs = {name for entry in counted for name in entry.files}
    return [name for name in present if _PART.fullmatch(name) and name not in theirs]
