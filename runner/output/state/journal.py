"""The journal of a run: a line for every shard that is on disk, whole, with what is needed to believe it later.

Lines are JSON with a checksum of their own, appended and flushed one by one.  A line that was cut off by a kill, or
changed since, is as if it were not there: its shard is done again.

Hadoop's and Spark's manifest committer records each task's files in the same way before they count; NeMo Curator takes
"the output file is there" for done.  A record was chosen, because a shard has several files, which may be damaged.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from runner.core.files import flush_folder
from runner.core.layout import CLIP_PARTS, JOURNAL, STATE

_READ = 1 << 20

_HASHING_THREADS = 4


@dataclass(frozen=True)
class ShardEntry:
    """A shard that is done.

    ``files`` gives each of its files, relative to the run's folder, its (bytes, sha256); ``counts`` what ``Progress``
    counts of it; ``rows`` is the digest of the plan's rows that it was made of (``runner.dataset.digests``),
    ``plan`` the
    id of the plan where the files are in an object store.  With ``undone`` set the line takes an earlier one back.
    """

    shard: int
    clips: int = 0
    examples: int = 0
    files: dict[str, tuple[int, str]] = field(default_factory=dict)
    counts: dict[str, Any] = field(default_factory=dict)
    undone: bool = False
    rows: str = ""
    plan: str = ""


def clips_part(entry: ShardEntry) -> str:
    """The file with a shard's part of clips.parquet."""
    own = f"{STATE}/{CLIP_PARTS}/part-"
    return next((name for name in entry.files if name.startswith(own)), f"{own}{entry.shard:05d}.parquet")


class Journal:
    """Appends to a journal; one writer at a time.

    Args:
        path: of the file, made if it is not there.
    """

    def __init__(self, path: Path) -> None:
        self._cut_off = _last_byte(path) not in (b"", b"\n")
        """Whether the last line was cut off, by a kill or a write that failed: the next one ends it first."""
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        flush_folder(path.parent)

    def append(self, entry: ShardEntry) -> None:
        """Add a line and have it on disk."""
        line = ("\n" * self._cut_off + to_line(entry) + "\n").encode()
        self._cut_off = True
        if (written := os.write(self._file, line)) != len(line):
            raise OSError(errno.ENOSPC, f"{written} of {len(line)} bytes of a line were written", JOURNAL)
        os.fsync(self._file)
        self._cut_off = False

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._file)


def read_journal(path: Path) -> tuple[dict[int, ShardEntry], int]:
    """The shards that are done, by number, and how many lines could not be read; nothing for a missing file."""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return {}, 0
    done: dict[int, ShardEntry] = {}
    unreadable = 0
    for line in filter(None, lines):
        entry = from_line(line)
        if entry is None:
            unreadable += 1
        elif entry.undone:
            done.pop(entry.shard, None)
        else:
            done[entry.shard] = entry
    return done, unreadable


def believed(done: Mapping[int, ShardEntry], rows: Sequence[str]) -> dict[int, ShardEntry]:
    """The entries that are of the plan's rows as they are now, given the digest of each shard's.

    Another's may be there: a worker whose command was killed goes on with the plan that it was given.
    """
    return {number: entry for number, entry in done.items() if number < len(rows) and entry.rows == rows[number]}


def take_back(path: Path, shards: Iterable[int]) -> None:
    """Note in a journal that these shards are not done any more."""
    journal = Journal(path)
    for number in shards:
        journal.append(ShardEntry(number, undone=True))
    journal.close()


def size_and_sha256(path: Path) -> tuple[int, str]:
    """A file's bytes and sha256."""
    digest = hashlib.sha256()
    size = 0
    with path.open("rb") as file:
        while block := file.read(_READ):
            digest.update(block)
            size += len(block)
    return size, digest.hexdigest()


def is_changed(path: Path, described: Sequence[Any]) -> bool:
    """Whether a file is missing, or has other than these (bytes, sha256)."""
    try:
        return path.stat().st_size != described[0] or size_and_sha256(path) != tuple(described)
    except OSError:
        return True


def _last_byte(path: Path) -> bytes:
    """The last byte of a file; none of one that is empty or not there."""
    try:
        with path.open("rb") as file:
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
            return file.read(1)
    except FileNotFoundError:
        return b""


def _with_checksum(values: Mapping[str, Any]) -> str:
    text = json.dumps(values, sort_keys=True)
    return json.dumps({**values, "crc": f"{zlib.crc32(text.encode()):08x}"}, sort_keys=True)


def to_line(entry: ShardEntry) -> str:
    """A shard's line, without its end."""
    return _with_checksum(asdict(entry))


def from_line(line: bytes) -> ShardEntry | None:
    """What a line says; None for one that was cut off or changed."""
    try:
        values = json.loads(line)
        checksum = values.pop("crc")
        if json.loads(_with_checksum(values))["crc"] != checksum:
            return None
        files = {str(name): (int(size), str(digest)) for name, (size, digest) in values.pop("files").items()}
        entry = ShardEntry(files=files, **values)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return entry if isinstance(entry.shard, int) and entry.shard >= 0 else None
