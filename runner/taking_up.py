"""The worker's side of resuming: one worker at a time, shards that are believed, numbers that are the same.

``runner.resume`` is the command's side.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from runner.config import RunConfig
from runner.errors import ResumeError
from runner.files import write_atomic
from runner.journal import (
    IDENTITY,
    JOURNAL,
    STATE,
    WORKER_LOCK,
    ShardEntry,
    believed,
    damaged_shards,
    read_journal,
    take_back,
)
from runner.output import remove_temporaries, shards_without_npz
from runner.readable import read_json

if TYPE_CHECKING:
    from runner.vggish.postprocess import Postprocessor
    from runner.vggish.session import VGGishSession

log = logging.getLogger("runner.worker")

_PATIENCE_S = 20.0
"""How long past its grace a worker whose command was killed may take to end."""


@contextlib.contextmanager
def sole_worker(run_dir: Path, grace_s: float, lock_file: Path | None = None) -> Iterator[None]:
    """Wait for the worker of a killed command, which still finishes its shards, and keep the next one out.

    ``lock_file`` is where the lock is, if not in the run's folder.
    """
    lock = FileLock(lock_file or run_dir / STATE / WORKER_LOCK, timeout=grace_s + _PATIENCE_S)
    try:
        lock.acquire()
    except Timeout:
        raise ResumeError(f"another worker is still at work on {run_dir}: wait for it to end, or end it") from None
    try:
        yield
    finally:
        lock.release()


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
        log.warning("%d shards are damaged or incomplete, and are done again", len(damaged))
        take_back(path, sorted(damaged))
    return {number: entry for number, entry in done.items() if number not in damaged}


def identity_of(session: VGGishSession, postprocess: Postprocessor | None) -> dict[str, str]:
    """Weights, precision and, where embeddings are post-processed, PCA parameters in effect."""
    metadata = session.metadata
    return {
        "weights.checksum": str(metadata.weights["checksum"]),
        "precision": str(metadata.precision["effective"]),
        **pca_in_effect(postprocess),
    }


def pca_in_effect(postprocess: Postprocessor | None) -> dict[str, str]:
    """The part of an identity that is of PCA parameters; none without post-processing."""
    return {} if postprocess is None else {"pca.checksum": postprocess.pca.checksum}


def agree(run_dir: Path, now: Mapping[str, str]) -> None:
    """Weights, precision and PCA parameters in effect must be those that the run was begun with.

    Raises:
        ResumeError: they are others.
    """
    before = identity_begun_with(run_dir)
    if before is None:
        write_atomic(run_dir / STATE / IDENTITY, json.dumps(dict(now)))
    elif others := differing(before, now):
        raise ResumeError(
            f"the run in {run_dir} was begun with other numbers: {others}; give those again, or name another output.dir"
        )


def identity_begun_with(run_dir: Path) -> dict[str, str] | None:
    """The weights, precision and PCA parameters that the run was begun with; None for a new one."""
    path = run_dir / STATE / IDENTITY
    return read_json(path) if path.exists() else None


def differing(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """In what two identities differ, for a message; nothing where they don't."""
    keys = [key for key in now if before.get(key) != now[key]]
    return ", ".join(f"{key} ({before.get(key)} then, {now[key]} now)" for key in keys)
