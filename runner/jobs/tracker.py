"""MLflow in the background of a job; it never ends the job."""

from __future__ import annotations

import logging
import shlex
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from runner.core.errors import StoreError
from runner.tracking.record import LIVE

if TYPE_CHECKING:
    from runner.jobs.spec import Job
    from runner.output.remote.run import RemoteRun
    from runner.tracking.runs import OpenRun
    from runner.tracking.system_metrics import SystemMetrics

log = logging.getLogger(__name__)

_SAMPLE_S = 2.0

_SHARE = 0.05

_MOST_S = 300.0

_AFTER_TROUBLE_S = 30.0

_KEPT = 1000
"""Metrics that wait for a server that does not answer; the oldest are forgotten."""


def pause_after(elapsed_s: float) -> float:
    """Seconds until the next point, a twentieth of the time so far: few calls, however long a run takes."""
    return min(max(_SHARE * elapsed_s, _SAMPLE_S), _MOST_S)


class Points:
    """What is told while a run goes on, a point at a time.

    Args:
        system: the machine's load.
        first_step: where metrics go on that earlier sessions have told of.
    """

    def __init__(self, system: SystemMetrics, first_step: Mapping[str, int]) -> None:
        self._system = system
        self._step = max((step for name, step in first_step.items() if name.startswith(LIVE)), default=0)
        self._before: Mapping[str, Any] | None = None
        self._waiting: list[Any] = []

    def add(self, progress: Mapping[str, Any] | None) -> list[Any]:
        """Take a point, given the worker's last word on how far it is; all metrics that wait to be told."""
        from runner.tracking.calls import metrics_at

        values = self._system.take()
        if progress is not None and progress is not self._before:
            values |= self._progress(progress)
            self._before = progress
        self._waiting = [*self._waiting, *metrics_at(values, int(1000 * time.time()), self._step)][-_KEPT:]
        self._step += bool(values)
        return self._waiting

    def told(self) -> None:
        """MLflow has them."""
        self._waiting = []

    def _progress(self, now: Mapping[str, Any]) -> dict[str, float]:
        before = self._before or {"audio_s": 0.0, "elapsed_s": 0.0}
        seconds = now["elapsed_s"] - before["elapsed_s"]
        values = {f"progress_{key}": float(now[key]) for key in ("clips", "audio_s")}
        values["progress_clips_skipped"] = float(now["skipped"])
        if seconds > 0:
            values["progress_realtime_factor"] = max(0.0, now["audio_s"] - before["audio_s"]) / seconds
        return values


class RunTracking:
    """MLflow for one job, or none of it; trouble there is a warning and never the run's end.

    Args:
        job: the job.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._wanted = job.config.tracking.name != "none"
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._progress: Mapping[str, Any] | None = None
        self._tags: dict[str, str] = {}
        self.outcome: str | None = None
        """What the summary says of tracking."""
        self.page: str | None = None
        """The run's page in the MLflow UI."""
        self.stopped = False
        """Whether the user had no more patience with it."""

    def begin(self, about: Mapping[str, Any], store: RemoteRun | None) -> None:
        """Open the MLflow run while the worker imports TensorFlow, and tell of the run as it goes.

        Args:
            about: what of result.json is known.
            store: told that there is an MLflow run, should this command be killed.
        """
        if self._wanted:
            self._thread = threading.Thread(target=self._follow, args=(about, store), name="tracking", daemon=True)
            self._thread.start()

    def note(self, event: Mapping[str, Any]) -> None:
        """Take note of an event of the worker, at once."""
        if event["event"] == "progress":
            self._progress = event
        elif event["event"] == "device":
            told = {"device.effective": "effective", "device.name": "name", "precision.effective": "precision"}
            self._tags = {tag: str(event[key]) for tag, key in told.items()}

    def finish(self, store: RemoteRun | None, finished: bool) -> None:
        """Log result.json and the files, and close the MLflow run; embeddings are got from the store for that.

        A second Ctrl-C ends the waiting for it.
        """
        if not self._wanted:
            return
        self._over.set()
        try:
            if self._thread is not None:
                self._thread.join()
            _apart(lambda: self._attempt(lambda: self._finish(store, finished)))
        except KeyboardInterrupt:
            self.stopped = True
            self.outcome = self._later()
            log.warning("MLflow is not waited for any longer")

    def _follow(self, about: Mapping[str, Any], store: RemoteRun | None) -> None:
        run, began = self._opened(about, store), time.monotonic()
        if run is None:  # what there is to tell is told at the end
            return
        from runner.tracking.system_metrics import SystemMetrics

        system = SystemMetrics()
        points, due, over = Points(system, run.first_step), 0.0, False
        while not over:
            over = self._over.wait(_SAMPLE_S)
            system.collect()
            elapsed = time.monotonic() - began
            if elapsed >= due or over:
                told = self._tell(run.run_id, points)
                due = elapsed + max(pause_after(elapsed), 0.0 if told else _AFTER_TROUBLE_S)

    def _opened(self, about: Mapping[str, Any], store: RemoteRun | None) -> OpenRun | None:
        from runner.tracking.runs import open_run

        job, opened = self._job, []
        self._attempt(
            lambda: opened.append(
                open_run(job.config.tracking, job.outputs, job.run_dir, about, parent_run_id=job.sweep_run_id)
            )
        )
        if store:
            store.put_tracking()
        return opened[0] if opened else None

    def _tell(self, run_id: str, points: Points) -> bool:
        """Tell what waits; False if MLflow can't be told now: what waits is told with the next point."""
        from runner.tracking.calls import cut, log_batch
        from runner.tracking.client import TrackingError, connected

        metrics, tags = points.add(self._progress), self._tags
        if not metrics and not tags:
            return True
        try:
            with connected(self._job.config.tracking, self._job.outputs, "told") as client:
                log_batch(client, run_id, metrics=metrics, tags=cut(tags))
        except TrackingError as error:
            log.debug("%s", error)
            return False
        points.told()
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
            store.get_embeddings(finished)
        finish_run(job.config.tracking, job.outputs, job.run_dir, parent_run_id=job.sweep_run_id)
        self.outcome, self.page = ui_location(store_uri(job.config.tracking, job.outputs), job.run_dir)

    def _later(self) -> str:
        return f"not logged; log it later with: python -m runner track {shlex.quote(self._job.place)}"


def _apart(work: Callable[[], None]) -> None:
    """Do it in a thread that the end of this program does not wait for: an interrupt ends the waiting at once."""
    raised: list[BaseException] = []

    def do() -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=do, name="tracking", daemon=True)
    thread.start()
    thread.join()
    if raised:
        raise raised[0]
