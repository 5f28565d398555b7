"""MLflow's own tracking server, up in a second in a fork of the tests' server, to be killed and started again.

``python -m tests.tracking_server FOLDER PORT`` is the server: the application that ``mlflow server`` serves.
"""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from types import TracebackType

from tests.commands import start, wait_until
from tests.fork_server import Forked


class TrackingServer:
    """A server over a sqlite database, at a port of its own; a context, in which it runs.

    Args:
        folder: for the database ``mlflow.db``, which may be there, and the artifacts.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = int(probe.getsockname()[1])
        self._process: Forked | None = None

    @property
    def uri(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Serve, from now on."""
        process = self._process = start(str(self._folder), str(self._port), command="tests.tracking_server")

        def is_up() -> bool:
            assert process.poll() is None, process.err
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", self._port)) == 0

        wait_until(is_up, lambda: process.err)

    def kill(self) -> None:
        """Be gone: whoever calls is refused."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def __enter__(self) -> TrackingServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()


def main(folder: str, port: str) -> None:
    """Serve until killed."""
    from mlflow.server import app
    from mlflow.server.handlers import initialize_backend_stores
    from werkzeug.serving import make_server

    store = f"sqlite:///{folder}/mlflow.db"
    initialize_backend_stores(store, store, f"{folder}/artifacts")
    make_server("127.0.0.1", int(port), app, threaded=True).serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
