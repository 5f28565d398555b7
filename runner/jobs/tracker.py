"""MLflow in the background of a job, whose failures never end the job."""

from __future__ import annotations

import logging
import shlex
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from runner.contract.events import DeviceEvent, ProgressEvent
from runner.core.errors import StoreError
from runner.tracking.record import LIVE

if TYPE_CHECKING:
    from runner.contract.events import Event
    from runner.contract.result import RunInfo
    from runner.jobs.spec import Job
    from runner.output.remote.run import RemoteRun
    from runner.tracking.runs import OpenRun
    from runner.tracking.system_metrics import SystemMetrics

log = logging.getLogger(__name__)

_SAMPLE_S = 2.0

_PAUSE_SHARE = 0.05

_MAX_PAUSE_S = 300.0

_RETRY_S = 30.0

_JOIN_S = 0.5

_MAX_PENDING = 1000
"""Metrics that wait for a server that does not answer; the oldest are dropped."""


def pause_after(elapsed_s: float) -> float:
    """Return the seconds until the next point, a twentieth of the time so far: few calls, however long a run takes."""
    return min(max(_PAUSE_SHARE * elapsed_s, _SAMPLE_S), _MAX_PAUSE_S)


class Points:
    """Metrics of a run's progress and of the machine's load, a point at a time.

    Args:
        system: the machine's load.
        first_step: the steps at which metrics of earlier attempts continue.
    """

    def __init__(self, system: SystemMetrics, first_step: Mapping[str, int]) -> None:
        self._system = system
        self._step = max((step for name, step in first_step.items() if name.startswith(LIVE)), default=0)
        self._previous: ProgressEvent | None = None
        self._pending: list[Any] = []

    def add(self, progress: ProgressEvent | None) -> list[Any]:
        """Add a point, with the worker's last progress; return all metrics that are not logged yet."""
        from runner.tracking.calls import metrics_at

        values = self._system.drain()
        if progress is not None and progress is not self._previous:
            values |= self._progress(progress)
            self._previous = progress
        self._pending = [*self._pending, *metrics_at(values, int(1000 * time.time()), self._step)][-_MAX_PENDING:]
        self._step += bool(values)
        return self._pending

    def clear(self) -> None:
        """Drop the metrics, which are logged now."""
        self._pending = []

    def _progress(self, now: ProgressEvent) -> dict[str, float]:
        before = self._previous
        audio_s, seconds = now.audio_s, now.elapsed_s
        if before is not None:
            audio_s, seconds = audio_s - before.audio_s, seconds - before.elapsed_s
        values = {"progress_clips": float(now.clips), "progress_audio_s": now.audio_s}
        values["progress_clips_skipped"] = float(now.skipped)
        if seconds > 0:
            values["progress_realtime_factor"] = max(0.0, audio_s) / seconds
        return values


class RunTracking:
    """MLflow for one job, if it is tracked; a failure is a warning and never the run's end.

    Args:
        job: the job.

    Attributes:
        outcome: the summary's line on tracking.
        page: the run's page in the MLflow UI.
        stopped: whether the user stopped the logging.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._is_tracked = job.config.tracking.name != "none"
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._progress: ProgressEvent | None = None
        self._tags: dict[str, str] = {}
        self.outcome: str | None = None
        self.page: str | None = None
        self.stopped = False

    def begin(self, info: RunInfo, store: RemoteRun | None) -> None:
        """Open the MLflow run while the worker imports TensorFlow, and log the run's progress.

        Args:
            info: the run's.
            store: gets the MLflow run's id, should this command be killed.
        """
        if self._is_tracked:
            self._thread = threading.Thread(target=self._follow, args=(info, store), name="tracking", daemon=True)
            self._thread.start()

    def note(self, event: Event) -> None:
        """Note an event of the worker, without waiting."""
        if isinstance(event, ProgressEvent):
            self._progress = event
        elif isinstance(event, DeviceEvent):
            self._tags = {
                "device.effective": event.effective,
                "device.name": event.name,
                "precision.effective": event.precision,
            }

    def finish(self, store: RemoteRun | None, finished: bool) -> None:
        """Log result.json and the files, and close the MLflow run; embeddings are downloaded from the store for that.

        A second Ctrl-C stops the logging.
        """
        if not self._is_tracked:
            return
        self._ended.set()
        try:
            if self._thread is not None:
                _wait_for(self._thread)
            _in_daemon_thread(lambda: self._attempt(lambda: self._finish(store, finished)))
        except KeyboardInterrupt:
            self.stopped = True
            self.outcome = self._later()
            log.warning("stopped logging to MLflow")

    def _follow(self, info: RunInfo, store: RemoteRun | None) -> None:
        run, began = self._open(info, store), time.monotonic()
        if run is None:  # all is logged at the end
            return
        from runner.tracking.system_metrics import SystemMetrics

        system = SystemMetrics()
        points, due, is_last = Points(system, run.first_step), 0.0, False
        while not is_last:
            is_last = self._ended.wait(_SAMPLE_S)
            system.collect()
            elapsed = time.monotonic() - began
            if elapsed >= due or is_last:
                logged = self._log(run.run_id, points)
                due = elapsed + max(pause_after(elapsed), 0.0 if logged else _RETRY_S)

    def _open(self, info: RunInfo, store: RemoteRun | None) -> OpenRun | None:
        from runner.tracking.runs import open_run

        job, opened = self._job, []
        self._attempt(
            lambda: opened.append(
                open_run(job.config.tracking, job.outputs, job.run_dir, info, parent_run_id=job.sweep_run_id)
            )
        )
        if store:
            store.upload_tracking()
        return opened[0] if opened else None

    def _log(self, run_id: str, points: Points) -> bool:
        """Log pending metrics; False if that fails now: they are logged with the next point."""
        from runner.tracking.calls import cut, log_batch
        from runner.tracking.client import TrackingError, connected

        metrics, tags = points.add(self._progress), self._tags
        if not metrics and not tags:
            return True
        try:
            with connected(self._job.config.tracking, self._job.outputs, "log to") as client:
                log_batch(client, run_id, metrics=metrics, tags=cut(tags))
        except TrackingError as error:
            log.debug("%s", error)
            return False
        points.clear()
        self._tags = {}
        return True

    def _attempt(self, step: Callable[[], None]) -> None:
        from runner.tracking.client import TrackingError

        try:
            step()
        except (TrackingError, StoreError) as error:
            self.outcome = self._later()
            log.warning("%s", error)

    def _finish(self, store: RemoteRun | None, finished: bool) -> None:
        from runner.tracking.client import store_uri
        from runner.tracking.runs import finish_run, ui_location

        job = self._job
        if store and job.config.tracking.log_embeddings:
            store.download_embeddings(finished)
        finish_run(job.config.tracking, job.outputs, job.run_dir, parent_run_id=job.sweep_run_id)
        self.outcome, self.page = ui_location(store_uri(job.config.tracking, job.outputs), job.run_dir)

    def _later(self) -> str:
        return f"not logged; log it later with: python -m runner track {shlex.quote(self._job.location)}"


def _in_daemon_thread(work: Callable[[], None]) -> None:
    """Do it in a thread that the end of this program does not wait for: an interrupt ends the wait at once."""
    raised: list[BaseException] = []

    def do() -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=do, name="tracking", daemon=True)
    thread.start()
    _wait_for(thread)
    if raised:
        raise raised[0]


def _wait_for(thread: threading.Thread) -> None:
    """Join in short steps: a signal that arrives just before a wait begins is handled only after that wait."""
    while thread.is_alive():
        thread.join(_JOIN_S)
