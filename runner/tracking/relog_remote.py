"""Logs a run or a sweep to MLflow later, from its files in an object store."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from runner.contract.files import read_sweep
from runner.core.errors import RunnerError, StoreError
from runner.core.layout import FORMAT_FOLDERS, RunLayout
from runner.storage.lease import Lease
from runner.storage.object_store import ObjectStore
from runner.tracking.relog import logged_with, track
from runner.tracking.runs import is_logged

_PATIENCE_S = 120.0
"""Seconds that a download may take."""

_LOGGED_FOLDERS = (RunLayout.hydra, RunLayout.plots, RunLayout.trace)


def track_url(url: str, uri: str | None = None) -> str:
    """Log a run's or a sweep's URL to MLflow, and return a line about it.

    The files are downloaded to a temporary folder, and the notes of the logging are uploaded.

    Raises:
        RunnerError: the URL holds no run, another command is at work on it, or MLflow or the store can't be reached.
    """
    store = ObjectStore(url, _PATIENCE_S)
    listed = store.list_folder()
    if RunLayout.result not in listed and RunLayout.sweep not in listed:
        raise RunnerError(f"{url} holds no finished or stopped run and no sweep: give the URL of one")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="vggish-track-")))
        lease = Lease(store)
        stack.callback(lease.release)
        lease.acquire()
        lease.confirm()
        files = _Files(store, folder)
        if RunLayout.sweep in listed:
            files.get(RunLayout.sweep)
            files.get_below(RunLayout.plots)
            for job in read_sweep(folder / RunLayout.sweep).jobs:
                files.get_run(f"{job}/", uri)
        else:
            files.get_run("", uri)
        try:
            line = track(folder, uri, url)
        except RunnerError:
            files.put_notes()
            raise
        try:
            files.put_notes()
        except StoreError as error:
            raise RunnerError(f"{line}; but that this was logged could not be noted: {error}") from error
        return line


class _Files:
    """The files of an output that logging needs, in a folder."""

    def __init__(self, store: ObjectStore, folder: Path) -> None:
        self._store, self._folder = store, folder
        self._notes: dict[str, bytes] = {}

    def get(self, name: str) -> None:
        """Get an object; one in which the logging is noted is put again when it has changed."""
        self._store.get(name, self._folder / name)
        self._notes[name] = (self._folder / name).read_bytes()

    def get_below(self, name: str) -> None:
        """Get a folder."""
        self._store.get_below(name, self._folder)

    def get_run(self, below: str, uri: str | None) -> None:
        """Get a run's files, ``below`` being "" or the folder of a job with a slash; few of one that is logged."""
        listed = self._store.list_folder(below)
        if f"{below}{RunLayout.result}" not in listed:
            return  # never got so far
        self._store.get(f"{below}{RunLayout.result}", self._folder / below / RunLayout.result)
        self._notes[f"{below}{RunLayout.tracking}"] = b""
        if f"{below}{RunLayout.tracking}" in listed:
            self.get(f"{below}{RunLayout.tracking}")
        config = logged_with(self._folder / below, uri)
        if is_logged(config.tracking, config.paths.outputs_folder, self._folder / below):
            return
        files = [name for name, size in listed.items() if size is not None and not (self._folder / name).exists()]
        self._store.map(self._store.get, files, [self._folder / name for name in files])
        for name in (*_LOGGED_FOLDERS, *(FORMAT_FOLDERS if config.tracking.log_embeddings else ())):
            if f"{below}{name}" in listed:
                self.get_below(f"{below}{name}")

    def put_notes(self) -> None:
        """Put what the logging has changed; raises StoreError."""
        for name, before in self._notes.items():
            path = self._folder / name
            if path.exists() and path.read_bytes() != before:
                self._store.put(path, name)
