"""MLflow's own tracking server in a thread of the tests' process: up in a moment, and gone as if it were killed."""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from types import TracebackType

from werkzeug.serving import BaseWSGIServer, make_server


class TrackingServer:
    """The REST interface over a sqlite database, as ``mlflow server`` gives it, at a port of its own.

    Only one at a time: MLflow keeps the store in global variables.

    Args:
        folder: for the database and the artifacts.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            self._port = int(taken.getsockname()[1])
        self._server: BaseWSGIServer | None = None

    @property
    def uri(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Serve, from now on."""
        from mlflow.server import app
        from mlflow.server.handlers import initialize_backend_stores

        store = f"sqlite:///{self._folder}/mlflow.db"
        initialize_backend_stores(store, store, str(self._folder / "artifacts"))
        self._server = make_server("127.0.0.1", self._port, app, threaded=True)
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def stop(self) -> None:
        """Be gone: whoever calls is refused."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def __enter__(self) -> TrackingServer:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.stop()
