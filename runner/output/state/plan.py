"""Taking a run up again: who may write to its folder, whether the configuration fits, what became of the data.

A run's folder holds, under ``.runner``, the plan (``plan.json`` with the shards and all that decides numbers,
``manifest.parquet`` with the clips), the journal of shards that are done, each shard's part of clips.parquet, and two
locks: of the command and of its worker.  The locks are the system's (flock), so that those of a dead process are free.

The rule for source files, on resuming: one that changed (size or time of modification) is embedded anew, its shard
with it; one that vanished keeps its rows if its shard is done, else it is skipped as ``missing``; new ones get shards
of their own at the end.  A manifest file may get new rows and other labels, whose shards are done again, but must keep
those that it had.  Clips that were skipped for a reason that may have passed are tried again
(``runner.output.state.redo``).

A shard's line of the journal is believed if it is of the plan's rows as they are now, by their digest: the worker of a
killed command, which goes on with an older plan, may write its line at any time.
"""

from __future__ import annotations

import itertools
import json
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from runner.config.fingerprint import fingerprint
from runner.config.schema import ManifestDataset
from runner.core.errors import ConfigError, ResumeError
from runner.core.files import atomic, make_folder, write_atomic
from runner.core.layout import FOLDERS, JOURNAL, MANIFEST, PLAN, SESSIONS, STATE, SWEEP_FILE
from runner.core.paths import display_location
from runner.dataset.changes import OLDER_LISTING, Changes, among, has_file, reconcile
from runner.dataset.digests import digest_of, row_digests
from runner.dataset.shards import shards_of
from runner.dataset.table import CHUNK_CLIPS
from runner.output.state.journal import believed, read_journal, take_back
from runner.output.state.redo import shards_to_retry

if TYPE_CHECKING:
    from runner.config.schema import RunConfig
    from runner.dataset.table import Manifest
    from runner.output.state.journal import ShardEntry

PLAN_SCHEMA = 2

_PLAN_KEYS = {"deciding", "shards", "rows"}


def begin_session(folder: Path, about: Mapping[str, Any]) -> int:
    """Note that the run is taken up; which session of it this is, from 1."""
    path = folder / STATE / SESSIONS
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(about) + "\n")
    return len(path.read_text(encoding="utf-8").splitlines())


def began_at(folder: Path) -> float | None:
    """When the run's first session began, in seconds since the epoch; None if there is no note of it."""
    try:
        with (folder / STATE / SESSIONS).open(encoding="utf-8") as file:
            return float(json.loads(file.readline())["started_at"])
    except (OSError, ValueError, KeyError):
        return None


def check_folder(folder: Path, config: RunConfig) -> None:
    """Whether a run of this configuration may have its files in ``folder``: it is free, or holds the same run.

    Raises:
        ConfigError: it holds another run, with the keys that differ, or something else of ours.
    """
    plan, place = read_plan(folder), display_location(config.output.dir, folder)
    if plan is None:
        if any((folder / name).exists() for name in ("result.json", *FOLDERS, SWEEP_FILE)):
            raise ConfigError(f"output.dir={place} already holds a run: name another folder, or move that run away")
        return
    wanted = fingerprint(config)
    planned: dict[str, Any] = plan["deciding"]
    keys = [key for key in sorted({*wanted, *planned}) if wanted.get(key) != planned.get(key)]
    if keys:
        differing = ", ".join(f"{key} ({planned.get(key)} there, {wanted.get(key)} now)" for key in keys)
        raise ConfigError(
            f"output.dir={place} already holds a run of another configuration: {differing}. "
            "Give the same settings to resume it, or name another folder"
        )


@dataclass(frozen=True)
class Plan:
    """What a run has to do: its clips, its shards (first clip, one past the last), and which are done by the journal.

    ``rows`` is the digest of each shard's rows; ``resumed`` says whether the folder held the run already; ``notes``
    what was found to have changed since; ``id`` is the run's own, whatever changed.
    """

    manifest: Manifest
    shards: list[tuple[int, int]]
    rows: list[str]
    done: dict[int, ShardEntry]
    resumed: bool
    notes: list[str] = field(default_factory=list)
    id: str = ""

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left to do."""
        return len(self.done) == len(self.shards)


def make_plan(
    folder: Path,
    config: RunConfig,
    listed: Manifest,
    get_parts: Callable[[Iterable[int]], None] = lambda shards: None,
) -> Plan:
    """The plan of a new run, or that of the run in ``folder`` brought up to date with the data set as it is listed now.

    The plan is on disk when this returns.

    Args:
        folder: the run's.
        config: the run's.
        listed: the data set.
        get_parts: as in ``shards_to_retry``.

    Raises:
        ResumeError: rows of the manifest file are gone.
    """
    state = folder / STATE
    make_folder(state)
    found = read_plan(folder)
    clips_per_shard, hop_s = config.output.clips_per_shard, config.frontend.hop_s
    if found is None:
        if listed.part:
            shards = list(itertools.pairwise(itertools.accumulate(listed.part["sizes"], initial=0)))
        else:
            shards = shards_of(listed.table, clips_per_shard, hop_s)
        rows = row_digests(listed.table, shards)
        name = uuid.uuid4().hex
        _write(state, listed.table, shards, rows, config, listed.part, name)
        return Plan(replace(listed, whole=None), shards, rows, {}, resumed=False, id=name)
    if is_of_older_listing := listed.part is not None and found.get("part") != listed.part:
        listed = _as_part_began(listed, found["part"], state / MANIFEST)
    shards = [(int(first), int(end)) for first, end in found["shards"]]
    clips = shards[-1][1] if shards else 0
    planned = _planned(state / MANIFEST, listed.table, shards, found["rows"])
    if planned is listed.table:
        table, changes = planned, Changes(there=has_file(planned))
    else:
        table, changes = reconcile(planned, listed.table)
    if changes.removed and isinstance(config.dataset, ManifestDataset):
        raise ResumeError(
            f"{config.dataset.path} no longer has {len(changes.removed):,} rows that this run began with (the first: "
            f"{table['clip'][changes.removed[0]].as_py()}): put them back as they were, or name another output.dir"
        )
    if changes.added:
        more = shards_of(table.slice(clips), clips_per_shard, hop_s)
        shards += [(clips + start, clips + end) for start, end in more]
    rows = row_digests(table, shards)
    notes = changes.notes()
    if is_of_older_listing:
        notes.append(OLDER_LISTING)
    done, more_notes = _done(folder, table, shards, rows, changes, get_parts)
    if rows != found["rows"] or not table.equals(planned):
        _write(state, table, shards, rows, config, listed.part, plan_id(found))
    digest = listed.digest if table is listed.table else digest_of(table)
    manifest = replace(listed, table=table, digest=digest, whole=None)
    return Plan(manifest, shards, rows, done, resumed=True, notes=notes + more_notes, id=plan_id(found))


def _done(
    folder: Path,
    table: pa.Table,
    shards: Sequence[tuple[int, int]],
    rows: Sequence[str],
    changes: Changes,
    get_parts: Callable[[Iterable[int]], None],
) -> tuple[dict[int, ShardEntry], list[str]]:
    """The shards that are done and stay so, and notes on those that don't, which are taken out of the journal."""
    path, notes = folder / STATE / JOURNAL, []
    noted, unreadable = read_journal(path)
    done = believed(noted, rows)
    if unreadable:
        notes.append(f"{unreadable} truncated journal lines skipped; their shards will be re-run")
    stale = noted.keys() - done.keys()
    if stale and not (changes.changed or changes.relabelled):
        notes.append(f"{len(stale):,} shards are of files or labels as they were before: they are done again")
    again = shards_to_retry(folder, done, shards, table["path"], changes.there, get_parts)
    if again:
        notes.append(f"{len(again):,} shards lack clips for reasons that may have passed: they are done again")
    if taken := sorted(stale.union(again)):
        take_back(path, taken)
    return {number: entry for number, entry in done.items() if number not in set(again)}, notes


def _as_part_began(listed: Manifest, part: dict[str, Any], planned: Path) -> Manifest:
    """The clips of a part that was cut from an earlier listing, as they are listed now."""
    try:
        names = pq.read_table(planned, columns=["clip"])["clip"]
    except (OSError, pa.ArrowException) as error:
        raise ResumeError(
            f"{planned} can't be read ({error}), and the data set is not what it was: name another output.dir"
        ) from error
    assert listed.whole is not None
    return replace(listed, table=among(listed.whole, names), part=part)


def _planned(path: Path, listed: pa.Table, shards: Sequence[tuple[int, int]], rows: Sequence[str]) -> pa.Table:
    """The clips of the plan, given the digests of its shards' rows; those listed themselves, where they are the same.

    Raises:
        ResumeError: manifest.parquet can't be read, and the clips listed are not those that it held.
    """
    clips = shards[-1][1] if shards else 0
    try:
        is_same = listed.num_rows == clips and _is_as_planned(path, listed)
        return listed if is_same else pq.read_table(path).slice(0, clips)
    except (OSError, pa.ArrowException) as error:
        if listed.num_rows != clips or row_digests(listed, shards) != rows:
            raise ResumeError(
                f"{path} can't be read ({error}), and the data set is not what it was: name another output.dir"
            ) from error
        _write_manifest(path, listed)
        return listed


def _is_as_planned(path: Path, listed: pa.Table) -> bool:
    """Whether a manifest.parquet holds exactly the clips listed, file sizes and times too; read piece by piece."""
    with pq.ParquetFile(path) as file:
        if file.metadata.num_rows != listed.num_rows:
            return False
        at = 0
        for batch in file.iter_batches(CHUNK_CLIPS):
            if not pa.Table.from_batches([batch]).equals(listed.slice(at, batch.num_rows)):
                return False
            at += batch.num_rows
    return True


def read_plan(folder: Path) -> Mapping[str, Any] | None:
    """A run's plan.json; None where there is none.

    Raises:
        ConfigError: it can't be read, or is of another version.
    """
    path = folder / STATE / PLAN
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"{path} can't be read ({error}): name another folder, or move that run away") from error
    return check_plan(str(path), text)


def check_plan(place: str, text: bytes) -> Mapping[str, Any]:
    """What a plan.json says that lies at ``place``.

    Raises:
        ConfigError: it can't be read, or is of another version.
    """
    try:
        plan = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{place} can't be read ({error}): name another folder, or move that run away") from error
    if not isinstance(plan, dict) or plan.get("schema") != PLAN_SCHEMA or not plan.keys() >= _PLAN_KEYS:
        raise ConfigError(f"{place} is not of this version of the runner: name another folder")
    return plan


def plan_id(plan: Mapping[str, Any]) -> str:
    """The id of the run that a plan.json is of; empty for one of an earlier version."""
    return str(plan.get("id", ""))


def _write(
    state: Path,
    table: pa.Table,
    shards: Sequence[tuple[int, int]],
    rows: Sequence[str],
    config: RunConfig,
    part: Mapping[str, Any] | None,
    name: str,
) -> None:
    _write_manifest(state / MANIFEST, table)
    about = {"schema": PLAN_SCHEMA, "id": name, "deciding": fingerprint(config)}
    write_atomic(state / PLAN, json.dumps({**about, "shards": shards, "rows": rows, "part": part}))


def _write_manifest(path: Path, table: pa.Table) -> None:
    with atomic(path) as temporary:
        pq.write_table(table, temporary, row_group_size=CHUNK_CLIPS, use_dictionary=["label"], compression="zstd")
