"""MLflow beside a run: what arrives while it goes on, and that no server holds it up."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from runner.config.schema import AutoWeights, FolderDataset, RunConfig, VGGishConfig
from runner.contract.events import DeviceEvent, ProgressEvent
from runner.jobs import tracker
from runner.jobs.spec import Job
from runner.jobs.tracker import Points, RunTracking, pause_after
from runner.jobs.worker_process import InterruptGuard
from runner.tracking import runs
from runner.tracking.client import TrackingError, store_uri
from runner.tracking.system_metrics import SystemMetrics
from tests.tracking.test_tracking import info_of, make_run, mute, read_back

pytestmark = pytest.mark.usefixtures("prepared_database")

__all__ = ["mute"]


class Idle:
    """Collectors that have one figure."""

    def drain(self) -> dict[str, float]:
        return {"system/cpu_utilization_percentage": 50.0}


def progress(clips: int, audio_s: float, elapsed_s: float) -> ProgressEvent:
    return ProgressEvent(clips, clips, 0, 0, audio_s, elapsed_s)


def make_job(folder: Path, **settings: Any) -> Job:
    config = RunConfig(model=VGGishConfig(), weights=AutoWeights(), dataset=FolderDataset(root="/data"))
    config = replace(config, paths=replace(config.paths, outputs=str(folder)))
    return Job(replace(config, tracking=replace(config.tracking, **settings)), folder / "run")


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_points_go_on_where_an_earlier_session_ended_and_wait_for_a_server() -> None:
    points = Points(Idle(), {"progress_clips": 7, "realtime_factor": 40})  # type: ignore[arg-type]
    first = points.add(progress(10, 100.0, 2.0))
    assert {(each.key, each.value, each.step) for each in first} == {
        ("system/cpu_utilization_percentage", 50.0, 7),
        ("progress_clips", 10.0, 7),
        ("progress_clips_skipped", 0.0, 7),
        ("progress_audio_s", 100.0, 7),
        ("progress_realtime_factor", 50.0, 7),
    }
    again = points.add(later := progress(20, 400.0, 4.0))
    assert again[: len(first)] == first  # nobody had them
    assert {each.value for each in again if each.key == "progress_realtime_factor"} == {50.0, 150.0}
    points.clear()
    assert [each.step for each in points.add(later)] == [9]  # nothing new but of the machine
    for _ in range(3000):
        points.add(later)
    assert len(points.add(later)) == 1000


def test_a_long_run_is_told_of_in_few_calls() -> None:
    calls, elapsed = 0, 0.0
    while elapsed < 7 * 86_400:
        elapsed += pause_after(elapsed)
        calls += 1
    assert calls < 2500
    assert pause_after(0.0) <= 2.0


def test_the_machine_is_told_under_mlflows_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", raising=False)
    metrics = SystemMetrics()
    metrics.collect()
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"} <= metrics.drain().keys()
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "false")
    assert SystemMetrics().drain() == {}


def test_a_collector_that_fails_is_not_asked_again() -> None:
    def fail() -> None:
        asked.append(1)
        raise OSError("no such file")

    asked: list[int] = []
    metrics = SystemMetrics([SimpleNamespace(collect_metrics=fail)])  # type: ignore[list-item]
    metrics.collect()
    assert len(asked) == 1


def test_a_run_is_seen_while_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(tracker, "_SAMPLE_S", 0.05)
    job = make_job(tmp_path)
    info = info_of(make_run(job.run_dir, attempt=1))
    one = RunTracking(job)
    one.begin(replace(info, run_name="early"), None)
    one.note(DeviceEvent("cpu", "A CPU", "float32"))
    one.note(progress(2, 20.0, 1.0))
    client = MlflowClient(store_uri(job.config.tracking, tmp_path))
    until((job.run_dir / "tracking.json").exists)
    until(lambda: {"progress_clips", "system/cpu_utilization_percentage"} <= read_back(client)[0].data.metrics.keys())
    until(lambda: "device.effective" in read_back(client)[0].data.tags)  # MLflow writes them after the metrics
    (run,) = read_back(client)
    assert (run.info.status, run.data.metrics["progress_realtime_factor"]) == ("RUNNING", 20.0)
    assert (run.data.tags["device.effective"], run.inputs.dataset_inputs[0].dataset.digest) == ("cpu", "d" * 32)
    one.note(progress(3, 30.0, 2.0))
    one.finish(None, finished=True)
    (run,) = read_back(client)
    assert (run.info.status, run.data.metrics["progress_clips"], run.data.metrics["realtime_factor"]) == (
        "FINISHED",
        3.0,
        100.0,
    )
    assert one.page


@pytest.mark.slow
def test_a_server_that_never_answers_holds_nothing_up(mute: str, tmp_path: Path) -> None:
    job = make_job(tmp_path, name="server", uri=mute.replace("me:planted@", ""), timeout_s=1.0)
    info = info_of(make_run(job.run_dir))
    one, began = RunTracking(job), time.monotonic()
    one.begin(info, None)
    for clips in range(100):
        one.note(progress(clips, 1.0, 1.0))
    assert time.monotonic() - began < 1
    one.finish(None, finished=True)
    assert one.outcome is not None
    assert one.outcome.startswith("not logged; log it later")


def test_a_point_that_could_not_be_told_comes_with_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from runner.tracking import client as mlflow_client

    def refuse(*given: object) -> None:
        raise TrackingError("down")

    one = RunTracking(make_job(tmp_path))
    one.note(DeviceEvent("cpu", "A CPU", "float32"))
    points = Points(Idle(), {})  # type: ignore[arg-type]
    monkeypatch.setattr(mlflow_client, "connected", refuse)
    assert not one._log("run", points)
    assert one.outcome is None  # the end will tell
    assert len(points.add(None)) == 2


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_second_ctrl_c_ends_the_waiting_for_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entered, never = threading.Event(), threading.Event()

    def hang(*given: object, **named: object) -> bool:
        entered.set()
        return never.wait(60)

    def press_twice() -> None:
        entered.wait(60)
        os.kill(os.getpid(), signal.SIGINT)
        until(lambda: guard.count == 1)
        time.sleep(0.3)  # two at once are one request
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(runs, "finish_run", hang)
    one = RunTracking(make_job(tmp_path))
    with InterruptGuard().installed() as guard:
        presser = threading.Thread(target=press_twice)
        presser.start()
        one.finish(None, finished=True)
        presser.join()
    never.set()
    assert one.stopped
    assert one.outcome is not None
    assert one.outcome.startswith("not logged; log it later")
