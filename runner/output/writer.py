"""Writes a run's shards: the files of every format, then the journal entry; and at the end clips.parquet."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pyarrow.parquet as pq

from runner.core.errors import EngineError
from runner.core.files import atomic, digest_file, make_folder
from runner.core.layout import RunLayout
from runner.devices.host import usable_cores, writers_for
from runner.output.parquet import parquet_metadata
from runner.output.rows import clip_table, unknown_time
from runner.output.run_model import RunModel
from runner.output.shard_statistics import RunStatistics, read_clip_rows, statistics_of, write_clip_rows
from runner.output.spill import Spill
from runner.output.state.journal import ShardCounts, ShardEntry
from runner.output.top_classes import clip_schema, with_top_classes

if TYPE_CHECKING:
    from runner.config.schema import RunConfig
    from runner.core.span import Span
    from runner.output.rows import ClipRow, EmbeddingInfo, RecordedAt, ShardFormat

log = logging.getLogger(__name__)


class CommitLog(Protocol):
    """Records the committed shards of a run, as ``Journal`` does in a file."""

    def append(self, entry: ShardEntry) -> None:
        """Record a committed shard, or a revoked one, durably."""
        ...


class Uploader(Protocol):
    """Uploads shards to an object store; see ``runner.output.remote.committer``."""

    def commit(self, entry: ShardEntry) -> ShardEntry:
        """Upload a shard's files and its commit object; return the entry that the store has now."""
        ...

    def delete_local(self, entry: ShardEntry) -> None:
        """Delete a committed shard's files from this machine."""
        ...

    def revoke(self, shard: int) -> None:
        """Remove a shard's commit object."""
        ...


class Writer(Protocol):
    """Takes the complete shards of a pipeline, from several threads.

    Attributes:
        parallel: shards to write at a time.
    """

    parallel: int

    def write_shard(self, shard: int, rows: Sequence[ClipRow]) -> None:
        """Write a complete shard, its clips in manifest order."""
        ...

    def revoke_from(self, count: int) -> None:
        """Revoke all shards written after the first ``count``, and commit no more."""
        ...


class Files(Protocol):
    """Writes the files of shards, from ``parallel`` threads: ``ShardFiles``, or processes that have one each."""

    parallel: int

    @property
    def folder(self) -> Path: ...

    def write(self, shard: int, rows: Sequence[ClipRow], row_digest: str) -> ShardEntry: ...


class ShardFiles:
    """Writes the files of a shard: its embeddings in every format, and its rows of clips.parquet with their sums.

    Args:
        folder: the run's folder.
        info: on its embeddings.
        formats: the writers of embeddings.
        recorded_at: the function for that column of clips.parquet.

    Attributes:
        folder: the run's folder.
        info: on its embeddings.
        parallel: threads that may write: compressing, hashing and flushing leave the interpreter to others.
    """

    def __init__(
        self,
        folder: Path,
        info: EmbeddingInfo,
        formats: Sequence[ShardFormat],
        recorded_at: RecordedAt = unknown_time,
    ) -> None:
        self.folder, self.info = folder, info
        self.parallel = writers_for(usable_cores())
        self._formats = formats
        self._recorded_at = recorded_at
        make_folder(RunLayout(folder).clip_shards)

    def write(self, shard: int, rows: Sequence[ClipRow], row_digest: str) -> ShardEntry:
        """Write a complete shard, its clips in manifest order; return its entry."""
        clips = with_top_classes(clip_table(rows, self._recorded_at), rows, self.info)
        counts = _counts(rows)  # while the rows are in the core's cache
        files = [path for form in self._formats for path in form.write(shard, rows)]
        clips_file = self.folder / ShardEntry(shard).clips_file
        with atomic(clips_file) as temporary:
            write_clip_rows(temporary, clips, statistics_of(rows, self.info))
        return ShardEntry(
            shard=shard,
            clips=len(rows),
            examples=sum(row.examples for row in rows),
            files={path.relative_to(self.folder).as_posix(): digest_file(path) for path in (*files, clips_file)},
            counts=counts,
            row_digest=row_digest,
        )


class ShardWriter:
    """Writes and commits shards: all files of one are on disk, complete, before the log has its entry.

    Args:
        files: writes a shard's files.
        commit_log: records committed shards.
        committed: the shards that were committed before.
        row_digests: of each shard's rows, for its entry; empty where nothing is resumed.
        uploader: has each shard in an object store before the log has its entry; None for a run on a file system.

    Attributes:
        committed: the committed shards by number, in the order of their commits.
        parallel: shards to write at a time.
    """

    def __init__(
        self,
        files: Files,
        commit_log: CommitLog,
        committed: Mapping[int, ShardEntry] | None = None,
        row_digests: Sequence[str] = (),
        uploader: Uploader | None = None,
    ) -> None:
        self.committed = dict(committed or {})
        self.parallel = files.parallel
        self._files = files
        self._log = commit_log
        self._row_digests = row_digests
        self._uploader = uploader
        self._lock = threading.Lock()
        self._is_revoked = False

    def write_shard(self, shard: int, rows: Sequence[ClipRow]) -> None:
        """Write and commit a complete shard, its clips in manifest order; from any thread."""
        self.commit(self._files.write(shard, rows, self._row_digests[shard] if self._row_digests else ""))

    def commit(self, entry: ShardEntry) -> None:
        """Commit a shard whose files are on disk, complete; ignore it after ``revoke_from``."""
        if self._uploader:
            entry = self._uploader.commit(entry)
        with self._lock:
            is_committed = not self._is_revoked
            if is_committed:
                self._log.append(entry)
                self.committed[entry.shard] = entry
        if self._uploader and is_committed:
            self._uploader.delete_local(entry)
        elif self._uploader:
            self._uploader.revoke(entry.shard)

    def revoke_from(self, count: int) -> None:
        """Revoke all shards but the first ``count`` of ``committed``, and commit no more."""
        with self._lock:
            self._is_revoked = True
        for shard in list(self.committed)[count:]:
            self.revoke(shard)

    def revoke(self, shard: int) -> None:
        """Revoke a committed shard: it is to be re-run."""
        with self._lock:
            self._log.append(ShardEntry(shard, revoked=True))
            self.committed.pop(shard, None)
        if self._uploader:
            self._uploader.revoke(shard)


@contextmanager
def clips_table(folder: Path, committed: Mapping[int, ShardEntry], metadata: Mapping[str, str]) -> Iterator[None]:
    """Write clips.parquet when the block ends; an error of the block is raised even where that fails.

    Args:
        folder: the run's.
        committed: the shards, as they are then.
        metadata: of the run.
    """
    try:
        yield
    except BaseException:
        try:
            write_clips_table(folder, committed, metadata)
        except Exception as error:
            log.warning("could not write %s: %s", RunLayout.clips, error)
        raise
    write_clips_table(folder, committed, metadata)


def write_clips_table(folder: Path, committed: Mapping[int, ShardEntry], metadata: Mapping[str, str]) -> None:
    """Write clips.parquet and stats.npz from the shards' own rows and sums, in the order of the shards.

    Args:
        folder: the run's.
        committed: the shards.
        metadata: of the run.
    """
    layout = RunLayout(folder)
    columns = clip_schema(RunModel.from_metadata(metadata).outputs)
    schema = columns.with_metadata(parquet_metadata(metadata))
    statistics = RunStatistics(schema)
    with atomic(layout.clips) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as clips:
        for shard in sorted(committed):
            rows, sums = read_clip_rows(folder / ShardEntry(shard).clips_file)
            clips.write_table(rows.cast(columns))
            statistics.add(sums, (folder / name for name in committed[shard].files))
    statistics.write(folder)


def _counts(rows: Sequence[ClipRow]) -> ShardCounts:
    embedded = [row for row in rows if row.status == "embedded"]
    return ShardCounts(
        embedded=len(embedded),
        padded=sum(row.padded for row in embedded),
        audio_s=sum(row.seconds for row in embedded),
        skipped=dict(Counter(row.reason or "unknown" for row in rows if row.status == "skipped")),
        warned=dict(Counter(row.reason for row in embedded if row.reason)),
    )


@dataclass(frozen=True)
class Totals:
    """The sums of committed shards.

    Attributes:
        metrics: by name, as in ``runner.core.metrics``.
        skipped: skipped clips by reason.
        warned: embedded clips with a warning, by reason.
    """

    metrics: dict[str, float]
    skipped: dict[str, int]
    warned: dict[str, int]


def totals(committed: Mapping[int, ShardEntry]) -> Totals:
    """Sum up committed shards."""
    entries = committed.values()
    skipped: Counter[str] = Counter()
    warned: Counter[str] = Counter()
    for entry in entries:
        skipped.update(entry.counts.skipped)
        warned.update(entry.counts.warned)
    metrics = {
        "clips_embedded": float(sum(entry.counts.embedded for entry in entries)),
        "clips_skipped": float(skipped.total()),
        "clips_padded": float(sum(entry.counts.padded for entry in entries)),
        "examples": float(sum(entry.examples for entry in entries)),
        "audio_s": float(sum(entry.counts.audio_s for entry in entries)),
    }
    return Totals(metrics, dict(skipped), dict(warned))


def check_complete(shards: Sequence[Span], committed: Mapping[int, ShardEntry]) -> None:
    """Check that every clip of the shards was embedded or skipped, exactly once.

    Raises:
        EngineError: shards are missing, or their counts don't add up.
    """
    wrong = [
        number
        for number, (first, end) in enumerate(shards)
        if (entry := committed.get(number)) is None or not entry.clips == end - first == entry.counts.clips
    ]
    if wrong:
        clips = sum(end - first for first, end in (shards[number] for number in wrong))
        raise EngineError(
            f"{len(wrong):,} shards with {clips:,} clips are missing, or their counts don't add up (the first is shard "
            f"{wrong[0]}): rerun the same command to resume, and please report it with runner.log"
        )


def make_spill(run_dir: Path, config: RunConfig) -> Spill:
    """Make the spill of a run, below its state folder, with ``memory.embeddings_mib``."""
    return Spill(RunLayout(run_dir).state, config.memory.embeddings_mib)
