"""The main job as a user runs it: exit status, files, every clip accounted for, MLflow's contents."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import soundfile
from mlflow.tracking import MlflowClient

from tests.commands import DOUBLE, REAL, Done, run, run_module, start, wait_until
from tests.double.session import BATCH_S
from tests.fork_server import Forked
from tests.reference import count_examples, count_samples
from tests.stress.chaos import victims


def client_of(outputs: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{outputs}/mlflow.db")


def runs_of(outputs: Path) -> list:
    client = client_of(outputs)
    experiment = client.get_experiment_by_name("vggish-runner")
    return client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"])


def tables(run_dir: Path):
    return pq.read_table(run_dir / "embeddings"), pq.read_table(run_dir / "clips.parquet").to_pylist()


@pytest.fixture(scope="module")
def demo(new_outputs: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Done, Path]:
    """The first command of a new user, without a network: auto everything; ``test_wheel.py`` has TensorFlow's."""
    outputs = new_outputs(tmp_path_factory.mktemp("demo") / "outputs")
    done = run(f"paths.outputs={outputs}", f"paths.models={outputs}", "weights.base_url=http://127.0.0.1:9/")
    return done, outputs


def test_the_demo_runs_without_data_or_network_and_says_that_its_weights_are_random(demo) -> None:
    done, outputs = demo
    assert done.status == 0, done.err
    assert "RANDOM WEIGHTS" in done.err
    assert "weights=file" in done.err
    for words in ("device", "precision", "× realtime", "cold start", "import", "steady", "MiB", "mlflow ui"):
        assert words in done.out
    assert f"mlflow ui --backend-store-uri sqlite:///{outputs}/mlflow.db" in done.out
    result = done.result
    assert result["status"] == "finished"
    assert result["weights"]["requested"] == "auto"
    assert result["weights"]["is_random"] is True
    embeddings, clips = tables(done.run_dir)
    assert len(clips) == 40
    assert {clip["status"] for clip in clips} == {"embedded"}
    assert {Path(clip["clip"]).suffix for clip in clips} == {".wav", ".flac", ".ogg", ".mp3"}
    assert len({clip["sample_rate"] for clip in clips}) >= 5
    assert {clip["channels"] for clip in clips} == {1, 2}
    assert embeddings.num_rows == sum(clip["examples"] for clip in clips)
    metadata = {key.decode(): value.decode() for key, value in embeddings.schema.metadata.items()}
    assert metadata["vggish_runner.model"] == "VGGish"
    assert metadata["vggish_runner.weights.source"] == "random"
    assert metadata["vggish_runner.weights.random"] == "true"
    assert len(metadata["vggish_runner.weights.checksum"]) == 64
    assert "tensorflow" in json.loads(metadata["vggish_runner.versions"])


def test_mlflow_has_the_run_with_its_settings_figures_and_files(demo) -> None:
    done, outputs = demo
    (run,) = runs_of(outputs)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == f"{run.data.tags['device.effective']}-balanced-float32"
    params, tags, metrics = run.data.params, run.data.tags, run.data.metrics
    assert params["memory.name"] == "balanced"
    assert params["memory.batch_size"] == "None"
    assert int(params["actual.memory.batch_size"]) > 0
    for tag in ("device.requested", "device.name", "weights.source", "precision.effective", "host.name", "git.commit"):
        assert tags[tag]
    assert tags["version.tensorflow"]
    names = "realtime_factor examples_per_s clips_per_s startup_s startup_import_s startup_device_s "
    names += "startup_weights_s startup_compile_s steady_s batch_ms_p50 batch_ms_p95 batch_ms_p99 rss_peak_mib "
    names += "clips_embedded clips_skipped"
    for name in names.split():
        assert name in metrics, name
    assert metrics["clips_embedded"] == 40
    assert metrics["realtime_factor"] == pytest.approx(done.result["metrics"]["realtime_factor"])
    client = client_of(outputs)
    assert len(client.get_metric_history(run.info.run_id, "window_realtime_factor")) > 1
    (dataset,) = run.inputs.dataset_inputs
    assert dataset.dataset.digest == done.result["dataset"]["digest"]
    artifacts = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert artifacts >= {"config", "runner.log", "result.json", "clips.parquet", "batches.parquet"}
    batches = pq.read_table(done.run_dir / "batches.parquet")
    assert sum(batches["examples"].to_pylist()) == metrics["examples"]
    assert batches.num_rows == metrics["batches"]
    assert "embeddings" not in artifacts


def check_every_clip_is_accounted_for(done: Done, root: Path) -> list[dict]:
    """Counts add up, rows are in manifest order, and examples are what the framing formula gives."""
    result = done.result
    embeddings, clips = tables(done.run_dir)
    names = [clip["clip"] for clip in clips]
    files = [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]
    assert names == sorted(files, key=os.fsencode)
    metrics = result["metrics"]
    assert metrics["clips_embedded"] + metrics["clips_skipped"] == len(clips) == result["dataset"]["clips"]
    rows = embeddings.column("clip").to_pylist()
    expected = [clip["clip"] for clip in clips for _ in range(clip["examples"])]
    assert rows == expected
    assert embeddings.column("example").to_pylist() == [n for clip in clips for n in range(clip["examples"])]
    for clip in clips:
        if clip["status"] == "skipped":
            assert clip["reason"]
            assert clip["examples"] == 0
            continue
        frames = round(clip["seconds"] * clip["sample_rate"])
        examples = count_examples(count_samples(frames, clip["sample_rate"]))
        assert clip["padded"] == (examples == 0)
        assert clip["examples"] == max(1, examples)
    values = np.stack(embeddings.column("embedding").to_numpy())
    assert values.shape == (len(rows), 128)
    assert np.isfinite(values).all()
    return clips


def test_labelled_real_audio(audio: Path, tmp_path: Path) -> None:
    root = audio / "labelled_esc10_fold1"
    done = run(f"dataset.root={root}", "weights=random", f"paths.outputs={tmp_path}", "tracking=none", "profile=off")
    assert done.status == 0, done.err
    clips = check_every_clip_is_accounted_for(done, root)
    assert {clip["status"] for clip in clips} == {"embedded"}
    for clip in clips:
        assert clip["label"] == clip["clip"].split("/")[0]
        info = soundfile.info(str(root / clip["clip"]))
        assert clip["seconds"] == pytest.approx(info.frames / info.samplerate)
    starts = pq.read_table(done.run_dir / "embeddings").to_pylist()
    assert all(row["start_s"] == pytest.approx(0.96 * row["example"]) for row in starts)


def test_mixed_real_audio_on_a_device_that_is_absent(audio: Path, tmp_path: Path) -> None:
    root = audio / "mixed"
    arguments = ["device=metal", "memory=greedy", f"dataset.root={root}", "weights=random", "tracking=none"]
    done = run(*arguments, f"paths.outputs={tmp_path}", "profile=off")
    assert done.status == 0, done.err
    check_every_clip_is_accounted_for(done, root)
    if sys.platform != "darwin":
        device = done.result["device"]
        assert (device["requested"], device["effective"]) == ("metal", "cpu")
        assert "Metal needs macOS" in device["fallback_reason"]
        assert "warning: fell back to the CPU" in done.err


def test_hostile_files_are_embedded_or_skipped_with_a_reason(audio: Path, tmp_path: Path) -> None:
    root = audio / "hostile"
    done = run(f"dataset.root={root}", "weights=random", f"paths.outputs={tmp_path}", "tracking=none", "profile=off")
    assert done.status == 0, done.err
    clips = {clip["clip"]: clip for clip in check_every_clip_is_accounted_for(done, root)}
    assert clips["a_png.wav"]["reason"] == "unsupported_format"
    assert clips["a_zero_bytes.wav"]["reason"] == "empty"
    assert clips["a_trunc_60pct.mp3"]["reason"] == "truncated"
    assert clips["a_trunc_60pct.mp3"]["status"] == "embedded"
    assert clips["-c_dash.wav"]["status"] == "embedded"
    assert "unsupported_format" in done.out


def test_a_sweep_has_a_parent_and_a_child_per_job_also_when_one_fails(tmp_path: Path, outputs: Path) -> None:
    tone = tmp_path / "tone.wav"
    soundfile.write(tone, np.sin(np.arange(48_000) * 0.3), 16_000)
    good, bad = tmp_path / "good.csv", tmp_path / "bad.csv"
    good.write_text("path,label\ntone.wav,a\n")
    bad.write_text("path,start,end\ntone.wav,2,1\n")
    done = run(
        "-m", "dataset=manifest", f"dataset.path={good},{bad}", "device=cpu,gpu", "weights=random",
        f"paths.outputs={outputs}", "profile=off",
    )  # fmt: skip
    assert done.status == 1
    assert "Traceback" not in done.err
    assert "row 1: end=1.0 is not after start=2.0" in done.err
    assert "4 jobs, 2 failed or stopped" in done.out
    runs = runs_of(outputs)
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert parent.info.status == "FAILED"
    assert parent.data.tags["sweep.finished"] == "2"
    assert parent.data.tags["sweep.failed"] == "2"
    assert [child.info.status for child in children] == ["FINISHED", "FINISHED", "FAILED", "FAILED"]
    assert [child.data.tags["device.requested"] for child in children] == ["cpu", "gpu", "cpu", "gpu"]
    assert children[2].data.tags["failure.kind"] == "dataset"
    if children[1].data.tags["device.effective"] == "cpu":
        assert "gpu is not available" in children[1].data.tags["device.fallback_reason"]


def many_clips(folder: Path, count: int) -> Path:
    """A manifest of many parts of one minute-long file."""
    soundfile.write(folder / "long.wav", np.random.default_rng(0).uniform(-1, 1, 60 * 16_000), 16_000)
    with (folder / "clips.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "start", "end"])
        rows.writerows(["long.wav", number / 1000, number / 1000 + 10] for number in range(count))
    return folder / "clips.csv"


def start_long_run(tmp_path: Path, *arguments: str, command: str = DOUBLE) -> Forked:
    """A run of 5000 clips with ten batches a second: it has to be ended."""
    manifest = many_clips(tmp_path, 5000)
    return start(
        *("dataset=manifest", f"dataset.path={manifest}", "weights=random", "device=cpu", "memory=conservative"),
        *(f"output.dir={tmp_path}/run", f"paths.outputs={tmp_path}/outputs", "profile=off", *arguments),
        command=command,
        **{BATCH_S: "0.1"},
    )


def wait_for_shards(process: Forked, run_dir: Path, shards: int = 1) -> None:
    """Return once so many shards are on disk, of a run that goes on."""

    def there() -> bool:
        assert process.poll() is None, process.err
        return len(list(run_dir.glob("embeddings/part-*.parquet"))) >= shards

    wait_until(there, lambda: f"no shard came: {process.err}")


def test_ctrl_c_ends_the_shard_and_keeps_what_was_done(tmp_path: Path, outputs: Path) -> None:
    process = start_long_run(tmp_path, "output.clips_per_shard=8")
    wait_for_shards(process, tmp_path / "run")
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the whole foreground group
    out, err = process.communicate(timeout=90)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert result["status"] == "interrupted"
    embeddings, clips = tables(tmp_path / "run")
    assert len(clips) == result["metrics"]["clips_embedded"] > 0
    assert len(clips) % 8 == 0
    assert embeddings.num_rows == 10 * len(clips)
    assert "not done" in out
    assert f"resume  python -m runner dataset=manifest dataset.path={tmp_path}/clips.csv" in out
    assert f"output.dir={tmp_path}/run" in out
    assert not list((tmp_path / "run").rglob(".*.tmp"))
    (logged,) = runs_of(outputs)
    assert logged.info.status == "KILLED"


def signal_all(process: Forked, number: int) -> None:
    """As systemd, Slurm and containers do: to the command, its worker and the decode processes alike."""
    for each in (psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            each.send_signal(number)


def test_sigterm_to_all_processes_ends_the_shard_and_a_pause_loses_nothing(tmp_path: Path, outputs: Path) -> None:
    process = start_long_run(tmp_path, "output.clips_per_shard=8", "dataset.decode_timeout_s=1")
    wait_for_shards(process, tmp_path / "run")
    signal_all(process, signal.SIGSTOP)
    time.sleep(2)  # twice the limit of a clip
    signal_all(process, signal.SIGCONT)
    wait_for_shards(process, tmp_path / "run", len(list((tmp_path / "run/embeddings").glob("part-*.parquet"))) + 2)
    signal_all(process, signal.SIGTERM)
    _, err = process.communicate(timeout=90)
    assert process.returncode == 143, err
    assert "Traceback" not in err
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert (result["status"], result.get("failure")) == ("interrupted", None)
    assert result["metrics"]["decode_process_restarts"] == 0
    embeddings, clips = tables(tmp_path / "run")
    assert {clip["status"] for clip in clips} == {"embedded"}
    assert len(clips) % 8 == 0
    assert embeddings.num_rows == 10 * len(clips)
    (logged,) = runs_of(outputs)
    assert logged.info.status == "KILLED"


def test_sigterm_before_the_first_clip_ends_at_once(tmp_path: Path) -> None:
    process = start_long_run(tmp_path, "tracking=none", command=REAL)
    wait_until(lambda: victims(process, "decode"), lambda: process.err)  # the worker imports TensorFlow
    started = time.monotonic()
    signal_all(process, signal.SIGTERM)
    out, err = process.communicate(timeout=90)
    assert process.returncode == 143, err
    assert "Traceback" not in out + err + (tmp_path / "run/runner.log").read_text()
    assert time.monotonic() - started < 20
    assert json.loads((tmp_path / "run/result.json").read_text())["status"] == "interrupted"


def test_a_killed_worker_is_a_failed_run_with_its_signal(tmp_path: Path, outputs: Path) -> None:
    process = start_long_run(tmp_path, "output.clips_per_shard=8")
    wait_for_shards(process, tmp_path / "run")
    workers = victims(process, "worker")
    assert len(workers) == 1
    decoders = workers[0].children(recursive=True)
    workers[0].kill()
    out, err = process.communicate(timeout=90)
    assert process.returncode == 1, err
    assert "Traceback" not in err
    assert "SIGKILL" in out
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert result["failure"]["signal"] == "SIGKILL"
    pq.read_table(tmp_path / "run/embeddings")  # what was done stays readable
    (logged,) = runs_of(outputs)
    assert logged.info.status == "FAILED"
    assert logged.data.tags["failure.signal"] == "SIGKILL"
    assert "INFO" in logged.data.tags["failure.log_tail"]
    psutil.wait_procs(decoders, timeout=15)
    assert not [decoder for decoder in decoders if decoder.is_running() and decoder.status() != "zombie"]


def test_a_decode_process_that_dies_costs_at_most_the_clip_under_way(tmp_path: Path) -> None:
    process = start_long_run(tmp_path, "output.clips_per_shard=8", "tracking=none")
    wait_for_shards(process, tmp_path / "run")
    decoders = victims(process, "decode")
    for decoder in decoders:
        decoder.kill()
    killed = len(decoders)
    before = len(list(tmp_path.glob("run/embeddings/part-*.parquet")))
    wait_for_shards(process, tmp_path / "run", before + 12)
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=90)
    _, clips = tables(tmp_path / "run")
    skipped = [clip["reason"] for clip in clips if clip["status"] == "skipped"]
    assert set(skipped) <= {"decoder_crashed"}
    assert len(skipped) <= killed
    assert len({clip["clip"] for clip in clips}) == len(clips)


def test_own_data_without_weights_is_an_error_that_names_the_ways_out(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "tone.wav", np.zeros(16_000), 16_000)
    done = run(
        f"dataset.root={tmp_path}", "weights.base_url=http://127.0.0.1:9/", f"paths.models={tmp_path}/models",
        f"paths.outputs={tmp_path}/outputs",
    )  # fmt: skip
    assert done.status == 1
    assert "Traceback" not in done.err
    assert "weights=file" in done.err
    assert "weights=random" in done.err


def test_an_output_folder_that_holds_a_run_is_not_overwritten(demo) -> None:
    done, outputs = demo
    before = (done.run_dir / ".hydra/overrides.yaml").read_text()
    again = run(f"output.dir={done.run_dir}", f"paths.outputs={outputs}", "weights=random", "memory=greedy")
    assert again.status == 1
    assert "already holds a run" in again.err
    assert (done.run_dir / ".hydra/overrides.yaml").read_text() == before


def test_a_dead_tracking_server_never_fails_a_run_and_track_logs_it_later(
    few_clips: Path, tmp_path: Path, outputs: Path
) -> None:
    started = time.monotonic()
    done = run(
        f"dataset.root={few_clips}", "weights=random", "tracking=server", f"paths.outputs={tmp_path}", "profile=off",
        MLFLOW_TRACKING_URI="http://user:planted@127.0.0.1:9",
    )  # fmt: skip
    assert done.status == 0, done.err
    assert time.monotonic() - started < 120
    assert "could not log to MLflow" in done.err
    assert f"python -m runner track {done.run_dir}" in done.out
    uri = f"sqlite:///{outputs}/mlflow.db"
    later = run_module("runner", "track", str(done.run_dir), "--uri", uri)
    assert later.status == 0, later.err
    client = MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name("vggish-runner").experiment_id])
    assert [run.info.status for run in runs] == ["FINISHED"]
    assert runs[0].data.metrics["clips_embedded"] == 6
    again = run_module("runner", "track", str(done.run_dir), "--uri", uri)
    assert "was logged already" in again.out
    assert len(client.search_runs([client.get_experiment_by_name("vggish-runner").experiment_id])) == 1
    assert "planted" not in done.out + done.err + str(runs[0].data.params) + str(runs[0].data.tags)
