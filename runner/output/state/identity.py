"""The identity of a run's numbers: weights, precision and PCA parameters, which may not change when it is resumed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from runner.core.errors import ResumeError
from runner.core.files import write_shared
from runner.core.layout import RunLayout
from runner.core.readable import json_object, readable


def check_identity(run_dir: Path, identity: Mapping[str, str]) -> None:
    """Save the identity of a new run; compare that of a resumed one.

    Raises:
        ResumeError: the run started with another identity.
    """
    started = load_identity(run_dir)
    if started is None:
        write_shared(RunLayout(run_dir).identity, json.dumps(dict(identity)))
    elif differences := diff_identity(started, identity):
        raise ResumeError(
            f"resuming {run_dir} would mix precisions or weights: {differences}; give those that it started with, or "
            "choose another output.dir"
        )


def load_identity(run_dir: Path) -> dict[str, str] | None:
    """Return the identity that the run started with; None for a new run.

    Raises:
        ResumeError: the file can't be read.
    """
    path = RunLayout(run_dir).identity
    if not path.exists():
        return None
    with readable(path):
        return parse_identity(path.read_text(encoding="utf-8"))


def parse_identity(text: str | bytes) -> dict[str, str]:
    """Parse the content of identity.json.

    Raises:
        ValueError: it holds something else.
    """
    return {key: str(value) for key, value in json_object(text).items()}


def diff_identity(started: Mapping[str, str], identity: Mapping[str, str]) -> str:
    """Return the keys in which two identities differ, with both values, for a message; "" where they are equal."""
    keys = [key for key in identity if started.get(key) != identity[key]]
    return ", ".join(f"{key} ({started.get(key)} then, {identity[key]} now)" for key in keys)


def load_precision(run_dir: Path) -> str | None:
    """Return the precision that the run started with; None for a new run, or where it can't be read."""
    try:
        return parse_identity(RunLayout(run_dir).identity.read_text(encoding="utf-8"))["precision"]
    except (OSError, ValueError, KeyError):
        return None
