"""Checks that the files of committed shards exist and are undamaged."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq

from runner.core.files import FileDigest, digest_file
from runner.core.layout import FORMAT_FOLDERS, RunLayout, shard_name
from runner.output.npz import npz_path
from runner.output.state.journal import current_entries, read_journal, revoke

if TYPE_CHECKING:
    from runner.output.state.journal import ShardEntry

log = logging.getLogger(__name__)

_THREADS = 4


def load_committed_shards(run_dir: Path, formats: Collection[str], row_digests: Sequence[str]) -> dict[int, ShardEntry]:
    """Return the shards of the journal whose files are complete and undamaged; revoke all others in it.

    Args:
        run_dir: the run's folder.
        formats: ``output.formats``.
        row_digests: of each shard's rows as they are planned now.
    """
    remove_temporary_files(run_dir)
    path = RunLayout(run_dir).journal
    journaled, _ = read_journal(path)
    committed = current_entries(journaled, row_digests)
    if outdated := journaled.keys() - committed.keys():
        log.warning("re-running %d shards of older files or labels", len(outdated))
        revoke(path, sorted(outdated))
    damaged = set(damaged_shards(run_dir, committed))
    if "npz" in formats:
        damaged |= set(shards_with_damaged_npz(run_dir, committed.keys() - damaged))
    if damaged:
        log.warning("re-running %d damaged or incomplete shards", len(damaged))
        revoke(path, sorted(damaged))
    return {number: entry for number, entry in committed.items() if number not in damaged}


def files_exist(run_dir: Path, committed: Mapping[int, ShardEntry]) -> bool:
    """Return whether all files of the shards exist in their sizes; ``damaged_shards`` reads them as well."""
    return all(
        _has_size(run_dir / name, expected) for entry in committed.values() for name, expected in entry.files.items()
    )


def damaged_shards(run_dir: Path, committed: Mapping[int, ShardEntry]) -> list[int]:
    """Return the shards with a file that is missing, or has not the journal's size and SHA-256."""

    def is_damaged(entry: ShardEntry) -> bool:
        return any(_is_changed(run_dir / name, expected) for name, expected in entry.files.items())

    with ThreadPoolExecutor(_THREADS) as threads:
        damaged = threads.map(is_damaged, committed.values())
        return [number for number, is_so in zip(committed, damaged, strict=True) if is_so]


def npz_files_exist(run_dir: Path, shards: Iterable[int]) -> bool:
    """Return whether all npz files of the shards exist in their sizes; see ``shards_with_damaged_npz``."""
    try:
        return all(
            _has_size(RunLayout(run_dir).npz / name, expected)
            for shard in shards
            for name, expected in _read_npz_list(run_dir, shard).items()
        )
    except (OSError, ValueError, AttributeError, TypeError):
        return False


def shards_with_damaged_npz(run_dir: Path, shards: Iterable[int]) -> list[int]:
    """Return the shards with a clip's npz that is missing, or has not the size and SHA-256 of the shard's list."""

    def is_damaged(shard: int) -> bool:
        try:
            files = _read_npz_list(run_dir, shard)
            return any(_is_changed(RunLayout(run_dir).npz / name, expected) for name, expected in files.items())
        except (OSError, ValueError, AttributeError, TypeError):
            return True

    numbers = sorted(shards)
    with ThreadPoolExecutor(_THREADS) as threads:
        return [shard for shard, is_so in zip(numbers, threads.map(is_damaged, numbers), strict=True) if is_so]


def npz_names(clips_file: Path, *, skipped: bool = False) -> list[str]:
    """Return the names of clips' npz files, relative to the run's folder.

    Args:
        clips_file: with a shard's rows of clips.parquet.
        skipped: return the names that the clips without embeddings would have instead.
    """
    clips = pq.read_table(clips_file, columns=["clip", "examples"])
    pairs = zip(clips["clip"].to_pylist(), clips["examples"].to_pylist(), strict=True)
    return [f"{RunLayout.npz}/{npz_path(clip).as_posix()}" for clip, examples in pairs if (examples == 0) is skipped]


def remove_temporary_files(run_dir: Path) -> None:
    """Remove the unfinished files of a killed writer."""
    layout = RunLayout(run_dir)
    for folder in (layout.state, layout.clip_shards, layout.npz_lists, *(run_dir / name for name in FORMAT_FOLDERS)):
        for path in folder.rglob(".*.tmp") if folder == layout.npz else folder.glob(".*.tmp"):
            path.unlink(missing_ok=True)
    layout.clips.with_name(f".{RunLayout.clips}.tmp").unlink(missing_ok=True)


def _read_npz_list(run_dir: Path, shard: int) -> dict[str, FileDigest]:
    files = json.loads((RunLayout(run_dir).npz_lists / shard_name(shard, ".json")).read_bytes())
    return {name: FileDigest(*digest) for name, digest in files.items()}


def _has_size(path: Path, expected: FileDigest) -> bool:
    try:
        return path.stat().st_size == expected.bytes
    except OSError:
        return False


def _is_changed(path: Path, expected: FileDigest) -> bool:
    """Return whether a file is missing, or has another size or SHA-256."""
    try:
        return path.stat().st_size != expected.bytes or digest_file(path) != expected
    except OSError:
        return True
