"""A whole run in this process without TensorFlow, in a tenth of a second: all that touches the disk is the real thing.

The command's job and the worker's ``main`` run as they are, with decode processes, engine, writers and journal.  Three
things are others: the worker is no process of its own, its session is plain arithmetic, and decode processes are forked
(the fork of a process that has all modules costs little).
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import logging
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pyarrow.parquet as pq
import soundfile

from runner.config.schema import RunConfig
from runner.contract.files import result_to_json
from runner.core import files
from runner.core.errors import RunnerError
from runner.devices import host
from runner.engines import common, embedder, entrypoint, local
from runner.jobs import job, spawn, spec
from runner.output import npz, verify, writer
from runner.output.state import locks
from runner.pipeline import decode_process
from tests import configs
from tests.arithmetic import ArithmeticStartup, no_canary

with contextlib.suppress(ImportError):
    import miniaudio  # noqa: F401  # for FLAC: each decode process, a fork of this one, would import it

VOLATILE = ("runner.log", "batches.parquet", "result.json")
"""Files of a run, beside those of ``.runner``, that tell of times."""


def make_data(folder: Path) -> Path:
    """Six clips in two folders: of one and of three examples, too short, broken, in two formats."""
    rng = np.random.default_rng(0)
    for number, samples in enumerate((16_000, 48_000, 5_000, 0, 31_000, 20_000)):
        path = folder / "ab"[number % 2] / f"{number}.{'flac' if number == 4 else 'wav'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, rng.uniform(-0.5, 0.5, samples), 16_000)
        os.utime(path, ns=(10**18, 10**18))
    (folder / "b" / "3.wav").write_bytes(b"RIFF no audio at all")
    os.utime(folder / "b" / "3.wav", ns=(10**18, 10**18))
    return folder


def command_arguments(data: Path, folder: Path) -> list[str]:
    """What the command is given, but for the run's folder; what else it writes goes into ``folder``."""
    return [
        f"dataset.root={data}",
        f"paths.outputs={folder}",
        f"paths.models={folder}",
        *("weights=random", "output.formats=[parquet,npz]", "output.clips_per_shard=2"),
        *("profile=off", "tracking=none", "device=cpu", "memory=conservative", "memory.decode_workers=1"),
    ]


def make_config(data: Path, run: Path, *more: str, folder: Path | None = None) -> RunConfig:
    """The configuration of such a run; see ``command_arguments``."""
    return configs.make_config([*command_arguments(data, folder or run.parent.parent), f"output.dir={run}", *more])


def session(config: RunConfig, run: Path) -> dict[str, Any] | str:
    """Carry out the command; its result.json, or what the person is told where there is none.

    Raises:
        Exception: one that the command line would not tell in one message.
    """
    files._flushed.clear()  # a new process has flushed nothing
    with _patched(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            os.makedirs(run, exist_ok=True)  # Hydra does this
            return result_to_json(job.run_job(spec.Job(config, run)))
        except (RunnerError, OSError) as error:  # as in runner.cli
            return str(error)
        finally:
            locks.release_run_lock(run)
            logging.getLogger().handlers.clear()


def tree(run: Path) -> dict[str, bytes]:
    """What a run has given: all its files but those that tell of times and of sessions, by name."""
    found = {}
    for path in sorted(run.rglob("*")):
        name = path.relative_to(run).as_posix()
        if path.is_file() and name not in VOLATILE and not name.startswith((".runner/", ".hydra/")):
            found[name] = path.read_bytes()
    return found


def wrong_with(run: Path, undisturbed: dict[str, bytes], result: dict[str, Any] | str) -> list[str]:
    """What is wrong with a run that should have finished as the undisturbed one did; empty if nothing is."""
    if isinstance(result, str) or result["status"] != "finished":
        return [f"not finished: {result if isinstance(result, str) else result.get('failure')}"]
    found = tree(run)
    wrong = [f"{name} is missing" for name in undisturbed.keys() - found.keys()]
    wrong += [f"{name} is left over" for name in found.keys() - undisturbed.keys()]
    wrong += [f"{name} is other" for name in found.keys() & undisturbed.keys() if found[name] != undisturbed[name]]
    wrong += [f"{path.relative_to(run)} is left over" for path in run.rglob("*.tmp")]
    if wrong:
        return wrong
    clips = pq.read_table(run / "clips.parquet")
    rows = pq.read_table(run / "embeddings").num_rows
    metrics = result["metrics"]
    if not metrics["clips_embedded"] + metrics["clips_skipped"] == clips.num_rows == result["dataset"]["clips"]:
        wrong.append(f"clips do not add up: {metrics}")
    if not metrics["examples"] == rows == sum(clips["examples"].to_pylist()):
        wrong.append(f"examples do not add up: {metrics}")
    on_disk = json.loads((run / "result.json").read_text())
    return wrong if on_disk["status"] == "finished" else [*wrong, "result.json does not say finished"]


# What stands in for processes


class _Inline:
    """An executor that does at once what it is given: calls on files come in one order."""

    def __init__(self, threads: int) -> None:
        pass

    def submit(self, function: Any) -> Future[Any]:
        done: Future[Any] = Future()
        try:
            done.set_result(function())
        except Exception as error:
            done.set_exception(error)
        return done


class _Worker:
    """``subprocess.Popen`` of the worker, whose ``main`` has returned when this is made."""

    def __init__(self, command: list[str], *, stderr: Any, **options: Any) -> None:
        events = io.StringIO()
        log = open(stderr.name, "a", encoding="utf-8")  # noqa: SIM115
        taken = mock.patch.object(entrypoint, "_redirect_standard_output", return_value=events)
        with taken, contextlib.redirect_stderr(log):
            try:
                self._status = entrypoint.main(command[-1])
            except Exception:
                self._status = 1  # a process that ends with a traceback in its log
        logging.getLogger().handlers.clear()
        with contextlib.suppress(OSError):
            log.close()
        self.stdout = io.StringIO(events.getvalue())
        self.stdin = io.StringIO()

    def wait(self) -> int:
        return self._status

    poll = wait

    def kill(self) -> None:
        pass


@functools.cache
def _machine() -> tuple[dict[str, Any], dict[str, str]]:
    """What runs say of the machine and of versions: looked up once, as it takes as long as a run's work."""
    return host.host_facts(), host.versions()


@contextlib.contextmanager
def _patched() -> Iterator[None]:
    facts, found = _machine()
    stop = SimpleNamespace(begin=lambda stop: None, is_set=lambda: False, install_handlers=lambda: None)
    with contextlib.ExitStack() as stack:
        for target, name, value in (
            (job, "host_facts", lambda: facts),
            (job, "versions", lambda: found),
            (job, "git_state", lambda: None),
            (entrypoint, "host_facts", lambda: facts),
            (entrypoint, "versions", lambda: found),
            (common, "versions", lambda: found),
            (embedder, "SessionStartup", ArithmeticStartup),
            (embedder, "Canary", no_canary),
            (entrypoint, "StopSignal", lambda end_at_once: stop),
            (embedder, "gpu_memory_metrics", lambda device: {}),
            (local, "ThreadPoolExecutor", _Inline),
            (embedder, "tune_interpreter", lambda: None),
            (spawn, "subprocess", SimpleNamespace(**{**vars(subprocess), "Popen": _Worker})),
            (decode_process, "CONTEXT", multiprocessing.get_context("fork")),
            (npz, "_WRITERS", 1),
            (verify, "_THREADS", 1),
            (writer, "writers_for", lambda cores: 1),
        ):
            stack.enter_context(mock.patch.object(target, name, value))
        yield


def changed_by_a_second_session(folder: Path) -> list[str]:
    """The files of a finished run that are others, or there no more, once the command was given again."""
    run = folder / "disk" / "run"
    config = make_config(make_data(folder / "data"), run)
    results = []
    trees = []
    for _ in range(2):
        results.append(session(config, run))
        trees.append({path.relative_to(run).as_posix(): path.read_bytes() for path in run.rglob("*") if path.is_file()})
    assert all(not isinstance(result, str) and result["status"] == "finished" for result in results), results
    return sorted(name for name in trees[0].keys() | trees[1] if trees[0].get(name) != trees[1].get(name))


if __name__ == "__main__":  # a process of its own: decode processes are forked, which is safe without TensorFlow
    for changed in changed_by_a_second_session(Path(sys.argv[1])):
        print(changed)
