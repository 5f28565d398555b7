"""A run's quality as a whole: what evaluation.json holds, what is refused, what goes into result.json."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runner.config.groups.evaluate import TASKS, EvaluateConfig, check_evaluation
from runner.contract.files import read_result, write_result
from runner.core.errors import ConfigError, EvaluationError
from runner.core.metrics import metric_of
from runner.evaluation.evaluate import evaluate, with_evaluation, write_evaluation
from runner.output.npz import NpzFiles
from runner.output.parquet import ParquetShards
from runner.output.run_blocks import read_metadata
from tests.evaluation.labeled_runs import clip_row, labeled_clips, write_run
from tests.results import make_result
from tests.writers import vggish_info


def config(*tasks: str, **values: Any) -> EvaluateConfig:
    return EvaluateConfig(tasks=[*(tasks or TASKS)], **values)


@pytest.mark.slow
def test_all_tasks_of_a_run_with_labels_have_a_mean_a_spread_and_a_chance_level(tmp_path: Path) -> None:
    run = write_run(tmp_path, labeled_clips())
    found = evaluate(str(run), config())
    named = {name for name in found.metrics if not name.endswith(("_std", "_s"))}
    assert named == {
        *("probe_accuracy", "probe_macro_f1", "few_shot_accuracy", "few_shot_macro_f1", "knn_accuracy"),
        *("knn_macro_f1", "cluster_ami", "cluster_ari", "cluster_v_measure", "retrieval_map_at_r"),
    }
    for name in named:
        assert found.metrics[name] == pytest.approx(np.mean(found.quality.values[name]))
        assert found.metrics[f"{name}_std"] == pytest.approx(np.std(found.quality.values[name]))
    assert [name for name in found.metrics if metric_of(name) is None] == []
    assert found.metrics["probe_accuracy"] > 0.9
    assert found.quality.chance["probe_accuracy"] == pytest.approx(1 / 3)
    assert (found.quality.data.rows, found.quality.data.unit, found.quality.data.groups) == (30, "clip", 30)
    assert np.sum(found.confusion.matrix) == 30
    files = write_evaluation(found, tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in files] == ["evaluation.json", "plots/confusion.png"]
    written = json.loads(files[0].read_text())
    assert (written["schema"], written["config"]["folds"], written["data"]["rows"]) == (1, 5, 30)
    assert written["metrics"] == found.metrics
    assert written["per_label"] == found.per_label


def test_rows_of_one_file_are_one_recording_to_every_task(tmp_path: Path) -> None:
    """A manifest with several rows of a file: windows of it are on one side of each fold."""
    rng = np.random.default_rng(0)
    rows = [
        clip_row(f"{file}.wav#t={start},{start + 1}", f"label {file % 2}", rng.standard_normal((1, 128)), start)
        for file in range(12)
        for start in range(4)
    ]
    data = evaluate(str(write_run(tmp_path, rows)), config("probe")).quality.data
    assert (data.rows, data.groups) == (48, 12)
    assert all(count % 4 == 0 for count in data.fold_rows)


def test_annotations_label_windows_and_a_window_may_have_several_labels(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    means, rows = 3 * rng.standard_normal((2, 128)), []
    lines = ["path,start,end,label"]
    for number in range(20):
        has = rng.random((6, 2)) < 0.4
        rows.append(clip_row(f"site/{number}.wav", None, has @ means + rng.standard_normal((6, 128))))
        lines += [f"{number}.wav,{0.96 * window},{0.96 * window + 0.9},{name}"
                  for window, row in enumerate(has) for name, is_there in zip(("wren", "robin"), row, strict=True)
                  if is_there]  # fmt: skip
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    found = evaluate(str(write_run(tmp_path / "run", rows)), config(labels=str(tmp_path / "labels.csv")))
    assert found.quality.data.unit == "window"
    assert found.quality.data.multilabel
    assert found.quality.data.rows == 120
    assert found.metrics["probe_map"] > 0.9
    assert found.metrics["knn_auc"] > 0.9
    assert "few_shot_accuracy" not in found.metrics
    assert {"cluster_ami", "retrieval_map_at_r"} <= found.metrics.keys()  # of the windows with one label
    assert found.quality.chance["probe_auc"] == 0.5
    assert found.per_label["wren"]["average_precision"] > 0.9
    assert [path.name for path in write_evaluation(found, tmp_path)] == ["evaluation.json", "labels.png"]


def test_a_fold_column_is_taken_as_it_is(tmp_path: Path) -> None:
    rows = labeled_clips(recordings=9)
    lines = ["filename,category,fold", *(f"{row.clip},{row.label},{1 + int(row.clip[2:4]) % 3}" for row in rows)]
    (tmp_path / "meta.csv").write_text("\n".join(lines))
    run = write_run(tmp_path / "run", [row._replace(label=None) for row in rows])
    found = evaluate(str(run), config("probe", labels=str(tmp_path / "meta.csv"), fold_column="fold"))
    assert found.quality.data.folds == "given"
    assert found.quality.data.fold_rows == (9, 9, 9)
    assert found.quality.data.unit == "clip"


def test_the_same_data_has_the_same_digest_and_folds_whatever_the_embeddings(tmp_path: Path) -> None:
    one = evaluate(str(write_run(tmp_path / "a", labeled_clips())), config("probe"))
    other = evaluate(str(write_run(tmp_path / "b", labeled_clips(seed=1), shard_clips=10)), config("knn"))
    assert one.quality.data_sha256 == other.quality.data_sha256
    assert one.quality.data == other.quality.data
    third = evaluate(str(tmp_path / "a"), config("probe", group_pattern=r"(\d)\.wav"))
    assert third.quality.data_sha256 != one.quality.data_sha256
    assert third.quality.data.grouped_by == "group"


def test_of_too_many_clips_a_sample_is_evaluated_and_that_is_recorded(tmp_path: Path) -> None:
    found = evaluate(str(write_run(tmp_path, labeled_clips(recordings=30))), config("knn", max_rows=40))
    assert (found.quality.data.rows, found.quality.data.labeled_rows) == (40, 90)
    assert found.config.max_rows == 40


@pytest.mark.slow
def test_a_later_evaluation_takes_the_place_of_an_earlier_one_in_result_json(tmp_path: Path) -> None:
    run = write_run(tmp_path, labeled_clips())
    before = make_result({"metrics": {"realtime_factor": 100.0}})
    first = with_evaluation(before, evaluate(str(run), config("probe")))
    second = with_evaluation(first, evaluate(str(run), config("cluster")))
    assert first.metrics.keys() >= {"realtime_factor", "probe_accuracy", "probe_accuracy_std", "few_shot_accuracy"}
    assert [name for name in second.metrics if name.startswith(("probe", "few_shot"))] == []
    assert second.metrics.keys() >= {"realtime_factor", "cluster_ami"}
    assert second.evaluation is not None
    assert second.evaluation.tasks == ("cluster",)
    write_result(tmp_path / "result.json", second)
    assert read_result(tmp_path / "result.json") == second


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"tasks": ["probe", "knm"]}, "evaluate.tasks=knm is not an option: use one of probe, knn, cluster, retrieval"),
        ({"unit": "file"}, "evaluate.unit=file is not an option"),
        ({"folds": 1}, "evaluate.folds=1 is too small: use 2 or more"),
        ({"min_overlap_s": -1}, "evaluate.min_overlap_s=-1 is too small"),
        ({"fold_column": "fold"}, "give evaluate.labels"),
        ({"labels": "nowhere.csv"}, "evaluate.labels=nowhere.csv does not exist"),
    ],
)
def test_a_value_that_can_not_be_used_is_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_evaluation(EvaluateConfig(**values))


def test_without_scikit_learn_the_command_that_installs_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ConfigError, match=r"pip install 'vggish-runner\[evaluate\]'"):
        check_evaluation(config("knn"))
    check_evaluation(EvaluateConfig())  # nothing to evaluate needs nothing


def test_labels_that_can_not_be_told_apart_are_an_error(tmp_path: Path) -> None:
    run = write_run(tmp_path, [clip_row(f"{number}.wav", "dog", np.ones((1, 128))) for number in range(6)])
    with pytest.raises(EvaluationError, match="1 labels of at least two recordings can't be told apart"):
        evaluate(str(run), config())


@pytest.mark.parametrize("writer", [NpzFiles, lambda *arguments: ParquetShards(*arguments, "zstd")])
def test_a_run_says_its_speed_in_either_format(writer: Callable[..., Any], tmp_path: Path) -> None:
    for speed, metadata in ((1, {}), (0.1, {"frontend.speed": "0.1"})):
        writer(tmp_path / str(speed), vggish_info(metadata, 0.96 * speed)).write(0, labeled_clips(recordings=1))
        assert float(read_metadata(str(tmp_path / str(speed))).get("frontend.speed", 1)) == speed
