"""Restores the state of a run from an object store into its staging folder: plan, manifest, and the journal."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from runner.core.errors import ConfigError
from runner.core.files import FileDigest, digest_file
from runner.core.layout import FORMAT_FOLDERS, RunLayout
from runner.output.remote.commits import commit_name, commit_names, is_complete, list_shard_files, read_commits
from runner.output.remote.npz import shards_lacking_npz
from runner.output.state.journal import to_line
from runner.output.state.plan_file import read_plan

if TYPE_CHECKING:
    from runner.output.state.journal import ShardEntry
    from runner.storage.object_store import ObjectStore

log = logging.getLogger(__name__)

_STATE_FILES = (RunLayout.plan, RunLayout.manifest, RunLayout.identity, RunLayout.attempts)


@dataclass(frozen=True)
class RestoredState:
    """The state of a run as the store has it; empty for a new one.

    Attributes:
        committed: the complete shards.
        present: the bytes of the shards' objects by name.
        digests: of the state files.
        has_result: whether there is a result.json.
    """

    committed: dict[int, ShardEntry] = field(default_factory=dict)
    present: Mapping[str, int] = field(default_factory=dict)
    digests: Mapping[str, FileDigest] = field(default_factory=dict)
    has_result: bool = False


def restore_state(store: ObjectStore, folder: Path) -> RestoredState:
    """Download a run's state, make its journal from the commit objects, and remove those that do not count.

    Args:
        store: of the run's output.
        folder: its staging folder, which is empty.

    Raises:
        ConfigError: the URL holds something else, or a plan of another version.
        StoreError: the store doesn't answer.
    """
    layout, listed, state = RunLayout(folder), store.list_folder(), store.list_recursive(RunLayout.state)
    if RunLayout.plan not in state:
        if any(name in listed for name in (RunLayout.result, *FORMAT_FOLDERS, RunLayout.sweep)):
            raise ConfigError(f"output.dir={store.url} holds something else: choose another folder")
        store.map(store.remove, commit_names(state).values())
        return RestoredState()
    present = list_shard_files(store, state)
    names = [name for name, size in listed.items() if size is not None]
    names += [name for name in (*_STATE_FILES, RunLayout.tfrecord_labels) if name in present]
    store.map(store.get, names, [folder / name for name in names])
    plan = read_plan(folder)
    assert plan is not None
    commits = read_commits(store, state)
    committed = _complete_shards(store, commits, present, plan.id)
    lines = [f"{to_line(entry)}\n" for entry in committed.values()]
    layout.journal.write_text("".join(lines), encoding="utf-8")
    if revoked := sorted(commits.keys() - committed.keys()):
        log.warning("re-running %d damaged or incomplete shards in %s", len(revoked), store.url)
        store.map(store.remove, map(commit_name, revoked))
    digests = {name: digest_file(folder / name) for name in _STATE_FILES if (folder / name).exists()}
    return RestoredState(committed, present, digests, RunLayout.result in listed)


def _complete_shards(
    store: ObjectStore, commits: Mapping[int, ShardEntry | None], present: Mapping[str, int], plan_id: str
) -> dict[int, ShardEntry]:
    """Return the commits of this plan whose files are complete."""
    of_plan = [entry for entry in commits.values() if entry is not None and entry.plan_id == plan_id]
    complete = [entry for entry in of_plan if is_complete(entry, present)]
    lacking = shards_lacking_npz(store, complete)
    return {entry.shard: entry for entry in complete if entry.shard not in lacking}
