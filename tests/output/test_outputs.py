"""A run of a model with several outputs, from its files to what is read back of them."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from runner.cli import duplicates, export, fad, merge, search
from runner.config.schema import VGGishConfig
from runner.converters.timelines import Classes, export_timelines
from runner.core.errors import ConfigError, RunnerError
from runner.core.model_spec import Output
from runner.evaluation.fad import FadOptions, Reference, differences, measure
from runner.evaluation.labels import RunLabels
from runner.evaluation.sample import draw_sample, read_clips
from runner.evaluation.sources import find_sets
from runner.output.merge.folders import FolderSource
from runner.output.merge.merge import find_problems, read_partition
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
    assert "another configuration: model.layer (None there, embedding now), model.name (toy there, vggish now)" in told


def test_a_run_of_another_model_is_not_merged(folder: Path) -> None:
    parts = [folder / "disk" / f"part{number}" for number in (1, 2)]
    for number, (part, model) in enumerate(zip(parts, (ToyModel(), VGGishConfig()), strict=True), 1):
        config = whole_run.make_config(folder / "data", part, f"dataset.partition={number}/2")
        whole_run.session(replace(config, model=model), part)
    problems = find_problems([read_partition(FolderSource(part)) for part in parts])
    assert problems == [f"{parts[1]} is of the model vggish, and {parts[0]} of toy"]


def test_partitions_of_a_model_are_merged_with_all_its_columns(run: Path, folder: Path, tmp_path: Path) -> None:
    parts = [tmp_path / f"part{number}" for number in (1, 2)]
    for number, part in enumerate(parts, 1):
        config = whole_run.make_config(
            folder / "data", part, "output.pool=[1.92]", f"dataset.partition={number}/2", folder=folder
        )
        whole_run.session(replace(config, model=ToyModel()), part)
    assert merge.main([*map(str, parts), "--output", str(tmp_path / "merged")]) == 0
    assert pq.read_table(tmp_path / "merged" / "clips.parquet").equals(pq.read_table(run / "clips.parquet"))
    assert pq.read_table(tmp_path / "merged" / "embeddings").equals(pq.read_table(run / "embeddings"))
    with np.load(tmp_path / "merged" / "stats.npz") as merged, np.load(run / "stats.npz") as whole:
        np.testing.assert_allclose(merged["sigma"], whole["sigma"], rtol=1e-9, atol=1e-15)


def test_timelines_have_the_models_classes(run: Path, tmp_path: Path) -> None:
    reader = EmbeddingReader(str(run))
    own = EmbeddingReader(str(run), "scores").clip("b/1.wav")
    assert own is not None
    assert export_timelines(reader, tmp_path / "best", "audacity", Classes()) == 5
    best = [TOY.outputs[1].classes[number] for number in own.embeddings.argmax(axis=1)]
    heard = (tmp_path / "best" / "b" / "1.wav.txt").read_text().splitlines()
    assert [line.split("\t")[2] for line in heard] == [name for name, _ in itertools.groupby(best)]
    score = float(np.median(own.embeddings))
    export_timelines(reader, tmp_path / "all", "audacity", Classes(score))
    runs = [list(itertools.groupby(scores >= score, key=bool)) for scores in own.embeddings.T]
    expected = {
        name: sum(is_heard for is_heard, _ in stretches)
        for name, stretches in zip(TOY.outputs[1].classes, runs, strict=True)
    }
    labels = [line.split("\t")[2] for line in (tmp_path / "all" / "b" / "1.wav.txt").read_text().splitlines()]
    assert Counter(labels) == Counter(expected)
    with pytest.raises(RunnerError, match="give --classes a lower one"):
        export_timelines(reader, tmp_path / "none", "audacity", Classes(2.0))
    with pytest.raises(RunnerError, match=r"--clusters to label them by sound, or --classes"):
        export_timelines(replace_labels(run, tmp_path / "unlabeled"), tmp_path / "none", "audacity")


def replace_labels(run: Path, folder: Path) -> EmbeddingReader:
    """The run without labels."""
    table = pq.read_table(run / "embeddings").drop_columns(["label"])
    table = table.add_column(4, "label", pa.nulls(len(table), pa.string()))
    (folder / "embeddings").mkdir(parents=True)
    pq.write_table(table, folder / "embeddings" / "part-00000.parquet")
    return EmbeddingReader(str(folder))


@pytest.mark.parametrize("command", ["duplicates", "search", "fad", "export"])
def test_commands_take_any_output_by_its_name(
    command: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main, arguments = {
        "duplicates": (duplicates.main, [str(run), "--above", "-1"]),
        "search": (search.main, [str(run), "--clip", "b/1.wav"]),
        "fad": (fad.main, [str(run), str(run), "--no-log", "--json"]),
        "export": (export.main, ["npy", str(run), str(tmp_path)]),
    }[command]
    assert main([*arguments, "--model-output", "scores"]) == 0
    if command == "export":
        assert np.load(tmp_path / "b" / "1_toy.npy").shape[1] == 4
    if command == "fad":
        assert json.loads(capsys.readouterr().out)["reference"]["about"]["output"] == "scores"
    assert main([*arguments, "--model-output", "logits"]) == 1
    assert "has no output logits: toy has embedding, scores" in capsys.readouterr().err


def test_any_output_is_evaluated(run: Path) -> None:
    clips = draw_sample(
        read_clips(str(run), "scores"), RunLabels(None), unit="clip", window_s=0.96, max_rows=100, seed=0
    )
    assert clips.embeddings.shape[1] == 4


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
