"""Right numbers from the command line: output formats, post-processing, the parity gate, the released weights' test."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from runner.contract.events import Events
from runner.contract.files import read_result
from runner.contract.spec import DatasetSummary, RunSpec
from runner.core.layout import RunLayout
from runner.core.startup_timer import StartupTimer
from runner.dataset.digests import row_digests
from runner.dataset.manifest import build_manifest
from runner.dataset.shards import plan_shards
from runner.devices.instruction_sets import instruction_sets
from runner.inference.startup import SessionStartup
from runner.jobs import spawn
from runner.jobs.terminal import RunProgress
from runner.jobs.worker_process import InterruptGuard, run_worker
from runner.reporting.comparability import FIRST_PASS, exclusion_reasons, facts_of_result
from runner.vggish.postprocess import project, quantize, random_pca
from runner.weights.selection import WeightsChoice
from tests.commands import Done, run
from tests.configs import make_config
from tests.results import make_spec
from tests.vggish.test_smoke import checkpoint, stand_in

__all__ = ["checkpoint"]


@pytest.fixture(scope="module")
def everything(audio: Path, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """All formats at once, on real audio."""
    folder = tmp_path_factory.mktemp("formats")
    return run(
        f"dataset.root={audio / 'mixed'}",
        "weights=random",
        "weights.seed=5",
        "tracking=none",
        "profile=off",
        "output.formats=[parquet,npz,tfrecord]",
        "output.postprocess=audioset",
        f"output.dir={folder / 'run'}",
        f"paths.models={folder / 'models'}",
    )


def test_all_formats_together_hold_the_same(everything: Done) -> None:
    import tensorflow as tf

    assert everything.status == 0, everything.err
    rows = pq.read_table(everything.run_dir / "embeddings").to_pylist()
    clips = [clip for clip in pq.read_table(everything.run_dir / "clips.parquet").to_pylist() if clip["examples"]]
    by_clip: dict[str, list[dict]] = {}
    for row in rows:
        by_clip.setdefault(row["clip"], []).append(row)
    assert list(by_clip) == [clip["clip"] for clip in clips]
    pca = random_pca(5)
    for name, own in by_clip.items():
        embeddings = np.array([row["embedding"] for row in own], np.float32)
        eight_bits = np.array([row["embedding_u8"] for row in own], np.uint8)
        assert np.array_equal(quantize(project(embeddings, pca)), eight_bits)
        with np.load(everything.run_dir / "npz" / f"{name}.npz", allow_pickle=False) as found:
            assert np.array_equal(found["embedding"], embeddings)
            assert np.array_equal(found["embedding_u8"], eight_bits)
            assert str(found["label"]) == (own[0]["label"] or "")
    files = sorted(str(path) for path in (everything.run_dir / "tfrecord").glob("*.tfrecord"))
    records = list(tf.data.TFRecordDataset(files).as_numpy_iterator())
    assert len(records) == len(clips)
    for record, (name, own) in zip(records, by_clip.items(), strict=True):
        parsed = tf.train.SequenceExample.FromString(record)
        assert parsed.context.feature["video_id"].bytes_list.value[0].decode() == name
        features = [
            feature.bytes_list.value[0] for feature in parsed.feature_lists.feature_list["audio_embedding"].feature
        ]
        assert features == [bytes(row["embedding_u8"]) for row in own]


def test_pca_alone_is_a_column_of_its_own(few_clips: Path, tmp_path: Path) -> None:
    done = run(
        f"dataset.root={few_clips}", "weights=random", "tracking=none", "profile=off", "output.postprocess=pca",
        f"output.dir={tmp_path / 'run'}",
    )  # fmt: skip
    assert done.status == 0, done.err
    table = pq.read_table(done.run_dir / "embeddings")
    projected = np.stack(table["embedding_pca"].to_numpy())
    assert projected.dtype == np.float32
    assert np.allclose(projected, project(np.stack(table["embedding"].to_numpy()), random_pca(0)), rtol=1e-6)
    assert "embedding_u8" not in table.column_names


def test_tfrecords_without_their_post_processing_are_refused() -> None:
    done = run("output.formats=[tfrecord]", "weights=random")
    assert done.status == 1
    assert "add output.postprocess=audioset" in done.err


@pytest.fixture
def parity_run(few_clips: Path, outputs: Path) -> Callable[..., tuple[Done, Run]]:
    """Makes a run in bfloat16 whose tolerance is float32's, which no bfloat16 meets; gives what MLflow has of it."""
    tolerance = "parity.tolerances.bfloat16={rel_err:2e-5,min_cosine:0.999999,scale_err:1e-5}"
    settings = (f"dataset.root={few_clips}", "weights=random", "device=cpu", "precision=bfloat16", tolerance)

    def make(*arguments: str) -> tuple[Done, Run]:
        done = run(*settings, *arguments, "profile=off", f"paths.outputs={outputs}")
        client = MlflowClient(f"sqlite:///{outputs}/mlflow.db")
        (logged,) = client.search_runs([client.get_experiment_by_name("vggish-runner").experiment_id])
        return done, logged

    return make


def test_a_device_that_misses_fails_its_run_and_no_throughput_is_published(
    parity_run: Callable[..., tuple[Done, Run]],
) -> None:
    done, logged = parity_run()
    assert done.status == 1
    assert "gives other embeddings than the reference" in done.out
    assert "× realtime" not in done.out
    assert logged.info.status == "FAILED"
    assert logged.data.tags["failure.kind"] == "parity"
    assert logged.data.tags["parity.passed"] == "false"
    assert logged.data.metrics["parity_rel_err"] > 2e-5
    assert logged.data.metrics["parity_min_cosine"] > 0.999
    assert logged.data.metrics["parity_s"] > 0
    assert not [name for name in logged.data.metrics if "realtime" in name or "per_s" in name]
    assert not (done.run_dir / "embeddings").exists()


def test_with_warn_the_run_goes_on_and_says_so(parity_run: Callable[..., tuple[Done, Run]]) -> None:
    done, logged = parity_run("parity=warn")
    assert done.status == 0, done.err
    assert "gives other embeddings than the reference" in " ".join(done.err.split())
    assert "FAILED" in done.out
    assert logged.info.status == "FINISHED"
    assert (logged.data.tags["parity.passed"], logged.data.tags["parity.action"]) == ("false", "warn")
    assert logged.data.metrics["realtime_factor"] > 0


def test_with_parity_off_nothing_is_checked_and_the_run_is_not_ranked(
    parity_run: Callable[..., tuple[Done, Run]],
) -> None:
    done, logged = parity_run("parity=off")
    assert done.status == 0, done.err
    assert "no device's numbers are checked" in " ".join(done.err.split())
    assert "parity.passed" not in logged.data.tags
    assert done.result["metrics"]["parity_canaries"] == 0
    facts = facts_of_result(read_result(done.run_dir / RunLayout.result))
    assert "parity was off: its numbers were not checked" in exclusion_reasons(facts, FIRST_PASS)


def test_a_run_that_passes_logs_by_how_much_and_its_reference_is_kept(few_clips: Path, tmp_path: Path) -> None:
    arguments = (
        f"dataset.root={few_clips}",
        "weights=random",
        "weights.seed=77",
        "profile=off",
        f"paths.models={tmp_path / 'models'}",
    )
    first, second = (run(*arguments, "tracking=none", f"output.dir={tmp_path / name}") for name in ("first", "second"))
    for done, reference in ((first, "computed now"), (second, "from the cache")):
        assert done.status == 0, done.err
        parity = done.result["parity"]
        assert (parity["passed"], parity["misses"]) == (True, [])
        assert reference in parity["reference"]
        assert done.result["metrics"]["parity_rel_err"] < 1e-5
        assert done.result["metrics"]["parity_min_cosine"] > 0.999999
        assert "max error" in done.out


def spec_of(clips: Path, tmp_path: Path, weights: WeightsChoice) -> RunSpec:
    """A run's spec with a stand-in for the released weights, whose checksum no command would let pass."""
    overrides = (f"dataset.root={clips}", "tracking=none", "profile=off", "device=cpu", "parity=off")
    config = make_config([*overrides, f"paths.models={tmp_path / 'models'}"])
    manifest = build_manifest(config.dataset, tmp_path)
    layout = RunLayout(tmp_path / "run")
    layout.state.mkdir(parents=True)
    pq.write_table(manifest.table, layout.manifest)
    shards = plan_shards(manifest.table.num_rows, None)
    dataset, digests = DatasetSummary.of(manifest), row_digests(manifest.table, shards)
    return make_spec(
        layout.root, config, dataset=dataset, shards=shards, row_digests=digests, weights=weights,
        manifest=layout.manifest,
    )  # fmt: skip


@pytest.mark.usefixtures("placeable")
def test_the_released_weights_are_tested_first_and_their_statistics_are_metrics(
    few_clips: Path, tmp_path: Path, checkpoint: Callable[[float], str]
) -> None:
    spec = spec_of(few_clips, tmp_path, stand_in(tmp_path, checkpoint))
    startup = SessionStartup(spec, ("float32",), StartupTimer(0.0), Events(io.StringIO()))
    startup.prepare()
    assert startup.metrics["smoke_embedding_mean"] == pytest.approx(0.000657, rel=0.1)
    assert startup.metrics["smoke_postprocessed_std"] == pytest.approx(89.3, rel=0.1)


def test_released_weights_with_other_answers_stop_the_run(
    few_clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the double's are, whatever the checkpoint holds."""
    monkeypatch.setattr(spawn, "WORKER", (sys.executable, "-m", "tests.double.worker"))
    (tmp_path / "other.ckpt.index").touch()
    np.savez(tmp_path / "pca.npz", pca_eigen_vectors=np.eye(128), pca_means=np.zeros((128, 1)))
    files = (str(tmp_path / "other.ckpt"), str(tmp_path / "pca.npz"))
    spec = spec_of(few_clips, tmp_path, WeightsChoice("audioset", "audioset", *files, None, "a stand-in", False))
    with RunProgress(spec.dataset.clips) as progress:
        result = run_worker(spec, progress, InterruptGuard())
    assert result.failure is not None
    assert (result.status, result.failure.kind) == ("failed", "weights")
    assert "smoke test" in result.failure.message
    assert not RunLayout(spec.run_dir).embeddings.exists()


def test_auto_takes_the_next_precision_where_the_first_misses(few_clips: Path, tmp_path: Path) -> None:
    if not instruction_sets().bfloat16_units:
        pytest.skip("this CPU has no bfloat16 units: auto begins with float32")
    tolerance = "parity.tolerances.bfloat16={rel_err:2e-5,min_cosine:0.999999,scale_err:1e-5}"
    settings = (f"dataset.root={few_clips}", "weights=random", "device=cpu", "tracking=none", "precision=auto")
    settings += ("profile=off",)
    done = run(*settings, tolerance, f"output.dir={tmp_path}/run", f"paths.outputs={tmp_path}")
    assert done.status == 0, done.err
    assert "bfloat16 failed parity" in done.err
    assert done.result["precision"]["effective"] == "float32"
    assert done.result["parity"]["passed"] is True
