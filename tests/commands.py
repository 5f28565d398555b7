"""The command line as a user runs it, for tests; see ``tests/README.md``.

``run`` and ``start`` take the double's worker (``tests.double``) and fork; ``run_real`` is ``python -m runner`` in a
fresh process with TensorFlow, for the few tests of the full stack.  ``run_module`` runs the other entry points.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.fork_server import SHARED, Forked, ForkServer, server_folder

PROJECT = Path(__file__).resolve().parents[1]
DOUBLE = "tests.double.command"
REAL = "runner"


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


def run(*arguments: str, cwd: Path = PROJECT, timeout: float = 120, **env: str) -> Done:
    """The command with the double's worker, to its end."""
    return _done(start(*arguments, cwd=cwd, new_session=False, **env), timeout)


def start(
    *arguments: str,
    cwd: Path = PROJECT,
    command: str = DOUBLE,
    new_session: bool = True,
    log: Path | None = None,
    **env: str,
) -> Forked:
    """The command in the background.

    Args:
        arguments: of the command line.
        cwd: working folder.
        command: its module; ``REAL`` for the one whose worker has TensorFlow.
        new_session: whether it leads a process group of its own, so that a test can signal all of it.
        log: a file for all output, which is appended.
        env: what the environment has besides.
    """
    return _server().start(command, arguments, cwd=cwd, env=_with_path(**env), new_session=new_session, together=log)


def run_module(module: str, *arguments: str, cwd: Path = PROJECT, timeout: float = 120, **env: str) -> Done:
    """``python -m module`` in a fork, to its end: for entry points that need no TensorFlow."""
    return _done(_server().start(module, arguments, cwd=cwd, env=_with_path(**env)), timeout)


def run_real(*arguments: str, cwd: Path = PROJECT, command: str = REAL, timeout: float = 300, **env: str) -> Done:
    """``python -m runner``, with TensorFlow, or another command in a fresh process, to its end."""
    done = subprocess.run(
        [sys.executable, "-m", command, *arguments],
        cwd=cwd,
        env=_with_path(**env),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def wait_until(holds: Callable[[], object], what: Callable[[], str] | str, within_s: float = 60.0) -> None:
    """Return once ``holds()`` is true.

    Raises:
        AssertionError: it did not become so, with ``what``.
    """
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline, what if isinstance(what, str) else what()
        time.sleep(0.01)


def _done(process: Forked, timeout: float) -> Done:
    try:
        status = process.wait(timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return Done(status, process.out, process.err)


def _with_path(**extra: str) -> dict[str, str]:
    path = os.pathsep.join([str(PROJECT), os.environ.get("PYTHONPATH", "")])
    return environment(**{"PYTHONPATH": path, **extra})


@functools.cache
def _server() -> ForkServer:
    if SHARED not in os.environ:  # no test session
        stack = contextlib.ExitStack()
        atexit.register(stack.close)
        os.environ[SHARED] = str(stack.enter_context(server_folder()))
    return ForkServer(Path(os.environ[SHARED]), _with_path(OPENBLAS_NUM_THREADS="1"), PROJECT)
