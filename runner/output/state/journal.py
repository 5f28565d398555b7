"""The journal of a run: one line for each committed shard, with size and SHA-256 of each of its files.

A line is JSON with a checksum of its own, appended and flushed before the next.  A line that a kill truncated, or that
changed since, is ignored, and its shard is re-run.  Lines rather than the presence of files say what is committed,
because a shard has several files and any of them may be damaged.
"""

from __future__ import annotations

import errno
import json
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from runner.core.files import FileDigest, flush_folder
from runner.core.layout import RunLayout, shard_name


@dataclass(frozen=True)
class ShardCounts:
    """How the clips of a shard ended.

    Attributes:
        embedded: clips with embeddings.
        padded: embedded clips shorter than one example.
        audio_s: seconds of audio of the embedded clips.
        skipped: skipped clips by reason.
        warned: embedded clips with a warning, by reason.
    """

    embedded: int = 0
    padded: int = 0
    audio_s: float = 0.0
    skipped: dict[str, int] = field(default_factory=dict)
    warned: dict[str, int] = field(default_factory=dict)

    @property
    def clips(self) -> int:
        """All clips that ended."""
        return self.embedded + sum(self.skipped.values())


@dataclass(frozen=True)
class ShardEntry:
    """A line of the journal, or a commit object: a committed shard, or one whose earlier entry is revoked.

    Attributes:
        shard: its number in the plan.
        clips: clips in it.
        examples: embeddings of all of them.
        files: its files by name relative to the run's folder.
        counts: how its clips ended.
        revoked: whether this entry revokes the earlier one: the shard is to be re-run.
        row_digest: of the plan's rows that it was made of; see ``runner.dataset.digests``.
        plan_id: of the plan, for outputs in an object store.
    """

    shard: int
    clips: int = 0
    examples: int = 0
    files: dict[str, FileDigest] = field(default_factory=dict)
    counts: ShardCounts = field(default_factory=ShardCounts)
    revoked: bool = False
    row_digest: str = ""
    plan_id: str = ""

    @property
    def clips_file(self) -> str:
        """The name of its file with its rows of clips.parquet."""
        folder = f"{RunLayout.clip_shards}/"
        own = next((name for name in self.files if name.startswith(folder)), None)
        return own or folder + shard_name(self.shard, ".parquet")


class Journal:
    """Appends to a journal; one writer at a time.

    Args:
        path: of the file, which is made if it is missing.
    """

    def __init__(self, path: Path) -> None:
        self._is_truncated = _last_byte(path) not in (b"", b"\n")  # by a kill or a failed write: the next line ends it
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        flush_folder(path.parent)

    def append(self, entry: ShardEntry) -> None:
        """Append a line and flush it to disk.

        Raises:
            OSError: the disk is full, or can't be written.
        """
        line = ("\n" * self._is_truncated + to_line(entry) + "\n").encode()
        self._is_truncated = True
        if (written := os.write(self._file, line)) != len(line):
            raise OSError(errno.ENOSPC, f"{written} of {len(line)} bytes of a line were written", RunLayout.journal)
        os.fsync(self._file)
        self._is_truncated = False

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def read_journal(path: Path) -> tuple[dict[int, ShardEntry], int]:
    """Return the committed shards by number, and the number of unreadable lines; none of a missing file."""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return {}, 0
    committed: dict[int, ShardEntry] = {}
    unreadable = 0
    for line in filter(None, lines):
        entry = from_line(line)
        if entry is None:
            unreadable += 1
        elif entry.revoked:
            committed.pop(entry.shard, None)
        else:
            committed[entry.shard] = entry
    return committed, unreadable


def current_entries(committed: Mapping[int, ShardEntry], row_digests: Sequence[str]) -> dict[int, ShardEntry]:
    """Return the entries that were made of the plan's rows as they are now.

    The worker of a killed command continues with the plan that it was given, and may append entries of older rows.
    """
    return {
        number: entry
        for number, entry in committed.items()
        if number < len(row_digests) and entry.row_digest == row_digests[number]
    }


def revoke(path: Path, shards: Iterable[int]) -> None:
    """Append to a journal that these shards are to be re-run."""
    journal = Journal(path)
    for number in shards:
        journal.append(ShardEntry(number, revoked=True))
    journal.close()


def to_line(entry: ShardEntry) -> str:
    """Return an entry's line, without its line feed."""
    return _with_checksum(asdict(entry))


def from_line(line: bytes) -> ShardEntry | None:
    """Parse a line; return None if it was truncated or changed."""
    try:
        values = json.loads(line)
        checksum = values.pop("crc")
        if json.loads(_with_checksum(values))["crc"] != checksum:
            return None
        files = {str(name): FileDigest(int(size), str(digest)) for name, (size, digest) in values.pop("files").items()}
        entry = ShardEntry(files=files, counts=ShardCounts(**values.pop("counts")), **values)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return entry if isinstance(entry.shard, int) and entry.shard >= 0 else None


def _with_checksum(values: Mapping[str, object]) -> str:
    text = json.dumps(values, sort_keys=True)
    return json.dumps({**values, "crc": f"{zlib.crc32(text.encode()):08x}"}, sort_keys=True)


def _last_byte(path: Path) -> bytes:
    """Return the last byte of a file; nothing of one that is empty or missing."""
    try:
        with path.open("rb") as file:
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
            return file.read(1)
    except FileNotFoundError:
        return b""
