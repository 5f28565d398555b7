"""Worker processes: started for a run, or ahead of it.

The command imports this module first of all, to start a worker ahead: it imports nothing large.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING

from runner.core.files import make_folder, remove
from runner.core.layout import RunLayout
from runner.core.paths import PACKAGE
from runner.core.stop_signals import held_back

if TYPE_CHECKING:
    from runner.contract.spec import RunSpec

WORKER = (sys.executable, "-m", "runner.engines.worker")


def start_worker(spec: RunSpec) -> subprocess.Popen[str]:
    """Write spec.json and start the worker on it, in a process group of its own, its log going to runner.log."""
    from runner.contract.files import write_spec

    run = RunLayout(spec.run_dir)
    make_folder(run.spec.parent)
    write_spec(run.spec, replace(spec, spawned_at=time.time()))
    remove(run.result)  # for good: an old one must not be taken for that of this attempt
    if spec.config.engine.name == "local" and (process := STANDBY.assign(run.spec)):
        return process
    with run.log.open("ab") as worker_log:
        return _start((*WORKER, str(run.spec)), worker_log)


class Standby:
    """A worker that is started before its run is known, and imports TensorFlow while the command does other things.

    The run has a process of its own all the same: a worker embeds one run.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start it, unless one waits."""
        if self._process is None:
            with tempfile.TemporaryFile() as early_log:  # which it moves to runner.log
                self._process = _start(WORKER, early_log)

    def assign(self, spec: Path) -> subprocess.Popen[str] | None:
        """Return the waiting process, which then begins with ``spec``; None where none waits, or it has died."""
        process = self._process
        if process is None:
            return None
        try:
            assert process.stdin is not None
            process.stdin.write(json.dumps(str(spec)) + "\n")  # names may have any byte
            process.stdin.flush()
        except OSError:
            self.close()
            return None
        self._process = None
        return process

    def close(self) -> None:
        """End the process, if one waits."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(OSError):  # what was not read
                    pipe.close()


STANDBY = Standby()
"""The worker for the next run of this process."""


def _start(command: tuple[str, ...], log: IO[bytes]) -> subprocess.Popen[str]:
    environment = {key: value for key, value in os.environ.items() if key != "HYDRA_FULL_ERROR"}
    environment.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
    environment["PYTHONPATH"] = os.pathsep.join([str(PACKAGE.parent), environment.get("PYTHONPATH", "")])
    environment["PYTHONUNBUFFERED"] = "1"
    # NumPy's products in the decode processes: each is one of several, and waiting threads of OpenBLAS spin.
    # TensorFlow's own threads know nothing of these.
    environment |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with held_back():  # until the worker can handle them
        return subprocess.Popen(
            [*command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            encoding="utf-8",
            errors="replace",
            env=environment,
            start_new_session=True,
        )
