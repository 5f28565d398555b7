"""Other models from the command to the files: a SavedModel and YAMNet; resumed, and on Ray."""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

from tests.commands import run, run_real
from tests.models.saved import CLASSES, RATE, SAMPLES, expected, save
from tests.whole_run import tree

COMMON = ("tracking=none", "profile=off", "device=cpu", "memory.decode_workers=1", "output.clips_per_shard=2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def recordings(folder: Path) -> dict[str, np.ndarray]:
    """Five recordings at 32 kHz by name, of 4 to 20 s."""
    random, found = np.random.default_rng(1), {}
    (folder / "clips").mkdir()
    for number in range(5):
        samples = random.uniform(-0.5, 0.5, RATE * 4 * (number + 1)).astype(np.float32)
        soundfile.write(folder / "clips" / f"{number}.wav", samples, RATE, subtype="FLOAT")
        found[f"{number}.wav"] = samples
    return found


@pytest.fixture(scope="module")
def settings(tf: ModuleType, folder: Path, recordings: dict[str, np.ndarray]) -> tuple[str, ...]:
    """The command's arguments but for ``output.dir``."""
    save(tf, folder / "saved")
    (folder / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    return (
        *(f"dataset.root={folder / 'clips'}", f"paths.models={folder / 'models'}", f"paths.outputs={folder}", *COMMON),
        *("model=savedmodel", f"model.path={folder / 'saved'}", f"model.sample_rate={RATE}", "model.window_s=5"),
        *("model.hop_s=2.5", f"model.classes={folder / 'classes.txt'}", "output.formats=[parquet,npz,tfrecord]"),
    )


@pytest.fixture(scope="module")
def run_dir(folder: Path, settings: tuple[str, ...]) -> Path:
    done = run_real(*settings, f"output.dir={folder / 'run'}")
    assert done.status == 0, done.err
    return folder / "run"


def windows_of(samples: np.ndarray) -> np.ndarray:
    """The windows of five seconds every 2.5; a short clip is padded to one."""
    if len(samples) < SAMPLES:
        return np.pad(samples, (0, SAMPLES - len(samples)))[None]
    return np.lib.stride_tricks.sliding_window_view(samples, SAMPLES)[:: SAMPLES // 2]


def test_every_format_has_both_outputs_of_every_window(run_dir: Path, recordings: dict[str, np.ndarray]) -> None:
    table = pq.read_table(run_dir / "embeddings")
    import tensorflow as tf

    records = {}
    for path in sorted((run_dir / "tfrecord").rglob("*.tfrecord*")):
        for record in tf.data.TFRecordDataset(str(path)):
            message = tf.train.SequenceExample.FromString(record.numpy())
            (name,) = (
                message.context.feature["video_id"].bytes_list.value or message.context.feature["id"].bytes_list.value
            )
            records[name.decode()] = message.feature_lists.feature_list
    for name, samples in recordings.items():
        embeddings, scores = expected(windows_of(samples))
        rows = table.filter(np.array(table["clip"].to_pylist()) == name)
        npz = np.load(run_dir / "npz" / f"{name}.npz")
        for column, values in (("embedding", embeddings), ("scores", scores)):
            np.testing.assert_allclose(np.stack(rows[column].to_numpy()), values, atol=2e-4)
            assert np.array_equal(npz[column], np.stack(rows[column].to_numpy()))
            listed = [list(feature.float_list.value) for feature in records[name][column].feature]
            assert np.array_equal(np.array(listed, np.float32), npz[column])


def test_clips_parquet_names_the_best_classes_by_their_mean_score(
    run_dir: Path, recordings: dict[str, np.ndarray]
) -> None:
    for row in pq.read_table(run_dir / "clips.parquet").to_pylist():
        means = expected(windows_of(recordings[row["clip"]]))[1].mean(axis=0)
        assert row["top_classes"] == [CLASSES[number] for number in np.argsort(-means)]
        np.testing.assert_allclose(row["top_scores"], np.sort(means)[::-1], atol=1e-4)


def test_a_run_is_not_resumed_with_another_model(run_dir: Path, settings: tuple[str, ...]) -> None:
    done = run(*settings, "model.hop_s=5", f"output.dir={run_dir}")
    assert done.status != 0
    assert "model.hop_s" in done.err
    other = [word for word in settings if not word.startswith(("model", "output.formats"))]
    done = run(*other, "weights=random", "output.formats=[parquet,npz]", f"output.dir={run_dir}")
    assert done.status != 0
    assert "model" in done.err


def test_lost_shards_are_redone_on_ray_with_the_same_bytes(run_dir: Path, settings: tuple[str, ...]) -> None:
    if not os.environ.get("CI"):
        pytest.importorskip("ray", reason="Ray has no build for this machine")
    before = tree(run_dir)
    for number in (0, 2):
        (run_dir / f"embeddings/part-{number:05d}.parquet").unlink()
    done = run_real(*settings, "engine=ray", f"output.dir={run_dir}")
    assert done.status == 0, done.err
    assert done.result["metrics"]["actors"] == 1
    assert tree(run_dir) == before


def test_yamnet_has_a_window_every_half_second_and_pads_the_last(
    folder: Path, recordings: dict[str, np.ndarray]
) -> None:
    common = (
        f"dataset.root={folder / 'clips'}",
        f"paths.models={folder / 'models'}",
        f"paths.outputs={folder}",
        *COMMON,
    )
    alone = "profile.device_benchmark_s.cpu=0.1"
    done = run_real(*common, "model=yamnet", "weights=random", alone, f"output.dir={folder / 'yamnet'}")
    assert done.status == 0, done.err
    assert re.search(r"by itself [\d.,]+ × realtime\n", done.out)  # its multiplications were not counted
    table = pq.read_table(folder / "yamnet/embeddings")
    counts = dict(zip(*np.unique(table["clip"].to_pylist(), return_counts=True), strict=True))
    for name, samples in recordings.items():
        after_first = max(0, len(samples) // 2 - 15_600)
        assert counts[name] == 1 + -(-after_first // 7680)
    assert [field.type.list_size for field in table.schema if field.name in ("embedding", "scores")] == [1024, 521]
    assert table.schema.metadata[b"vggish_runner.model"] == b"YAMNet"
