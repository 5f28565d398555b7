"""Checks that the files of finished shards are there and undamaged."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq

from runner.core.layout import CLIP_PARTS, CLIPS, FOLDERS, JOURNAL, NPZ, NPZ_FILES, STATE
from runner.output.formats import npz_path
from runner.output.state.journal import _HASHING_THREADS, believed, is_changed, read_journal, take_back

if TYPE_CHECKING:
    from runner.config.schema import RunConfig
    from runner.output.state.journal import ShardEntry

log = logging.getLogger("runner.engines.worker")


def files_are_there(run_dir: Path, done: Mapping[int, ShardEntry]) -> bool:
    """Whether all files of the shards are there in their sizes: a quick look, beside ``damaged_shards``."""
    try:
        return all(
            (run_dir / name).stat().st_size == size
            for entry in done.values()
            for name, (size, _) in entry.files.items()
        )
    except OSError:
        return False


def damaged_shards(run_dir: Path, done: Mapping[int, ShardEntry]) -> list[int]:
    """The shards of which a file is missing, or is not what the journal says."""

    def is_damaged(entry: ShardEntry) -> bool:
        return any(is_changed(run_dir / name, expected) for name, expected in entry.files.items())

    with ThreadPoolExecutor(_HASHING_THREADS) as threads:
        found = threads.map(is_damaged, done.values())
        return [number for number, damaged in zip(done, found, strict=True) if damaged]


_THREADS = 4


def npz_are_there(folder: Path, done: Mapping[int, ShardEntry]) -> bool:
    """Whether all npz files of the shards are there in their sizes: a quick look, beside ``shards_without_npz``."""
    try:
        return all(
            (folder / NPZ / name).stat().st_size == size
            for shard in done
            for name, (size, _) in json.loads(
                (folder / STATE / NPZ_FILES / f"part-{shard:05d}.json").read_bytes()
            ).items()
        )
    except (OSError, ValueError, AttributeError, TypeError):
        return False


def shards_without_npz(folder: Path, done: Mapping[int, ShardEntry]) -> list[int]:
    """The shards of which a clip's npz is missing, or is not what was written."""

    def is_damaged(shard: int) -> bool:
        try:
            described = json.loads((folder / STATE / NPZ_FILES / f"part-{shard:05d}.json").read_bytes())
            return any(is_changed(folder / NPZ / name, expected) for name, expected in described.items())
        except (OSError, ValueError, AttributeError):
            return True

    with ThreadPoolExecutor(_THREADS) as threads:
        return [shard for shard, damaged in zip(done, threads.map(is_damaged, done), strict=True) if damaged]


def npz_names(part: Path, *, skipped: bool = False) -> list[str]:
    """The npz files of the clips in a part of clips.parquet, relative to the run's folder.

    Args:
        part: of clips.parquet.
        skipped: whether the names are asked for that clips without embeddings would have.
    """
    clips = pq.read_table(part, columns=["clip", "examples"])
    pairs = zip(clips["clip"].to_pylist(), clips["examples"].to_pylist(), strict=True)
    return [f"{NPZ}/{npz_path(clip).as_posix()}" for clip, examples in pairs if (examples == 0) is skipped]


def remove_temporaries(folder: Path) -> None:
    """Remove what a killed writer left unfinished."""
    for name in (STATE, f"{STATE}/{CLIP_PARTS}", f"{STATE}/{NPZ_FILES}", *FOLDERS):
        below = (folder / name).rglob if name == NPZ else (folder / name).glob
        for path in below(".*.tmp"):
            path.unlink(missing_ok=True)
    (folder / f".{CLIPS}.tmp").unlink(missing_ok=True)


def shards_done(run_dir: Path, config: RunConfig, rows: Sequence[str]) -> dict[int, ShardEntry]:
    """The shards of the journal whose files are all there, as they were written; others are taken out of it.

    Args:
        run_dir: the run's folder.
        config: the run's.
        rows: the digest of each shard's rows: one of others is not believed.
    """
    remove_temporaries(run_dir)
    path = run_dir / STATE / JOURNAL
    noted, _ = read_journal(path)
    done = believed(noted, rows)
    if older := noted.keys() - done.keys():
        log.warning("%d shards are of files or labels as they were before, and are done again", len(older))
        take_back(path, sorted(older))
    damaged = set(damaged_shards(run_dir, done))
    whole = {number: entry for number, entry in done.items() if number not in damaged}
    if "npz" in config.output.formats:
        damaged |= set(shards_without_npz(run_dir, whole))
    if damaged:
        log.warning("re-running %d damaged or incomplete shards", len(damaged))
        take_back(path, sorted(damaged))
    return {number: entry for number, entry in done.items() if number not in damaged}
