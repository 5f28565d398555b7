"""Starts Python modules as ``python -m MODULE`` does, by a fork of a process that has the slow libraries already.

MLflow, Hydra, Arrow and Matplotlib take two seconds of processor time to import: paid once a test session here, which
pytest-xdist's processes share, where a fresh process pays it each time.  What is started is a process of its own all
the same: arguments, folder, environment, standard streams, signals, exit status and the interpreter's own end are those
of a command.

``ForkServer`` is the tests' side.  ``python -m tests.fork_server`` is the server: it has one thread, and runs nothing
itself; its standard input's end ends it, a named pipe that the first process of the test session holds open.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from tests import forked_children

PRELOADED = (
    *("hydra", "hydra._internal.utils", "hydra._internal.core_plugins.basic_launcher", "omegaconf", "mlflow"),
    *("hydra._internal.core_plugins.basic_sweeper", "mlflow.tracking", "mlflow.store.tracking.sqlalchemy_store"),
    *("mlflow.data.meta_dataset", "matplotlib.pyplot", "matplotlib.backends.backend_agg", "numpy", "pandas"),
    *("pyarrow.parquet", "pyarrow.compute", "pyarrow.csv", "pyarrow.pandas_compat", "requests", "rich.progress"),
    *("soundfile", "fsspec.implementations.local", "s3fs", "gcsfs", "filelock", "psutil", "threadpoolctl", "cattrs"),
    *("cattrs.preconf", "cattrs.strategies", "google_crc32c", "multiprocessing.popen_spawn_posix"),
    *("sklearn.cluster", "sklearn.linear_model", "sklearn.model_selection", "sklearn.neighbors"),
    *("runner.jobs.job", "runner.jobs.sweep", "runner.tracking.runs", "runner.reporting.run_figures"),
    *("runner.config.arguments", "runner.reporting.advice", "runner.evaluation.evaluate"),
    *("runner.cli.run", "runner.models.vggish.model", "runner.reporting.embedding_map", "cattrs.preconf.json"),
    *("runner.tracking.system_metrics", "sqlalchemy.dialects.sqlite", "alembic.command", "rich._emoji_codes"),
    *("mlflow.store.tracking.sqlalchemy_workspace_store", "pyarrow.vendored.version", "hydra._internal.logging_config"),
    *("runner.engines.entrypoint", "runner.engines.local", "runner.pipeline.decode_worker"),
)  # fmt: skip
SHARED = "TESTS_FORK_SERVER"
"""Environment variable: the folder of the server that the processes of a test session share."""
_SIZE = struct.Struct("!Q")
_HUGE = 2 << 20
_MADV_COLLAPSE = 25


class Forked:
    """A process that was started, as ``subprocess.Popen`` has it; its output goes to files.

    Attributes:
        pid: of the process, which leads a session of its own if that was asked for.
    """

    def __init__(self, line: socket.socket, arguments: Sequence[str], out: Path, err: Path) -> None:
        self.args, self._line, self._paths = arguments, line, (out, err)
        self._told = b""
        self.returncode: int | None = None
        self.pid = int(self._tell(None))

    def poll(self) -> int | None:
        """The exit status, negative for a signal; None while the process runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end.

        Raises:
            subprocess.TimeoutExpired: it did not come.
        """
        if self.returncode is None:
            self.returncode = int(self._tell(timeout))
            self._line.close()
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for the end, and give what was written to standard output and standard error."""
        self.wait(timeout)
        return self.out, self.err

    @property
    def out(self) -> str:
        """What was written to standard output so far."""
        return self._paths[0].read_text(encoding="utf-8", errors="replace")

    @property
    def err(self) -> str:
        """What was written to standard error so far."""
        return self._paths[1].read_text(encoding="utf-8", errors="replace")

    def send_signal(self, number: int) -> None:
        """Send a signal, if the process still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def _tell(self, timeout: float | None) -> str:
        """The next line of the server's."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while b"\n" not in self._told:
            left = None if deadline is None else max(deadline - time.monotonic(), 0.0)
            if not select.select([self._line], [], [], left)[0]:
                raise subprocess.TimeoutExpired(list(self.args), timeout or 0.0)
            data = self._line.recv(4096)
            if not data:
                raise RuntimeError(f"the fork server ended: see {self._paths[1]}")
            self._told += data
        line, _, self._told = self._told.partition(b"\n")
        return line.decode()


@contextlib.contextmanager
def server_folder() -> Iterator[Path]:
    """A folder for a server, which ends with the context."""
    folder = Path(tempfile.mkdtemp(prefix="commands-"))
    os.mkfifo(folder / "held")
    held = os.open(folder / "held", os.O_RDWR)
    try:
        yield folder
    finally:
        os.close(held)
        shutil.rmtree(folder, ignore_errors=True)


class ForkServer:
    """The server's process, started with the first command of all processes that share it, and the way to it.

    Args:
        folder: of ``server_folder``, for the socket and the commands' output.
        environment: of the server.
        cwd: its working folder.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str], cwd: Path) -> None:
        self._folder, self._environment, self._cwd = folder, environment, cwd
        self._lock = threading.Lock()
        self._count = 0

    def start(
        self,
        module: str,
        arguments: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str],
        new_session: bool = False,
        together: Path | None = None,
    ) -> Forked:
        """Start ``python -m module arguments``.

        Args:
            module: by name.
            arguments: of the command line.
            cwd: working folder.
            env: the whole environment.
            new_session: whether the process leads a session of its own, as in a terminal that has no other.
            together: a file to which all output is appended; files of the server's own when None.
        """
        with self._lock:
            self._begin()
            self._count += 1
            out, err = (self._folder / f"{os.getpid()}-{self._count}.{name}" for name in ("out", "err"))
        out, err = (together, together) if together else (out, err)
        line = socket.socket(socket.AF_UNIX)
        line.connect(str(self._folder / "socket"))
        wanted = {"module": module, "arguments": list(arguments), "cwd": str(cwd), "env": dict(env)}
        data = json.dumps({**wanted, "new_session": new_session}).encode()
        with open(os.devnull, "rb") as nothing, out.open("ab") as to_out, err.open("ab") as to_err:
            socket.send_fds(line, [_SIZE.pack(len(data))], [each.fileno() for each in (nothing, to_out, to_err)])
            line.sendall(data)
            return Forked(line, [module, *arguments], out, err)

    def _begin(self) -> None:
        if self._count:
            return
        with FileLock(self._folder / "lock"):
            if (self._folder / "ready").exists():
                return
            command = [sys.executable, "-m", __name__, str(self._folder / "socket"), forked_children.ROOM_FOR_ARGUMENTS]
            with (self._folder / "held").open("rb") as held:
                server = subprocess.Popen(
                    command, cwd=self._cwd, env=self._environment, stdin=held, stdout=subprocess.PIPE
                )
            assert server.stdout is not None
            if server.stdout.readline() != b"ready\n":
                raise RuntimeError(f"the fork server ended with {server.wait()}")
            (self._folder / "ready").touch()


def main(path: str) -> None:
    """Serve until standard input ends; in the process of a command, be that command."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in PRELOADED:
            importlib.import_module(name)
        _compute_ahead()
    assert threading.active_count() == 1, f"a fork would lose threads: {threading.enumerate()}"
    gc.collect()
    gc.freeze()  # so that no collection writes to memory that is shared
    _take_huge_pages()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(64)
    wake_reader, wake_writer = os.pipe()
    os.set_blocking(wake_writer, False)
    signal.set_wakeup_fd(wake_writer, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in pytest's terminal
    os.write(1, b"ready\n")
    lines: dict[int, socket.socket] = {}
    while True:
        found, _, _ = select.select([0, wake_reader, listener], [], [])
        if wake_reader in found:
            os.read(wake_reader, 4096)
            _reap(lines)
        if listener in found:
            line, _ = listener.accept()
            wanted, streams = _wanted(line)
            pid = os.fork()
            if pid == 0:
                _let_go([wake_reader, wake_writer, line, listener, *lines.values()], streams)
                words = ["-m", wanted["module"], *wanted["arguments"]]
                forked_children.become(words, wanted["cwd"], wanted["env"], wanted["new_session"])
                forked_children.run(words)
            for stream in streams:
                os.close(stream)
            lines[pid] = line
            _send(line, pid)
        if 0 in found:
            return


def _compute_ahead() -> None:
    """Have ready what each command computes once in a process, or is slower the first time."""
    from hydra.core.plugins import Plugins
    from threadpoolctl import threadpool_info

    from runner.config.composition import compose_config
    from runner.contract.files import result_from_json, result_to_json
    from runner.contract.result import RunResult, WorkerResult
    from runner.devices.host import versions
    from tests.double.session import compute_ahead
    from tests.results import to_json

    Plugins.instance()  # of Hydra's, which are looked for in all of its packages
    compose_config(["weights=random", "device=cpu", "memory.decode_workers=1", "output.formats=[parquet,npz]"])
    for kind in (WorkerResult, RunResult):
        result_to_json(result_from_json(to_json({}), kind))
    threadpool_info()
    versions()
    compute_ahead()


def _take_huge_pages() -> None:
    """Move this process's memory to pages of 2 MiB where Linux can (6.1): a fork copies an entry for each page."""
    if not sys.platform.startswith("linux"):
        return
    madvise = ctypes.CDLL(None).madvise
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, access, *_, name = [*line.split(maxsplit=5), ""][:6]
        if access != "rw-p" or name not in ("", "[heap]"):
            continue
        first, end = (int(address, 16) // _HUGE for address in span.split("-"))
        madvise(ctypes.c_void_p((first + 1) * _HUGE), ctypes.c_size_t(max(end - first - 1, 0) * _HUGE), _MADV_COLLAPSE)


def _reap(lines: dict[int, socket.socket]) -> None:
    while lines:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        with lines.pop(pid) as line:
            _send(line, os.waitstatus_to_exitcode(status))


def _send(line: socket.socket, number: int) -> None:
    with contextlib.suppress(OSError):  # nobody waits any more
        line.sendall(f"{number}\n".encode())


def _wanted(line: socket.socket) -> tuple[dict[str, Any], list[int]]:
    head, streams, _, _ = socket.recv_fds(line, _SIZE.size, 3)
    size = _SIZE.unpack(head)[0]
    data = b""
    while len(data) < size:
        data += line.recv(size - len(data))
    return json.loads(data), list(streams)


def _let_go(unneeded: Sequence[Any], streams: Sequence[int]) -> None:
    """Keep nothing of the server's in its fork, and have the three streams for standard ones."""
    signal.set_wakeup_fd(-1)
    for each in unneeded:
        each.close() if isinstance(each, socket.socket) else os.close(each)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)


if __name__ == "__main__":
    main(sys.argv[1])
