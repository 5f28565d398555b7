"""Names of a shard's objects.

A shard's objects have the names that its files have in a folder.  None is ever replaced, so that a late upload changes
nothing that a commit object refers to.  Where another attempt at the shard left other bytes under a name, the object
gets a part of its SHA-256 after the number (``part-00003-0123456789ab.parquet``).  Objects that no commit object refers
to are removed by the command that holds the output, when it starts and when it ends.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from runner.core.layout import SHARD_FOLDERS, RunLayout

if TYPE_CHECKING:
    from runner.output.state.journal import ShardEntry

_FOLDERS = (*SHARD_FOLDERS, RunLayout.clip_shards, RunLayout.npz_lists)

_SHARD_FILE = re.compile(rf"({'|'.join(map(re.escape, _FOLDERS))})/part-\d+(-[0-9a-f]{{12}})?\.\w+")


def content_name(name: str, sha256: str) -> str:
    """Return a name for an object of this content whose own name is taken."""
    stem, dot, suffix = name.rpartition(".")
    return f"{stem}-{sha256[:12]}{dot}{suffix}"


def local_name(name: str) -> str:
    """Return the name that an object's file has in a folder."""
    match = _SHARD_FILE.fullmatch(name)
    return name.replace(match[2], "") if match and match[2] else name


def unreferenced(present: Iterable[str], entries: Iterable[ShardEntry]) -> list[str]:
    """Return the shards' objects among ``present`` that none of the entries refers to."""
    referenced = {name for entry in entries for name in entry.files}
    return [name for name in present if _SHARD_FILE.fullmatch(name) and name not in referenced]
