"""The provenance of a run: its user, and the commit of the runner."""

from __future__ import annotations

import getpass
import subprocess
from pathlib import Path

from runner.core.paths import checkout


def user_name() -> str | None:
    """Return the name of the user; None where the system has none, as in some containers."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        return None


def git_state() -> dict[str, str | bool] | None:
    """Return the commit of the runner's checkout, and whether it has changes; None outside of a checkout."""
    root = checkout()
    if root is None:
        return None
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return {"commit": commit, "dirty": bool(_git(root, "status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
