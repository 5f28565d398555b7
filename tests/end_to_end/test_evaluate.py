"""Quality as a part of a run: files, summary, MLflow and the sweep's verdict; on real audio with random weights."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from mlflow.tracking import MlflowClient

from runner.audio.framing import scaled
from runner.audio.preparation import Preparation
from runner.audio.reader import read_clip
from runner.config.groups.evaluate import TASKS, EvaluateConfig
from runner.core.layout import RunLayout
from runner.evaluation.evaluate import evaluate
from runner.inference.session import EmbeddingSession
from runner.statistics.frechet import Gaussian, frechet_distance
from runner.vggish.constants import EXAMPLE_SAMPLES
from tests.commands import run
from tests.evaluation.labeled_runs import clip_row, write_run


def test_a_sweep_with_evaluate_has_quality_beside_speed_everywhere(few_clips: Path, outputs: Path) -> None:
    done = run(
        *("-m", f"dataset.root={few_clips}", "weights=random", "device=cpu", "precision=float32,bfloat16"),
        *("evaluate=all", "evaluate.folds=3", "profile=off", f"paths.outputs={outputs}"),
    )
    assert done.status == 0, done.err
    assert "of 6 clips of 2 labels, 3 folds by 6 recordings" in done.out
    assert "Quality of cpu-balanced-float32: probe accuracy" in done.out
    assert re.search(r"× realtime, moved FAD by 0\.\d{4} and probe accuracy by .* points", done.out)
    (sweep,) = {path.parent.parent for path in (outputs / "sweeps").rglob("evaluation.json")}
    stored = [np.load(RunLayout(sweep / job).statistics) for job in ("0", "1")]
    fad = frechet_distance(*(Gaussian.of_covariance(each["mu"], each["sigma"], int(each["n"])) for each in stored))
    for job, distance in (("0", 0.0), ("1", fad)):
        evaluation = json.loads(RunLayout(sweep / job).evaluation.read_text())
        result = json.loads(RunLayout(sweep / job).result.read_text())
        assert result["metrics"]["cluster_ami"] == evaluation["metrics"]["cluster_ami"]
        assert (sweep / job / "plots" / "confusion.png").exists()
        client = MlflowClient(f"sqlite:///{outputs}/mlflow.db")
        logged = client.get_run(json.loads(RunLayout(sweep / job).tracking.read_text())["run_id"])
        assert logged.data.metrics["probe_accuracy"] == evaluation["metrics"]["probe_accuracy"]
        assert logged.data.metrics["sweep_fad"] == pytest.approx(distance, rel=1e-6)
        assert logged.data.params["evaluate.tasks"] == "probe,knn,cluster,retrieval"
        assert logged.data.tags["evaluation.data_sha256"] == evaluation["data_sha256"]
        assert "evaluation.json" in {file.path for file in client.list_artifacts(logged.info.run_id)}


def test_a_run_without_labels_is_finished_with_a_warning(few_clips: Path, outputs: Path) -> None:
    command = (
        *(f"dataset.root={few_clips / 'a'}", "weights=random", "device=cpu", "evaluate=probe", "profile=off"),
        *("tracking=none", f"paths.outputs={outputs}", f"output.dir={outputs / 'run'}"),
    )
    done = run(*command)
    assert done.status == 0, done.err
    assert done.result["status"] == "finished"
    (warning,) = [each for each in done.result["warnings"] if "quality" in each]
    assert "no embedded clip has a label: put the clips into a folder a label" in warning
    assert not RunLayout(done.run_dir).evaluation.exists()
    again = run(*command)
    assert f"python -m runner evaluate {outputs / 'run'}" in again.out + again.err


def test_random_weights_tell_real_sounds_apart_far_above_chance(
    audio: Path, vggish: EmbeddingSession, tmp_path: Path
) -> None:
    """By two windows of each clip; all the examples of a run do better (the probe 0.79)."""
    root = audio / "labelled_esc10_fold1"
    paths = sorted(root.rglob("*.ogg"))
    windows = np.concatenate([first_windows(path, 2) for path in paths])
    embeddings = np.split(vggish.embed_windows(windows), len(paths))
    clips = zip(paths, embeddings, strict=True)
    rows = [clip_row(path.relative_to(root).as_posix(), path.parent.name, own) for path, own in clips]
    config = EvaluateConfig(tasks=[*TASKS], group_pattern=r"/\d-(\d+)-")
    found = evaluate(str(write_run(tmp_path, rows)), config)
    data, metrics, chance = found.quality.data, found.metrics, found.quality.chance
    assert (data.rows, len(data.labels), data.groups) == (79, 10, 60)
    assert chance["probe_accuracy"] < 0.11
    assert metrics["probe_accuracy"] > 0.5  # measured: 0.64
    assert metrics["knn_accuracy"] > 3 * chance["knn_accuracy"]
    assert metrics["cluster_ami"] > 0.3
    assert metrics["retrieval_map_at_r"] > 5 * chance["retrieval_map_at_r"]


def first_windows(path: Path, count: int) -> np.ndarray:
    """Return a file's first windows of 0.975 s at 16 kHz, float32 [count, 15600], one behind the other."""
    with read_clip(str(path), preparation=Preparation(16_000)) as clip:
        waveform = np.concatenate([scaled(block) for block in clip])
    return waveform[: count * EXAMPLE_SAMPLES].reshape(count, EXAMPLE_SAMPLES)
