"""A run of a model with several outputs, from its files to what is read back of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from runner.core.errors import ConfigError, RunnerError
from runner.core.model_spec import Output
from runner.evaluation.fad import FadOptions, Reference, differences, measure
from runner.evaluation.sources import find_sets
from runner.output.reader import EmbeddingReader
from runner.output.rows import EmbeddingInfo, clip_table, row_groups
from runner.output.run_blocks import read_blocks
from runner.output.run_model import RunModel, check_outputs
from runner.output.shard_statistics import MAX_WIDTH, statistics_of
from runner.output.top_classes import TOP, with_top_classes
from runner.vggish.spec import VGGISH
from tests import whole_run
from tests.output.test_formats import row
from tests.toy_model import TOY, ToyModel, toy_is_an_option


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with toy_is_an_option():
        folder = tmp_path_factory.mktemp("toy")
        whole_run.make_data(folder / "data")
        yield folder


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    run = folder / "disk" / "run"
    config = whole_run.make_config(folder / "data", run, "output.pool=[1.92]")
    result = whole_run.session(replace(config, model=ToyModel()), run)
    assert not isinstance(result, str), result
    assert result["status"] == "finished", result["failure"]
    return run


def column(table: object, name: str) -> np.ndarray:
    return np.stack(table[name].to_numpy())  # type: ignore[index]


def test_each_output_is_a_column_of_its_width(run: Path) -> None:
    table = pq.read_table(run / "embeddings")
    assert table.schema.names == ["clip", "example", "start_s", "padded", "label", "embedding", "scores"]
    assert (column(table, "embedding").shape[1], column(table, "scores").shape[1]) == (6, 4)
    for clip in pq.read_table(run / "clips.parquet", filters=[("status", "=", "embedded")])["clip"].to_pylist():
        own = table.filter(np.array(table["clip"].to_pylist()) == clip)
        with np.load(run / "npz" / f"{clip}.npz") as arrays:
            for name in ("embedding", "scores"):
                np.testing.assert_array_equal(arrays[name], column(own, name))


def test_files_describe_the_model(run: Path) -> None:
    shard = next((run / "embeddings").iterdir())
    metadata = {key.decode(): value.decode() for key, value in pq.read_schema(shard).metadata.items()}
    assert metadata["vggish_runner.model"] == "toy"
    assert metadata["vggish_runner.outputs"] == "embedding:6,scores:4"
    assert json.loads(metadata["vggish_runner.classes.scores"]) == list(TOY.outputs[1].classes)
    assert RunModel.from_metadata(metadata) == RunModel.of(TOY)
    assert RunModel.from_metadata(json.loads((run / "npz" / "metadata.json").read_text())) == RunModel.of(TOY)


def test_files_of_earlier_versions_are_of_vggish() -> None:
    assert RunModel.from_metadata({"vggish_runner.model": "VGGish"}) == RunModel.of(VGGISH)
    assert (RunModel.of(VGGISH).example_s, RunModel.of(VGGISH).window_s) == (0.96, 0.975)


def test_pools_and_statistics_are_of_the_first_output(run: Path) -> None:
    table = pq.read_table(run / "embeddings")
    pooled = pq.read_table(run / "pooled", filters=[("clip", "=", "b/1.wav")])
    own = column(table.filter(np.array(table["clip"].to_pylist()) == "b/1.wav"), "embedding")
    np.testing.assert_allclose(column(pooled, "mean")[-1], own.mean(axis=0), rtol=1e-6)
    with np.load(run / "stats.npz") as arrays:
        np.testing.assert_allclose(arrays["mu"], column(table, "embedding").mean(axis=0, dtype=float))
        assert not [key for key in json.loads(str(arrays["about"])) if key.startswith("classes")]


def test_clips_have_their_top_classes(run: Path) -> None:
    table = pq.read_table(run / "embeddings")
    scores, names = column(table, "scores"), np.array(table["clip"].to_pylist())
    for clip in pq.read_table(run / "clips.parquet").to_pylist():
        if clip["status"] == "skipped":
            assert clip["top_classes"] is clip["top_scores"] is None
            continue
        means = scores[names == clip["clip"]].mean(axis=0)
        assert clip["top_classes"] == [TOY.outputs[1].classes[number] for number in np.argsort(-means)]
        assert clip["top_scores"] == pytest.approx(sorted(means, reverse=True), rel=1e-5)


def test_there_are_five_top_classes_at_most_and_none_without_classes() -> None:
    clip = row("a.wav", 9)
    classes = tuple(f"class {number}" for number in range(100))
    info = EmbeddingInfo({}, 0.96, (Output("embedding", 28), Output("scores", 100, classes)))
    table = with_top_classes(clip_table([clip]), [clip], info)
    means = np.asarray(clip.embeddings)[:, 28:].mean(axis=0)
    assert table["top_classes"].to_pylist() == [[classes[number] for number in np.argsort(-means)[:TOP]]]
    assert with_top_classes(clip_table([clip]), [clip], EmbeddingInfo({}, 0.96, VGGISH.outputs)) == clip_table([clip])


def test_an_output_is_chosen_by_its_name(run: Path) -> None:
    scores = column(pq.read_table(run / "embeddings"), "scores")
    reader = EmbeddingReader(str(run), "scores")
    np.testing.assert_array_equal(np.concatenate([block.embeddings for block in reader.blocks()]), scores)
    one = reader.clip("b/1.wav")
    assert one is not None
    assert one.embeddings.shape[1] == 4
    assert EmbeddingReader(str(run)).output == TOY.outputs[0]
    with pytest.raises(RunnerError, match=r"has no output logits: toy has embedding, scores"):
        EmbeddingReader(str(run), "logits")


def test_npz_files_by_themselves_are_read_alike(run: Path, tmp_path: Path) -> None:
    (tmp_path / "npz").symlink_to(run / "npz")
    for output in (None, "scores"):
        rows, clips = {}, {}
        for location, by_clip in ((run, rows), (tmp_path, clips)):
            for block in read_blocks(str(location), output=output):
                for clip in block.clips():
                    by_clip[clip.name] = clip.embeddings
        assert rows.keys() == clips.keys()
        assert all(np.array_equal(rows[clip], clips[clip]) for clip in rows)
    with pytest.raises(RunnerError, match="has embedding, scores"):
        list(read_blocks(str(tmp_path), output="logits"))


def test_statistics_of_any_output_are_compared_with_their_like(run: Path) -> None:
    (first,), (scores,) = find_sets(str(run)), find_sets(str(run), output="scores")
    assert (len(first.summary.mean), len(scores.summary.mean)) == (6, 4)
    values = column(pq.read_table(run / "embeddings"), "scores").astype(float)
    np.testing.assert_allclose(scores.summary.covariance, np.cov(values, rowvar=False), atol=1e-12)
    (reason,) = differences(first, scores)
    assert reason.startswith("output is embedding for ")
    assert differences(scores, scores) == []
    assert measure(Reference(scores), scores, FadOptions(0)).fad == 0.0
    with pytest.raises(RunnerError, match="compare the same output of one model"):
        measure(Reference(first), scores, FadOptions())


def test_a_run_of_another_model_is_not_resumed(run: Path, folder: Path) -> None:
    told = whole_run.session(whole_run.make_config(folder / "data", run, "output.pool=[1.92]"), run)
    assert isinstance(told, str)
    assert "another configuration: model.name (toy there, vggish now)" in told


def test_only_models_with_a_projection_are_post_processed(folder: Path) -> None:
    config = whole_run.make_config(folder / "data", folder / "run", "output.postprocess=pca")
    with pytest.raises(ConfigError, match="model=toy has none: leave it out"):
        replace(config, model=ToyModel())
    output = replace(config.output, postprocess="none", formats=["tfrecord"])
    assert replace(config, output=output, model=ToyModel()).output.formats == ["tfrecord"]
    with pytest.raises(ConfigError, match=r"add output\.postprocess=audioset"):
        replace(config, output=output)


@pytest.mark.parametrize("names", [("label",), ("a", "a"), ("a,b",), ("a:0",), ("embedding_u8",), ("",)])
def test_an_output_whose_name_can_be_no_column_is_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="can't be a column of files"):
        check_outputs([Output(name, 3) for name in names])


def test_wide_rows_are_read_in_smaller_groups_and_very_wide_ones_have_no_statistics() -> None:
    wide = EmbeddingInfo({}, 0.96, (Output("embedding", 1 << 14), Output("scores", 1 << 14)))
    assert (wide.group_examples, wide.block_rows) == (256, 16)
    vggish = EmbeddingInfo({}, 0.96, VGGISH.outputs)
    assert (vggish.group_examples, vggish.block_rows) == (65_536, 4096)
    clip = row("a.wav", 40)
    assert [len(group.embeddings) for group in row_groups([clip] * 10, 64, 16)] == [72, 64, 64, 72, 64, 64]
    assert statistics_of([clip], replace(wide, outputs=(Output("embedding", MAX_WIDTH + 1),))) is None
