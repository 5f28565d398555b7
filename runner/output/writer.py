"""The files of a run: embeddings by shard in the formats asked for, and clips.parquet with every clip's end."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from runner.core.errors import EngineError
from runner.core.files import atomic, make_folder
from runner.core.layout import CLIP_PARTS, CLIPS, JOURNAL, STATE
from runner.output.formats import Extra, NpzFiles, ParquetShards, parquet_metadata
from runner.output.rows import CLIP_SCHEMA, clip_table
from runner.output.shard_statistics import RunStatistics, read_clip_rows, statistics_of, write_clip_rows
from runner.output.spill import Spill
from runner.output.state.journal import Journal, ShardEntry, size_and_sha256
from runner.output.tfrecord import TfrecordShards
from runner.vggish.postprocess import COLUMNS

if TYPE_CHECKING:
    from runner.config.schema import OutputConfig, RunConfig
    from runner.output.formats import ShardFormat
    from runner.output.rows import ClipRow


class JournalLike(Protocol):
    """What notes shards that are done."""

    def append(self, entry: ShardEntry) -> None:
        """Note one."""
        ...

    def close(self) -> None:
        """Let go."""
        ...


class RunWriter:
    """Writes a run's shards as they become complete; each is on disk, whole, before the journal has its line.

    Args:
        folder: the run's folder.
        metadata: what every file says of itself (model, weights, precision, device, versions).
        formats: the writers of embeddings.
        done: the shards that the journal has already.
        journal: where shards that are done are noted; the run's own when None.
        rows: the digest of each shard's rows, for their lines; empty where nothing is resumed.
    """

    def __init__(
        self,
        folder: Path,
        metadata: Mapping[str, str],
        formats: Sequence[ShardFormat],
        done: Mapping[int, ShardEntry] | None = None,
        *,
        journal: JournalLike | None = None,
        rows: Sequence[str] = (),
    ) -> None:
        self._folder = folder
        self._rows = rows
        self._formats = formats
        self.describe(metadata)
        self._parts = folder / STATE / CLIP_PARTS
        make_folder(self._parts)
        self._journal = journal or Journal(folder / STATE / JOURNAL)
        self.done = dict(done or {})
        """The shards that are on disk, by number."""
        self._lock = threading.Lock()
        self._distrusted = False

    def write_shard(self, shard: int, rows: Sequence[ClipRow]) -> None:
        """Write a complete shard, its clips in manifest order; from any thread."""
        files = [path for form in self._formats for path in form.write(shard, rows)]
        part = self._part(shard)
        with atomic(part) as temporary:
            write_clip_rows(temporary, clip_table(rows), statistics_of(rows))
        files.append(part)
        described = {path.relative_to(self._folder).as_posix(): size_and_sha256(path) for path in files}
        examples = sum(row.examples for row in rows)
        of_rows = self._rows[shard] if self._rows else ""
        self.record(ShardEntry(shard, len(rows), examples, described, _counts(rows), rows=of_rows))

    def record(self, entry: ShardEntry) -> None:
        """Note a shard whose files are on disk, whole, or one that is to be done again."""
        with self._lock:
            if self._distrusted and not entry.undone:
                return  # it was under way when others were taken back
            self._journal.append(entry)
            if entry.undone:
                self.done.pop(entry.shard, None)
            else:
                self.done[entry.shard] = entry

    def take_back(self, first: int) -> None:
        """Have all shards but the ``first`` so many of ``done`` done again, as the journal says; no more are noted."""
        with self._lock:
            self._distrusted = True
        for shard in list(self.done)[first:]:
            self.record(ShardEntry(shard, undone=True))

    def describe(self, metadata: Mapping[str, str]) -> None:
        """What clips.parquet is to say of itself, where that was not known at the start."""
        self._schema = CLIP_SCHEMA.with_metadata(parquet_metadata(metadata))

    def close(self) -> None:
        """Make clips.parquet of the shards that are done, in their order."""
        self._journal.close()
        with (
            atomic(self._folder / CLIPS) as temporary,
            pq.ParquetWriter(temporary, self._schema, compression="zstd") as clips,
        ):
            statistics = RunStatistics()
            for shard in sorted(self.done):
                rows, sums = read_clip_rows(self._part(shard))
                clips.write_table(rows.cast(CLIP_SCHEMA))
                statistics.add(sums, (self._folder / name for name in self.done[shard].files))
        statistics.write(self._folder, self._schema)

    def _part(self, shard: int) -> Path:
        return self._parts / f"part-{shard:05d}.parquet"


def _counts(rows: Sequence[ClipRow]) -> dict[str, Any]:
    embedded = [row for row in rows if row.status == "embedded"]
    return {
        "embedded": len(embedded),
        "audio_s": sum(row.seconds for row in embedded),
        "padded": sum(row.padded for row in embedded),
        "skipped": dict(Counter(row.reason or "unknown" for row in rows if row.status == "skipped")),
        "noted": dict(Counter(row.reason for row in embedded if row.reason)),
    }


def totals(done: Mapping[int, ShardEntry]) -> tuple[dict[str, float], dict[str, int], dict[str, int]]:
    """What shards that are done come to: metrics, how many clips were skipped and noted, by reason."""
    entries = done.values()
    skipped: Counter[str] = Counter()
    noted: Counter[str] = Counter()
    for entry in entries:
        skipped.update(entry.counts["skipped"])
        noted.update(entry.counts["noted"])
    metrics = {
        "clips_embedded": float(sum(entry.counts["embedded"] for entry in entries)),
        "clips_skipped": float(skipped.total()),
        "clips_padded": float(sum(entry.counts["padded"] for entry in entries)),
        "examples": float(sum(entry.examples for entry in entries)),
        "audio_s": float(sum(entry.counts["audio_s"] for entry in entries)),
    }
    return metrics, dict(skipped), dict(noted)


def check_complete(shards: Sequence[tuple[int, int]], done: Mapping[int, ShardEntry]) -> None:
    """Whether every clip of the shards, each (first clip, one past the last), has ended in exactly one way.

    Raises:
        EngineError: it has not; the run must not be told to be finished.
    """
    wrong = [
        number
        for number, (first, end) in enumerate(shards)
        if (entry := done.get(number)) is None
        or entry.clips != end - first
        or entry.counts["embedded"] + sum(entry.counts["skipped"].values()) != entry.clips
    ]
    if wrong:
        clips = sum(shards[number][1] - shards[number][0] for number in wrong)
        raise EngineError(
            f"{len(wrong):,} shards with {clips:,} clips have no end, or counts that don't add up (the first is shard "
            f"{wrong[0]}): the run is not finished; rerun the same command, and please report it with runner.log"
        )


def make_formats(
    output: OutputConfig,
    folder: Path,
    metadata: Mapping[str, str],
    hop_s: float,
    labels: Sequence[str],
    postprocess: Callable[[NDArray[np.float32]], NDArray[Any]] | None = None,
) -> list[ShardFormat]:
    """The writers that ``output`` asks for.

    Args:
        output: what is asked for.
        folder: the run's.
        metadata: what the files say of themselves.
        hop_s: seconds between examples.
        labels: the data set's distinct ones.
        postprocess: embeddings to their post-processed form; None for none.
    """
    extra = Extra(COLUMNS[output.postprocess], postprocess) if postprocess else None
    made: list[ShardFormat] = []
    for name in dict.fromkeys(output.formats):
        if name == "npz":
            made.append(NpzFiles(folder, metadata, hop_s, extra))
        elif name == "tfrecord":
            assert postprocess is not None  # see validation: AudioSet's format has 8-bit embeddings
            made.append(TfrecordShards(folder, metadata, labels, postprocess))
        else:
            made.append(ParquetShards(folder, metadata, hop_s, output.compression, extra))
    return made


def make_spill(run_dir: Path, config: RunConfig) -> Spill:
    """What keeps a run's embeddings until their shard is written."""
    return Spill(run_dir / STATE, config.memory.embeddings_mib)
