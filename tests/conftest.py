"""Shared fixtures: real audio where it is, and the command line as a user runs it."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import numpy as np

    from runner.vggish.session import VGGishSession

PROJECT = Path(__file__).resolve().parents[1]
AUDIO = PROJECT.parent / "shared" / "audio"
os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"  # read by gcsfs when imported; it needs gRPC of an emulator


@pytest.fixture(autouse=True)
def _streams_stay_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Hydra sets logging up it shuts all handlers down, and absl's (TensorFlow's) closes pytest's own stream."""
    monkeypatch.setattr(logging, "shutdown", lambda handlers=(): None)


@pytest.fixture(scope="session")
def audio() -> Path:
    """The folder of real audio beside the checkout."""
    if not AUDIO.is_dir():
        pytest.skip(f"no real audio at {AUDIO}")
    return AUDIO


@pytest.fixture(scope="session")
def weights() -> dict[str, np.ndarray]:
    """Random weights."""
    from runner.vggish.checkpoint import random_weights

    return random_weights(7)


@pytest.fixture(scope="session")
def vggish(weights: dict[str, np.ndarray]) -> VGGishSession:
    """A session on the CPU in float32."""
    from tests.reference import make_session

    return make_session(weights)


@dataclass(frozen=True)
class Done:
    """A finished command."""

    status: int
    out: str
    err: str

    @property
    def run_dir(self) -> Path:
        """The folder that the summary names."""
        lines = [line.split(None, 1) for line in self.out.splitlines() if line.strip().startswith("files")]
        return Path(lines[-1][1])

    @property
    def result(self) -> dict[str, Any]:
        """The run's result.json."""
        found: dict[str, Any] = json.loads((self.run_dir / "result.json").read_text())
        return found


def environment(**extra: str) -> dict[str, str]:
    """This process's environment without what would change a run, plus ``extra``."""
    left_out = ("MLFLOW_", "HYDRA_", "VGGISH_")
    return {key: value for key, value in os.environ.items() if not key.startswith(left_out)} | extra


def run_command(*arguments: str, cwd: Path = PROJECT, timeout: float = 300, **env: str) -> Done:
    """``python -m runner`` with these arguments, to its end."""
    command = [sys.executable, "-m", "runner", *arguments]
    path = os.pathsep.join([str(PROJECT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command,
        cwd=cwd,
        env=environment(PYTHONPATH=path, **env),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    return Done(done.returncode, done.stdout, done.stderr)
