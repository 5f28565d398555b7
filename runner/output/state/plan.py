"""The plan of a run: its clips, its shards, and which of them are committed; made, or brought up to date on resuming.

When a run is resumed, a source file whose size or time of modification changed has its shard re-run.  One that vanished
keeps its rows if its shard is committed, and is skipped as ``missing`` otherwise.  New files get shards of their own at
the end.  A manifest file may get new rows and other labels, whose shards are re-run, but must keep the rows that it
had.  Clips that were skipped for a transient reason are tried again (``runner.output.state.rerun``).

An entry of the journal counts only while the digest of its shard's rows is the plan's: the worker of a killed command
still has the older plan, and may append its entry at any time.
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from runner.config.fingerprint import fingerprint
from runner.config.schema import ManifestDataset
from runner.core.errors import ResumeError
from runner.core.files import atomic, make_folder
from runner.core.layout import RunLayout
from runner.core.span import Span
from runner.dataset.changes import OLDER_LISTING, Changes, has_file, reconcile, rows_of
from runner.dataset.digests import digest_of, row_digests
from runner.dataset.shards import shards_of
from runner.dataset.table import CHUNK_CLIPS
from runner.output.state.journal import current_entries, read_journal, revoke
from runner.output.state.plan_file import StoredPlan, read_plan, write_plan
from runner.output.state.rerun import shards_to_retry

if TYPE_CHECKING:
    from runner.config.schema import RunConfig
    from runner.dataset.table import Manifest, PartitionInfo
    from runner.output.state.journal import ShardEntry

Download = Callable[[Iterable[int]], None]
"""Downloads these shards' rows of clips.parquet into the run's folder, where they are in an object store."""


@dataclass(frozen=True)
class Plan:
    """The work of a run.

    Attributes:
        manifest: its clips.
        shards: the rows of the manifest in each shard.
        row_digests: of each shard's rows.
        committed: the shards that the journal has, and that need no re-run.
        is_resumed: whether the folder held the run already.
        notes: for the user: changes since the run started, shards that are re-run.
        id: of the run, whatever changed.
    """

    manifest: Manifest
    shards: list[Span]
    row_digests: list[str]
    committed: dict[int, ShardEntry]
    is_resumed: bool
    notes: list[str] = field(default_factory=list)
    id: str = ""

    @property
    def is_finished(self) -> bool:
        """Whether all shards are committed."""
        return len(self.committed) == len(self.shards)


def make_plan(folder: Path, config: RunConfig, listed: Manifest, download: Download = lambda shards: None) -> Plan:
    """Plan a new run, or bring the plan of the run in ``folder`` up to date; it is on disk when this returns.

    Args:
        folder: the run's.
        config: the run's.
        listed: the data set as it is now.
        download: gets shards' rows of clips.parquet that are not in the folder.

    Raises:
        ConfigError: plan.json can't be read.
        ResumeError: manifest.parquet can't be read, or rows of the manifest file are gone.
    """
    make_folder(RunLayout(folder).state)
    stored = read_plan(folder)
    if stored is None:
        return _new_plan(folder, config, listed)
    return _resume_plan(folder, config, listed, stored, download)


def _new_plan(folder: Path, config: RunConfig, listed: Manifest) -> Plan:
    if listed.partition:
        ends = itertools.accumulate(listed.partition.sizes, initial=0)
        shards = [Span(first, end) for first, end in itertools.pairwise(ends)]
    else:
        shards = shards_of(listed.table, config)
    digests, run_id = row_digests(listed.table, shards), uuid.uuid4().hex
    _write_manifest(RunLayout(folder).manifest, listed.table)
    write_plan(folder, StoredPlan(run_id, fingerprint(config), shards, digests, listed.partition))
    return Plan(replace(listed, whole=None), shards, digests, {}, is_resumed=False, id=run_id)


def _resume_plan(folder: Path, config: RunConfig, listed: Manifest, stored: StoredPlan, download: Download) -> Plan:
    path, is_older_listing = RunLayout(folder).manifest, False
    if listed.partition is not None and stored.partition is not None and stored.partition != listed.partition:
        listed, is_older_listing = _as_partition_began(listed, stored.partition, path), True
    planned = _planned_clips(path, listed.table, stored)
    if planned is listed.table:
        table, changes = planned, Changes(exists=has_file(planned))
    else:
        table, changes = reconcile(planned, listed.table)
    if changes.removed and isinstance(config.dataset, ManifestDataset):
        raise ResumeError(
            f"{config.dataset.path} no longer has {len(changes.removed):,} rows that this run started with (the first: "
            f"{table['clip'][changes.removed[0]].as_py()}): restore them, or choose another output.dir"
        )
    shards = list(stored.shards)
    if changes.new_clips:
        added = shards_of(table.slice(stored.clips), config)
        shards += [Span(stored.clips + first, stored.clips + end) for first, end in added]
    digest = listed.digest if table is listed.table else digest_of(table)
    plan = Plan(
        manifest=replace(listed, table=table, digest=digest, whole=None),
        shards=shards,
        row_digests=row_digests(table, shards),
        committed={},
        is_resumed=True,
        notes=[*changes.notes(), *[OLDER_LISTING] * is_older_listing],
        id=stored.id,
    )
    committed, notes = _committed_shards(folder, plan, changes, download)
    if plan.row_digests != stored.row_digests or not table.equals(planned):
        _write_manifest(path, table)
        write_plan(folder, StoredPlan(stored.id, fingerprint(config), shards, plan.row_digests, listed.partition))
    return replace(plan, committed=committed, notes=[*plan.notes, *notes])


def _committed_shards(
    folder: Path, plan: Plan, changes: Changes, download: Download
) -> tuple[dict[int, ShardEntry], list[str]]:
    """Return the committed shards that need no re-run, and notes on the others, which are revoked in the journal."""
    path, notes = RunLayout(folder).journal, []
    journaled, unreadable = read_journal(path)
    current = current_entries(journaled, plan.row_digests)
    if unreadable:
        notes.append(f"skipped {unreadable} truncated journal lines; their shards will be re-run")
    outdated = journaled.keys() - current.keys()
    if outdated and not (changes.changed or changes.relabeled):
        notes.append(f"re-running {len(outdated):,} shards of older files or labels")
    again = set(shards_to_retry(folder, current, plan.shards, plan.manifest.table["path"], changes.exists, download))
    if again:
        notes.append(f"re-running {len(again):,} shards with clips that were skipped for transient reasons")
    if revoked := sorted(outdated | again):
        revoke(path, revoked)
    return {number: entry for number, entry in current.items() if number not in again}, notes


def _as_partition_began(listed: Manifest, partition: PartitionInfo, planned: Path) -> Manifest:
    """Return the clips of a partition that was cut from an earlier listing, as they are listed now."""
    try:
        names = pq.read_table(planned, columns=["clip"])["clip"]
    except (OSError, pa.ArrowException) as error:
        raise _manifest_lost(planned, error) from error
    assert listed.whole is not None
    return replace(listed, table=rows_of(listed.whole, names), partition=partition)


def _planned_clips(path: Path, listed: pa.Table, stored: StoredPlan) -> pa.Table:
    """Return the clips of manifest.parquet; ``listed`` itself where they are equal, or where the file is damaged.

    Raises:
        ResumeError: the file can't be read, and the listed clips are not those of the plan.
    """
    try:
        if listed.num_rows == stored.clips and _equals_manifest(path, listed):
            return listed
        return pq.read_table(path).slice(0, stored.clips)
    except (OSError, pa.ArrowException) as error:
        if listed.num_rows != stored.clips or row_digests(listed, stored.shards) != stored.row_digests:
            raise _manifest_lost(path, error) from error
        _write_manifest(path, listed)
        return listed


def _manifest_lost(path: Path, error: Exception) -> ResumeError:
    return ResumeError(f"{path} can't be read ({error}), and the data set has changed: choose another output.dir")


def _equals_manifest(path: Path, listed: pa.Table) -> bool:
    """Return whether a manifest.parquet holds exactly the listed clips, sizes and times included; read in batches."""
    with pq.ParquetFile(path) as file:
        if file.metadata.num_rows != listed.num_rows:
            return False
        first = 0
        for batch in file.iter_batches(CHUNK_CLIPS):
            if not pa.Table.from_batches([batch]).equals(listed.slice(first, batch.num_rows)):
                return False
            first += batch.num_rows
    return True


def _write_manifest(path: Path, table: pa.Table) -> None:
    with atomic(path) as temporary:
        pq.write_table(table, temporary, row_group_size=CHUNK_CLIPS, use_dictionary=["label"], compression="zstd")
