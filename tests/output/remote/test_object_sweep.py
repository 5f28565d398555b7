"""Sweeps in an object store: the same bits as in a folder, stops, kills, refusals; logging from there."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from runner.cli.track import main as track
from runner.core.errors import ConfigError, StoreError
from runner.core.layout import RunLayout
from runner.core.paths import staging_dir
from runner.jobs.spec import Job
from runner.jobs.tracker import RunTracking
from runner.output.remote import sweep as store_sweep
from runner.output.remote.stale_workers import stale_worker_lock
from runner.storage import lease
from runner.storage.lease import Lease
from runner.storage.object_store import ObjectStore
from runner.tracking.record import LIVE
from tests.commands import Done, start, wait_until
from tests.commands import run as run_command
from tests.configs import make_config
from tests.fork_server import Forked
from tests.object_store import Fault, StoreServer, object_store
from tests.stress.chaos import victims

BUCKET = "bucket"
SHARDS = 3
SETTINGS = (
    *("weights=random", "device=cpu", "model.conv=direct", "memory.decode_workers=1", "output.clips_per_shard=2"),
    *("tracking=none", "profile=off"),
)
SWEEP = ("-m", "memory=conservative,balanced")
JOBS = ("0", "1")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweeps") / "data"
    folder.mkdir()
    rng = np.random.default_rng(5)
    for number in range(2 * SHARDS):
        soundfile.write(folder / f"{number}.wav", rng.normal(0, 0.1, 16_000 + 4_000 * number), 16_000)
    return folder


@pytest.fixture(scope="module")
def store() -> Iterator[StoreServer]:
    with object_store() as found:
        found.bucket(BUCKET, {})
        yield found


@pytest.fixture(scope="module")
def local(clips: Path) -> Path:
    """The sweep in a folder."""
    done = sweep(clips, str(clips.parent / "local"), clips.parent)
    assert done.status == 0, done.err
    return clips.parent / "local"


def sweep(clips: Path, out: str, outputs: Path, *arguments: str) -> Done:
    return run_command(*words(clips, out, outputs), *arguments)


def words(clips: Path, out: str, outputs: Path) -> list[str]:
    return [*SWEEP, f"dataset.root={clips}", f"output.dir={out}", f"paths.outputs={outputs}", *SETTINGS]


def objects(store: StoreServer, prefix: str) -> dict[str, bytes]:
    """All objects below s3://bucket/prefix."""
    client = store.client()
    return {
        name: client.get_object(Bucket=BUCKET, Key=f"{prefix}/{name}")["Body"].read() for name in names(store, prefix)
    }


def names(store: StoreServer, prefix: str) -> list[str]:
    found = store.client().list_objects_v2(Bucket=BUCKET, Prefix=f"{prefix}/").get("Contents", [])
    return [each["Key"].removeprefix(f"{prefix}/") for each in found]


def are_put(store: StoreServer, prefix: str, wanted: set[str]) -> bool:
    """Whether the objects are there; the store is asked only after they were put."""
    asked = {key for method, key in store.requests if method == "PUT"}
    return {f"{BUCKET}/{prefix}/{name}" for name in wanted} <= asked and wanted <= set(names(store, prefix))


def assert_same(store: StoreServer, prefix: str, local: Path) -> None:
    """The jobs' numbers are those of a sweep in a folder, bit for bit, and nobody holds anything any more."""
    found = objects(store, prefix)
    assert [name for name in found if name.endswith("lease.json")] == []
    for job in JOBS:
        expected = [*sorted((local / job / "embeddings").iterdir()), local / job / "clips.parquet"]
        known = [path.relative_to(local).as_posix() for path in expected]
        assert sorted(name for name in found if name.startswith(f"{job}/embeddings/")) == known[:-1]
        assert [name for name, path in zip(known, expected, strict=True) if found[name] != path.read_bytes()] == []
        result = json.loads(found[f"{job}/result.json"])
        url = f"s3://{BUCKET}/{prefix}/{job}"
        assert (result["status"], result["run_dir"], result["config"]["output"]["dir"]) == ("finished", url, url)
    record = json.loads(found["sweep.json"])
    assert (record["jobs"], record["interrupted"]) == (list(JOBS), False)
    assert [fad["job"] for fad in record["fads"]] == list(JOBS)
    assert {path.name for path in local.iterdir() if path.is_file()} == {name for name in found if "/" not in name}


def slow(method: str, key: str) -> Fault:
    """Leaves time to stop a run between its shards."""
    time.sleep(0.4 if method == "PUT" and "/embeddings/" in key else 0)
    return None


def stop_when(seen: Callable[[], bool], command: list[str], log: Path, stop: Callable[[Forked], None]) -> int:
    """Start a command, and stop it when something is seen; its exit status."""
    log.unlink(missing_ok=True)
    process = start(*command, log=log)

    def is_seen() -> bool:
        assert process.poll() is None, process.out
        return seen()

    wait_until(is_seen, lambda: process.out)
    stop(process)
    return process.wait(60)


def kill(process: Forked) -> None:
    for each in [*victims(process, "worker"), process]:
        each.kill()


@pytest.mark.slow
def test_a_sweep_that_was_stopped_killed_and_failed_at_its_end_ends_as_a_local_one(
    clips: Path,
    store: StoreServer,
    local: Path,
    tmp_path: Path,
    outputs: Path,
    new_outputs: Callable[[Path], Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    url, log = f"s3://{BUCKET}/stopped", tmp_path / "log"
    command = [*words(clips, url, outputs), "tracking=local"]
    store.fault = slow
    status = stop_when(
        *(lambda: b"importing TensorFlow" in log.read_bytes(), command, log),
        lambda process: process.send_signal(signal.SIGINT),
    )
    assert status == 130, log.read_text()
    found = objects(store, "stopped")
    assert [name for name in found if name.endswith("lease.json") or name.startswith("1/")] == []
    assert json.loads(found["sweep.json"]) == json.loads((staging_dir(url, outputs) / "sweep.json").read_text())
    assert json.loads(found["0/result.json"])["status"] == "interrupted"

    begun = {"1/.runner/commits/shard-00000.json", "1/tracking.json"}
    stop_when(lambda: are_put(store, "stopped", begun), command, log, kill)
    assert {RunLayout.lease, f"1/{RunLayout.lease}"} <= objects(store, "stopped").keys()
    assert json.loads(objects(store, "stopped")["sweep.json"])["interrupted"] is True  # of the session before
    shutil.rmtree(staging_dir(url, outputs))

    store.fault = lambda method, key: "forbidden" if method == "PUT" and key.endswith("multirun.yaml") else None
    done = run_command(*command)
    assert done.status == 1
    assert f"{url}/0 is already complete" in done.err.replace("\n", " ")
    assert "could not upload all sweep files" in done.err.replace("\n", " ")
    assert f"files   {staging_dir(url, outputs)}, as they could not all be put to {url}" in done.out
    assert "Traceback" not in done.out + done.err
    assert (staging_dir(url, outputs) / "multirun.yaml").exists()
    assert objects(store, "stopped")["1/result.json"]

    store.behave()
    done = run_command(*command)
    assert done.status == 0, done.err
    assert f"{url}/1 is already complete" in done.err.replace("\n", " ")
    assert f"files   {url}\n" in done.out
    assert_same(store, "stopped", local)
    log_text = objects(store, "stopped")["0/runner.log"].decode()
    assert log_text.index("asked to stop") < log_text.rindex("parity of /CPU:0")  # in two sessions, one after the other
    assert json.loads(objects(store, "stopped")["1/result.json"])["attempt"] == 2

    parent, *_ = of_the_time = runs_of(f"sqlite:///{outputs}/mlflow.db")
    assert [run.info.run_id for run in of_the_time if "sweep.overrides" in run.data.tags] == [parent.info.run_id]
    assert (parent.info.status, parent.data.tags["run_dir"]) == ("FINISHED", url)
    assert {run.data.tags["mlflow.parentRunId"] for run in of_the_time[1:]} == {parent.info.run_id}
    assert [run.info.status for run in of_the_time] == ["FINISHED"] * 3  # a run a job, also of the one that was killed

    mlflow = f"sqlite:///{new_outputs(tmp_path / 'later')}/mlflow.db"
    assert track([url, "--uri", mlflow]) == 0
    assert f"{url}: logged, 2 jobs; " in capsys.readouterr().out
    assert track([url, "--uri", mlflow]) == 0
    assert f"{url}: logged, 2 jobs, 2 of them were logged already; " in capsys.readouterr().out
    parent, *children = runs_of(mlflow)
    assert parent.data.tags["run_dir"] == url
    assert {run.data.tags["run_dir"] for run in children} == {f"{url}/0", f"{url}/1"}
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert RunLayout.lease not in objects(store, "stopped")


@pytest.mark.slow
def test_jobs_in_other_processes_write_the_same(clips: Path, store: StoreServer, local: Path, tmp_path: Path) -> None:
    done = sweep(clips, f"s3://{BUCKET}/apart", tmp_path, "hydra/launcher=submitit_local")
    assert done.status == 0, done.err
    assert "2 jobs, all finished" in done.out
    assert_same(store, "apart", local)


@pytest.mark.slow
@pytest.mark.usefixtures("prepared_database")
def test_embeddings_that_left_the_folder_are_logged_and_a_run_is_logged_later_once(
    clips: Path,
    store: StoreServer,
    tmp_path: Path,
    new_outputs: Callable[[Path], Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    url = f"s3://{BUCKET}/logged"
    done = run_command(
        *(f"dataset.root={clips}", f"output.dir={url}", f"paths.outputs={tmp_path}", *SETTINGS),
        *("tracking=local", "tracking.log_embeddings=true", "output.formats=[parquet,npz]"),
    )
    assert done.status == 0, done.err
    shards = [f"embeddings/part-{number:05d}.parquet" for number in range(SHARDS)]
    arrays = sorted(name for name in names(store, "logged") if name.startswith("npz/"))
    assert len([name for name in arrays if name.endswith(".npz")]) == 2 * SHARDS
    (run,) = runs_of(f"sqlite:///{tmp_path}/mlflow.db")
    assert artifacts(f"sqlite:///{tmp_path}/mlflow.db", run, "embeddings") == shards
    assert artifacts(f"sqlite:///{tmp_path}/mlflow.db", run, "npz") == arrays
    assert "logged already" in told(track([url]), capsys)

    shutil.rmtree(staging_dir(url, tmp_path))
    later = f"sqlite:///{new_outputs(tmp_path / 'later')}/mlflow.db"
    assert f"{url}: logged; mlflow ui" in told(track([url, "--uri", later]), capsys)
    assert f"{url}: was logged already; mlflow ui" in told(track([url, "--uri", later]), capsys)
    (again,) = runs_of(later)
    assert again.data.tags["run_dir"] == url
    live = {name for name in run.data.metrics if name.startswith(LIVE)}  # told while it went on
    assert again.data.metrics.keys() == run.data.metrics.keys() - live
    assert artifacts(later, again, "embeddings") == shards
    assert {"clips.parquet", "result.json", "runner.log", "config"} <= set(artifacts(later, again, ""))

    note = tmp_path / "note.json"  # of a run that this database has not, as after it was deleted
    ObjectStore(url, 20).get("tracking.json", note)
    note.write_text(note.read_text().replace(again.info.run_id, "0" * 32))
    ObjectStore(url, 20).put(note, "tracking.json")
    assert f"{url}: logged; mlflow ui" in told(track([url, "--uri", later]), capsys)
    assert f"{url}: was logged already; mlflow ui" in told(track([url, "--uri", later]), capsys)
    assert len(runs_of(later)) == 2

    assert track([f"s3://{BUCKET}/nothing"]) == 1
    assert f"s3://{BUCKET}/nothing holds no" in capsys.readouterr().err
    hold = Lease(ObjectStore(url, 20))
    hold.acquire()
    assert track([url]) == 1
    assert "in use by another command" in capsys.readouterr().err
    hold.release()


def test_a_store_that_does_not_give_the_embeddings_is_no_end_of_the_run(tmp_path: Path) -> None:
    class Refusing:
        def download_embeddings(self, finished: bool) -> None:
            raise StoreError("s3://bucket/run can't be read")

    config = make_config(["output.dir=s3://bucket/run", "tracking.log_embeddings=true"])
    tracking = RunTracking(Job(config, tmp_path))
    tracking.finish(Refusing(), finished=True)  # type: ignore[arg-type]
    assert tracking.outcome == "not logged; log it later with: python -m runner track s3://bucket/run"


def told(status: int, capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert status == 0, captured.err
    return captured.out


def runs_of(uri: str) -> list:
    """All runs, in the order in which they were made."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    return client.search_runs([each.experiment_id for each in client.search_experiments()], order_by=["start_time"])


def artifacts(uri: str, run, folder: str) -> list[str]:
    from mlflow.tracking import MlflowClient

    return sorted(each.path for each in MlflowClient(uri).list_artifacts(run.info.run_id, folder))


def test_a_second_command_and_another_sweep_are_refused(clips: Path, store: StoreServer, tmp_path: Path) -> None:
    url = f"s3://{BUCKET}/held"
    hold = Lease(ObjectStore(url, 20))
    hold.acquire()
    with pytest.raises(ConfigError, match=rf"^output\.dir={url} is in use by another command \(process "):
        store_sweep.open_remote_sweep(tmp_path / "work", make_config([f"output.dir={url}"]))
    assert list(objects(store, "held")) == [RunLayout.lease]
    hold.release()
    record = {"run_id": None, "overrides": ["memory=greedy,balanced"], "jobs": []}
    ObjectStore(url, 20).put_text(json.dumps(record), "sweep.json")
    done = sweep(clips, url, tmp_path)
    assert done.status == 1
    assert done.err.startswith(f"error: output.dir={url} already holds another sweep (memory=greedy,balanced)")
    assert list(objects(store, "held")) == ["sweep.json"]


def test_a_bucket_that_is_not_there_is_one_message_before_any_work(
    clips: Path, store: StoreServer, tmp_path: Path
) -> None:
    done = sweep(clips, "s3://nosuchbucket/sweep", tmp_path)
    assert (done.status, done.out) == (1, "")
    assert done.err == "error: output.dir=s3://nosuchbucket/sweep is in a bucket that does not exist: " + (
        "make it, or choose one\n"
    )
    assert not staging_dir("s3://nosuchbucket/sweep", tmp_path).exists()


def test_places_that_a_sweep_cannot_have(clips: Path, tmp_path: Path) -> None:
    done = run_command("-m", "output.dir=s3://bucket/a,s3://bucket/b", f"dataset.root={clips}", *SETTINGS)
    assert done.status == 1
    assert "error: output.dir has 2 values in one sweep" in done.err
    (tmp_path / "mine").mkdir()
    done = sweep(clips, "s3://bucket/sweep", tmp_path, f"hydra.sweep.dir={tmp_path}/mine")
    assert done.status == 1
    assert f"error: hydra.sweep.dir={tmp_path}/mine can't be combined with output.dir=s3://bucket/sweep" in done.err
    assert (tmp_path / "mine").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("result.json", "holds a run"),
        (".runner/plan.json", "holds a run"),
        ("embeddings/part-00000.parquet", "holds a run"),
        ("clips/dog.wav", r"holds something else \(clips\)"),
    ],
)
def test_a_url_of_something_else_is_refused(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "RACE_WINDOW_S", 0.05)
    store = ObjectStore(f"memory://{tmp_path.name}/{name}", 5)
    store.put_text("{}", name)
    config = make_config([f"output.dir={store.url}"])
    with pytest.raises(ConfigError, match=message):
        store_sweep.open_remote_sweep(tmp_path / "work", config)
    assert list(store.list_recursive("")) == [name]
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("at_work", ["the worker", "the job"])
def test_a_sweep_waits_for_the_jobs_of_a_killed_command(
    at_work: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from filelock import FileLock

    monkeypatch.setattr(lease, "RACE_WINDOW_S", 0.05)
    monkeypatch.setattr(store_sweep, "STALE_WORKER_S", 0.1)
    url = f"memory://{tmp_path.name}/sweep"
    config = make_config([f"output.dir={url}", "engine.shutdown_timeout_s=0"])
    folder = staging_dir(url, tmp_path)
    (folder / "1/.runner").mkdir(parents=True)
    lock = stale_worker_lock(folder / "1") if at_work == "the worker" else folder / "1/.runner/run.lock"
    with FileLock(lock), pytest.raises(ConfigError, match="still running"):
        store_sweep.open_remote_sweep(folder, config)
    sweep = store_sweep.open_remote_sweep(folder, config)
    assert list(folder.iterdir()) == []
    sweep.release()
    assert list(ObjectStore(url, 5).list_recursive("")) == []
