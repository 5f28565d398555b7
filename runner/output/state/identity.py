"""The worker's side of resuming: one worker at a time, shards that are believed, numbers that are the same.

``runner.output.state.plan`` is the command's side.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path

from runner.core.errors import ResumeError
from runner.core.files import write_atomic
from runner.core.layout import IDENTITY, STATE
from runner.core.readable import read_json

log = logging.getLogger("runner.engines.worker")


def agree(run_dir: Path, now: Mapping[str, str]) -> None:
    """Weights, precision and PCA parameters in effect must be those that the run was begun with.

    Raises:
        ResumeError: they are others.
    """
    before = load_identity(run_dir)
    if before is None:
        write_atomic(run_dir / STATE / IDENTITY, json.dumps(dict(now)))
    elif others := differing(before, now):
        raise ResumeError(
            f"the run in {run_dir} was begun with other numbers: {others}; give those again, or name another output.dir"
        )


def load_identity(run_dir: Path) -> dict[str, str] | None:
    """The weights, precision and PCA parameters that the run was begun with; None for a new one."""
    path = run_dir / STATE / IDENTITY
    return read_json(path) if path.exists() else None


def differing(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """In what two identities differ, for a message; nothing where they don't."""
    keys = [key for key in now if before.get(key) != now[key]]
    return ", ".join(f"{key} ({before.get(key)} then, {now[key]} now)" for key in keys)


def load_precision(folder: Path) -> str | None:
    """The precision that the run's first session had; None if it never had one."""
    try:
        return str(json.loads((folder / STATE / IDENTITY).read_text(encoding="utf-8"))["precision"])
    except (OSError, ValueError, KeyError):
        return None
