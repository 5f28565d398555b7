"""Merges the runs of all partitions of a data set: ``vggish-runner merge PART PART ... [--output FOLDER]``.

Each part is the output.dir, a folder or an object store's URL, of a finished run with ``dataset.partition=i/n``.  They
can be merged if all n partitions are there, of one listing of the data set, with the same settings, weights and
precision, and every file is what the journal says.  The merged output has the files that a single run would have
written, by hard links or the store's own copies where possible.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq

from runner.core.errors import RunnerError
from runner.core.layout import FORMAT_FOLDERS, FORMAT_METADATA, RunLayout, shard_name
from runner.core.lookahead import map_ahead
from runner.output.merge.locations import Copy, merge_fingerprint
from runner.output.shard_statistics import RunStatistics, read_clip_rows
from runner.output.state.journal import current_entries, to_line
from runner.output.verify import npz_names
from runner.output.writer import totals

if TYPE_CHECKING:
    from runner.core.readable import Json
    from runner.dataset.table import PartitionInfo
    from runner.output.merge.locations import Source, Target
    from runner.output.state.journal import ShardEntry

_PARTITION_SETTINGS = ("dataset.partition",)
"""Settings in which partitions differ."""

_THREADS, _LOOKAHEAD = 16, 32
"""Shards that are copied at once, and that are copied or wait for an earlier shard's rows in clips.parquet."""

_PROGRESS_S = 10.0


@dataclass(frozen=True)
class Partition:
    """The run of one partition.

    Attributes:
        source: its folder or URL.
        info: of what data set it is, and which shards.
        settings: that must be equal in all partitions.
        identity: its weights, precision and PCA parameters.
        shards: the number of shards in its plan.
        committed: its committed shards.
    """

    source: Source
    info: PartitionInfo
    settings: Mapping[str, Json]
    identity: Mapping[str, str]
    shards: int
    committed: Mapping[int, ShardEntry]

    @property
    def name(self) -> str:
        """Its folder or URL, for messages."""
        return self.source.name

    @property
    def formats(self) -> Sequence[str]:
        """Its ``output.formats``."""
        formats = self.settings["output.formats"]
        return list(map(str, formats)) if isinstance(formats, list) else []


def read_partition(source: Source) -> Partition:
    """Read a partition's plan and journal.

    Raises:
        RunnerError: it holds no run, or not one of a partition.
    """
    plan = source.plan()
    if plan is None:
        raise RunnerError(f"{source.name} holds no run: give the output.dir of runs with dataset.partition=i/n")
    if plan.partition is None:
        raise RunnerError(
            f"{source.name} is a run of the complete data set: give those of runs with dataset.partition=i/n"
        )
    settings = {key: value for key, value in plan.settings.items() if key not in _PARTITION_SETTINGS}
    committed = current_entries(source.committed(), plan.row_digests)
    return Partition(source, plan.partition, settings, source.identity(), len(plan.shards), committed)


def find_problems(partitions: Sequence[Partition]) -> list[str]:
    """Return why the partitions can't be merged; nothing where they can."""
    first = partitions[0]
    problems = [problem for partition in partitions for problem in _problems_of(partition, first)]
    indices, count = [partition.info.index for partition in partitions], first.info.count
    if repeated := sorted({index for index in indices if indices.count(index) > 1}):
        problems.append(f"repeated partitions: {_join(repeated)}")
    if missing := sorted(set(range(1, count + 1)) - set(indices)):
        problems.append(f"missing partitions: {_join(missing)} (of {count})")
    clips = sum(entry.clips for partition in partitions for entry in partition.committed.values())
    if not problems and clips != first.info.clips:
        problems.append(f"the partitions hold {clips} clips, and the data set {first.info.clips}")
    return problems


def _problems_of(partition: Partition, first: Partition) -> Iterator[str]:
    name, info = partition.name, partition.info
    if info.count != first.info.count:
        yield f"{name} is one of {info.count} partitions, {first.name} one of {first.info.count}"
    if info.digest != first.info.digest:
        yield f"{name} is of another listing of the data set than {first.name}"
    model, other = (each.settings["model.name"] for each in (partition, first))
    if model != other:
        yield f"{name} is of the model {model}, and {first.name} of {other}"
    elif keys := _differing_keys(partition.settings, first.settings):
        yield f"{name} has other settings than {first.name}: {', '.join(keys)}"
    if keys := _differing_keys(partition.identity, first.identity):
        yield f"{name} has other weights or precision than {first.name}: {', '.join(keys)}"
    if owner := partition.source.owner():
        yield f"{name} is in use by another command ({owner}): wait for it"
    if missing := partition.shards - len(partition.committed):
        yield f"{name} is not finished: {missing} of its {partition.shards} shards are missing"
    elif reason := partition.source.why_unfinished():
        yield f"{name} is not finished: {reason}; rerun its command"
    damaged = partition.source.damaged_shards(partition.committed)
    if damaged:
        yield f"{name} is damaged: files of shards {_join(damaged)} are missing or have changed; rerun its command"
    intact = {number: entry for number, entry in partition.committed.items() if number not in damaged}
    if lacking := partition.source.shards_lacking_npz(intact) if "npz" in partition.formats else []:
        yield f"{name} is damaged: shards {_join(lacking)} lack npz files; {partition.source.npz_repair}"


def _differing_keys(values: Mapping[str, object], others: Mapping[str, object]) -> list[str]:
    return sorted(key for key in values.keys() | others.keys() if values.get(key) != others.get(key))


def _join(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))


@dataclass(frozen=True)
class MergedShard:
    """A partition's shard, and its number in the merged output."""

    number: int
    partition: Partition
    entry: ShardEntry

    @property
    def copies(self) -> list[Copy]:
        """Its files of embeddings."""
        folders = tuple(f"{folder}/" for folder in FORMAT_FOLDERS)
        return [
            Copy(name, f"{Path(name).parent.name}/{shard_name(self.number, Path(name).suffix)}", digest)
            for name, digest in self.entry.files.items()
            if name.startswith(folders)
        ]


def merge_partitions(partitions: Sequence[Partition], target: Target) -> None:
    """Write the merged output: files named as a single run's, clips.parquet, and last merged.json.

    A command that was stopped is resumed by the same command: files that are there are not copied again.

    Raises:
        RunnerError: the target holds something else, or a store can't be read or written.
    """
    shards = [
        MergedShard(partition.info.shards[number], partition, entry)
        for partition in partitions
        for number, entry in partition.committed.items()
    ]
    shards.sort(key=lambda shard: shard.number)
    names = [partition.name for partition in partitions]
    fingerprint = merge_fingerprint(names, (f"{shard.number} {to_line(shard.entry)}" for shard in shards))
    target.check(fingerprint)
    with (
        tempfile.TemporaryDirectory(prefix="vggish-merge-", ignore_cleanup_errors=True) as temporary,
        _locked(partitions),
        target.merging(fingerprint),
    ):
        _copy_shards(shards, partitions[0], target, Path(temporary))
        _check_unchanged(partitions)
        _check_copies(shards, partitions, target)
        target.finish(_merged_json(shards, partitions))


def _copy_shards(shards: Sequence[MergedShard], first: Partition, target: Target, temporary: Path) -> None:
    """Copy the files of all shards, and write clips.parquet and stats.npz from their rows and sums."""
    existing = target.existing_sizes()
    for name in FORMAT_METADATA:
        if name.partition("/")[0] in first.formats:
            target.copy_from(first.source, name, name)
    schema = pq.read_schema(first.source.local_path(RunLayout.clips, temporary / RunLayout.clips))
    copy = partial(_copy_shard, target, existing, temporary)
    statistics = RunStatistics(schema)
    with target.writing(RunLayout.clips) as path, pq.ParquetWriter(path, schema, compression="zstd") as clips:
        report_at = time.monotonic() + _PROGRESS_S
        copied = map_ahead(copy, shards, _THREADS, _LOOKAHEAD)
        for count, (shard, rows) in enumerate(zip(shards, copied, strict=True), 1):
            table, sums = read_clip_rows(rows)
            clips.write_table(table.cast(schema))
            statistics.add(sums)
            _downloaded_rows(temporary, shard).unlink(missing_ok=True)
            if time.monotonic() > report_at:
                report_at += _PROGRESS_S
                print(f"{count:,} of {len(shards):,} shards are in {target.name}", file=sys.stderr)
    if data := statistics.to_npz():
        with target.writing(RunLayout.statistics) as path:
            path.write_bytes(data)


def _copy_shard(target: Target, existing: Mapping[str, int], temporary: Path, shard: MergedShard) -> Path:
    """Copy a shard's files, npz files first: they are complete where its other files are.

    Returns:
        The file with its rows of clips.parquet.
    """
    source, entry = shard.partition.source, shard.entry
    rows = source.local_path(entry.clips_file, _downloaded_rows(temporary, shard), entry.files[entry.clips_file])
    copies = shard.copies
    if not copies or any(existing.get(copy.merged_name) != copy.expected.bytes for copy in copies):
        names = npz_names(rows) if "npz" in shard.partition.formats else []
        for name in names:
            target.copy_from(source, name, name)
        target.flush(names)
        for copy in copies:
            target.copy_from(source, copy.name, copy.merged_name, copy.expected)
    return rows


def _downloaded_rows(temporary: Path, shard: MergedShard) -> Path:
    return temporary / shard_name(shard.number, ".parquet")


@contextmanager
def _locked(partitions: Sequence[Partition]) -> Iterator[None]:
    """Lock the partitions, and check that they are still as they were read."""
    with ExitStack() as locks:
        for partition in partitions:
            locks.enter_context(partition.source.locked())
        _check_unchanged(partitions)
        yield


def _check_unchanged(partitions: Sequence[Partition]) -> None:
    for partition in partitions:
        if changed := partition.source.changed_files():
            raise RunnerError(
                f"{partition.name} changed during the merge ({changed[0]} and {len(changed) - 1} more): make sure that "
                "no command writes there, and merge the partitions into another folder"
            )


def _check_copies(shards: Sequence[MergedShard], partitions: Sequence[Partition], target: Target) -> None:
    """Check that the merged files equal the partitions', and remove those that do not."""
    wrong = []
    for partition in partitions:
        copies = [copy for shard in shards if shard.partition is partition for copy in shard.copies]
        wrong += target.remove_wrong(partition.source, copies)
    if wrong:
        raise RunnerError(
            f"{target.name}: removed {len(wrong)} files that differed from the partitions', {wrong[0]} among them: "
            "rerun the same command"
        )


def _merged_json(shards: Sequence[MergedShard], partitions: Sequence[Partition]) -> str:
    sums = totals({shard.number: shard.entry for shard in shards})
    content = {
        "partitions": [partition.name for partition in partitions],
        "metrics": sums.metrics,
        "skipped": sums.skipped,
        "warned": sums.warned,
        "identity": dict(partitions[0].identity),
    }
    return json.dumps(content, indent=2)
