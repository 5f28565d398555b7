"""Taking a run up again: who may write to its folder, whether the configuration fits, what became of the data.

A run's folder holds, under ``.runner``, the plan (``plan.json`` with the shards and all that decides numbers,
``manifest.parquet`` with the clips), the journal of shards that are done, each shard's part of clips.parquet, and two
locks: of the command and of its worker.  The locks are the system's (flock), so that those of a dead process are free.

The rule for source files, on resuming: one that changed (size or time of modification) is embedded anew, its shard
with it; one that vanished keeps its rows if its shard is done, else it is skipped as ``missing``; new ones get shards
of their own at the end.
"""

from __future__ import annotations

import itertools
import json
import os
import socket
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from runner.config import RunConfig
from runner.errors import ConfigError
from runner.files import atomic, make_folder, write_atomic
from runner.formats import FOLDERS
from runner.journal import IDENTITY, JOURNAL, STATE, Journal, ShardEntry, read_journal
from runner.manifest import CHUNK_CLIPS, Manifest, digest_of, shards_of
from runner.record import SWEEP_FILE
from runner.stores import is_url, place_of

PLAN, MANIFEST = "plan.json", "manifest.parquet"
LOCK, HOLDER, SESSIONS = "command.lock", "holder.json", "sessions.jsonl"
PLAN_SCHEMA = 1
_FREE = {
    "dataset": ("on_error", "max_skipped", "clip_timeout_s", "fetch_ahead", "fetch_timeout_s"),
    "weights": ("base_url", "timeout_s"),
    "output": ("dir", "put_timeout_s"),
}
"""Keys of the groups below that change no number, and so may differ."""
_PATHS = {("dataset", "root"), ("dataset", "path"), ("weights", "path"), ("weights", "pca_path")}

_claims: dict[Path, FileLock] = {}


def claim(folder: Path, output_dir: str | None = None) -> None:
    """Take a run's folder for this process, until it ends; ``output_dir`` is that of its configuration.

    Raises:
        ConfigError: another command has it.
    """
    folder = folder.absolute()
    if folder in _claims:
        return
    state = folder / STATE
    make_folder(state)
    lock = FileLock(state / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ConfigError(
            f"output.dir={place_of(output_dir, folder)} is in use by another command ({_holder(state)}): wait for it, "
            "or name another folder"
        ) from None
    _claims[folder] = lock
    write_atomic(state / HOLDER, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))


def begin_session(folder: Path, about: Mapping[str, Any]) -> int:
    """Note that the run is taken up; which session of it this is, from 1."""
    path = folder / STATE / SESSIONS
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(about) + "\n")
    return len(path.read_text(encoding="utf-8").splitlines())


def precision_begun_with(folder: Path) -> str | None:
    """The precision that the run's first session had; None if it never had one."""
    try:
        return str(json.loads((folder / STATE / IDENTITY).read_text(encoding="utf-8"))["precision"])
    except (OSError, ValueError, KeyError):
        return None


def release(folder: Path) -> None:
    """Give a claimed folder up."""
    if lock := _claims.pop(folder.absolute(), None):
        lock.release()


def _holder(state: Path) -> str:
    try:
        found = json.loads((state / HOLDER).read_text(encoding="utf-8"))
        return f"process {found['pid']} on {found['host']}"
    except (OSError, ValueError, KeyError):
        return "of unknown process"


def check_folder(folder: Path, config: RunConfig) -> None:
    """Whether a run of this configuration may have its files in ``folder``: it is free, or holds the same run.

    Raises:
        ConfigError: it holds another run, with the keys that differ, or something else of ours.
    """
    plan, place = read_plan(folder), place_of(config.output.dir, folder)
    if plan is None:
        if any((folder / name).exists() for name in ("result.json", *FOLDERS, SWEEP_FILE)):
            raise ConfigError(f"output.dir={place} already holds a run: name another folder, or move that run away")
        return
    wanted = deciding(config)
    planned: dict[str, Any] = plan["deciding"]
    keys = [key for key in sorted({*wanted, *planned}) if wanted.get(key) != planned.get(key)]
    if keys:
        differing = ", ".join(f"{key} ({planned.get(key)} there, {wanted.get(key)} now)" for key in keys)
        raise ConfigError(
            f"output.dir={place} already holds a run of another configuration: {differing}. "
            "Give the same settings to resume it, or name another folder"
        )


def deciding(config: RunConfig) -> dict[str, Any]:
    """All settings, by dotted key, that decide which numbers and files a run gives."""
    values = config.to_dict()
    found: dict[str, Any] = {"precision.name": values["precision"]["name"]}
    for group in ("dataset", "weights", "frontend", "output"):
        for key, value in values[group].items():
            if key in _FREE.get(group, ()):
                continue
            if (group, key) in _PATHS and value is not None and not is_url(value):
                value = str(Path(value).expanduser().resolve())
            found[f"{group}.{key}"] = value
    return dict(json.loads(json.dumps(found)))


@dataclass(frozen=True)
class Plan:
    """What a run has to do: its clips, its shards (first clip, one past the last), and which are done by the journal.

    ``resumed`` says whether the folder held the run already; ``notes`` what was found to have changed since.
    """

    manifest: Manifest
    shards: list[tuple[int, int]]
    done: dict[int, ShardEntry]
    resumed: bool
    notes: list[str] = field(default_factory=list)

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left to do."""
        return len(self.done) == len(self.shards)


def make_plan(folder: Path, config: RunConfig, listed: Manifest) -> Plan:
    """The plan of a new run, or that of the run in ``folder`` brought up to date with the data set as it is listed now.

    The plan is on disk when this returns.
    """
    state = folder / STATE
    make_folder(state)
    found = read_plan(folder)
    shard_clips, hop_s = config.output.shard_clips, config.frontend.hop_s
    if found is None:
        if listed.part:
            ends = list(itertools.accumulate(listed.part["sizes"], initial=0))
            shards = list(itertools.pairwise(ends))
        else:
            shards = shards_of(listed.table, shard_clips, hop_s)
        _write(state, listed.table, shards, config, listed.part)
        return Plan(listed, shards, {}, resumed=False)
    if listed.part and found.get("part") != listed.part:
        raise ConfigError(
            f"output.dir={place_of(config.output.dir, folder)} holds part {config.dataset.partition} of the data set "
            "as it was; it has changed since, and parts must be of one listing: begin all of them anew in other folders"
        )
    shards = [(int(first), int(end)) for first, end in found["shards"]]
    done, unreadable = read_journal(state / JOURNAL)
    done = {number: entry for number, entry in done.items() if number < len(shards)}
    table, changes = listed.table, Changes([], 0, 0)
    clips = shards[-1][1] if shards else 0
    if listed.table.num_rows != clips or not _is_as_planned(state / MANIFEST, listed.table):
        planned = pq.read_table(state / MANIFEST).slice(0, clips)
        table, changes = reconcile(planned, listed.table)
    notes = changes.notes()
    if unreadable:
        notes.append(f"{unreadable} lines of the journal can't be read (a kill cut them off): their shards are redone")
    unreachable = {number for number, entry in done.items() if "unreachable" in entry.counts.get("skipped", ())}
    if unreachable:
        notes.append(f"{len(unreachable):,} shards lack clips that the store did not give in time: they are done again")
    stale = sorted(unreachable.union(_shards_of(changes.changed, shards)) & done.keys())
    if stale:
        journal = Journal(state / JOURNAL)
        for number in stale:
            journal.append(ShardEntry(number, undone=True))
            del done[number]
        journal.close()
    if changes.added:
        first = shards[-1][1] if shards else 0
        more = shards_of(table.slice(first), shard_clips, hop_s)
        shards += [(first + start, first + end) for start, end in more]
    if changes.any:
        _write(state, table, shards, config, listed.part)
    digest = listed.digest if table is listed.table else digest_of(table)
    manifest = replace(listed, table=table, digest=digest)
    return Plan(manifest, shards, done, resumed=True, notes=notes)


@dataclass(frozen=True)
class Changes:
    """What became of the files since the plan: rows that changed, how many vanished, how many are new."""

    changed: list[int]
    vanished: int
    added: int

    @property
    def any(self) -> bool:
        """Whether the plan has to be written again."""
        return bool(self.changed or self.added)

    def notes(self) -> list[str]:
        """A line for each kind of change."""
        lines = []
        if self.changed:
            lines.append(f"{len(self.changed):,} source files changed since the run began: they are embedded anew")
        if self.vanished:
            lines.append(f"{self.vanished:,} source files are gone: those embedded stay, others are skipped as missing")
        if self.added:
            lines.append(f"{self.added:,} clips are new: they are embedded after the others")
        return lines


def reconcile(planned: pa.Table, listed: pa.Table) -> tuple[pa.Table, Changes]:
    """The planned clips with the sizes and times of their files as they are now, and new ones at the end."""
    keys, listed_keys = (
        zip(each["path"].to_pylist(), each["clip"].to_pylist(), strict=True) for each in (planned, listed)
    )
    places = {key: row for row, key in enumerate(listed_keys)}
    stamps = list(zip(listed["bytes"].to_pylist(), listed["mtime_ns"].to_pylist(), strict=True))
    before = zip(planned["bytes"].to_pylist(), planned["mtime_ns"].to_pylist(), strict=True)
    changed, vanished = [], 0
    now: list[tuple[int, int]] = []
    for row, (key, stamp) in enumerate(zip(keys, before, strict=True)):
        place = places.pop(key, None)
        if place is None or stamps[place][0] < 0:
            vanished += 1
            now.append(stamp)
            continue
        if stamps[place] != stamp:
            changed.append(row)
        now.append(stamps[place])
    added = listed.take(pa.array(sorted(places.values()), pa.int64()))
    table = planned
    if changed:
        for name, values in zip(("bytes", "mtime_ns"), zip(*now, strict=True), strict=True):
            table = table.set_column(table.schema.get_field_index(name), name, pa.array(values, pa.int64()))
    return pa.concat_tables([table, added]).combine_chunks(), Changes(changed, vanished, added.num_rows)


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


def _shards_of(rows: Sequence[int], shards: Sequence[tuple[int, int]]) -> list[int]:
    starts = [first for first, _ in shards]
    return [bisect_right(starts, row) - 1 for row in rows]


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
    if not isinstance(plan, dict) or plan.get("schema") != PLAN_SCHEMA:
        raise ConfigError(f"{place} is not of this version of the runner: name another folder")
    return plan


def _write(
    state: Path, table: pa.Table, shards: Sequence[tuple[int, int]], config: RunConfig, part: Mapping[str, Any] | None
) -> None:
    with atomic(state / MANIFEST) as temporary:
        pq.write_table(table, temporary, row_group_size=CHUNK_CLIPS, use_dictionary=["label"], compression="zstd")
    plan = {"schema": PLAN_SCHEMA, "deciding": deciding(config), "shards": shards, "part": part}
    write_atomic(state / PLAN, json.dumps(plan))
