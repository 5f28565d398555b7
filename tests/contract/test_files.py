"""spec.json, result.json and tracking.json: what is written is read again; anything else is told in a sentence."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from runner.contract.files import (
    read_result,
    read_results,
    read_spec,
    read_tracking,
    read_worker_result,
    write_result,
    write_spec,
    write_tracking,
)
from runner.contract.result import ActorSummary, RunStats, Startup, WorkerResult
from runner.contract.spec import DatasetSummary, PartitionInfo, RemoteHandle, RunSpec
from runner.contract.tracking import TrackingState
from runner.core.errors import ResumeError
from runner.core.failures import Failure
from runner.core.span import Span
from runner.weights.selection import WeightsChoice
from tests.configs import make_config
from tests.results import make_result, to_json

CURVE = {"steps": [{"batch_size": 4, "examples_per_s": 9.0, "memory_mib": None, "compile_s": 1.0}], "batch_size": 4}
FULL: dict[str, Any] = {
    "device": {"effective": "gpu", "details": {"compute_capability": [9, 0]}},
    "precision": {"effective": "float16"},
    "weights": {"checksum": "c"},
    "model": {},
    "parity": {},
    "resolved": {"memory.batch_size": 64, "memory.pinned": True, "memory.host_limit_mib": None, "device": "gpu"},
    "batch_size_curve": CURVE,
    "metrics": {"realtime_factor": 100.0},
    "skipped": {"too_short": 1},
    "throughput_series": [{"t_s": 1.0, "realtime_factor": 90.0}],
    "repeats": {"passes": [{"realtime_factor": 90.0}], "samples": []},
    "dataset": {"part": {"which": 1, "of": 2, "digest": "e", "clips": 9, "shards": [0, 2], "sizes": [1, 2]}},
    "git": {"commit": "c" * 40, "dirty": False},
    "swept": {"memory": "greedy"},
    "attempt": 2,
}


def test_a_result_is_read_as_it_was_written(tmp_path: Path) -> None:
    result = make_result(FULL)
    actors = (ActorSummary("here", "n", 7, device=result.startup.device, parity=result.startup.parity),)
    result = replace(result, stats=replace(result.stats, actors=actors), failure=Failure("disk_full", "full"))
    write_result(tmp_path / "result.json", result)
    assert read_result(tmp_path / "result.json") == result
    assert read_results([tmp_path, tmp_path / "none"]) == [result]
    worker = WorkerResult(status="interrupted", startup=Startup(resolved={"device": "cpu"}), stats=RunStats(shards=3))
    write_result(tmp_path / "result.json", worker)
    assert read_worker_result(tmp_path / "result.json") == worker


def test_the_file_is_flat_and_leaves_out_what_is_not_known(tmp_path: Path) -> None:
    write_result(tmp_path / "result.json", make_result(FULL))
    values = json.loads((tmp_path / "result.json").read_text())
    assert (values["schema_version"], values["device"]["effective"], values["attempt"]) == (2, "gpu", 2)
    assert not {"startup", "stats", "info", "actors", "failure", "mlflow_run_id"} & values.keys()


def spec(folder: Path) -> RunSpec:
    part = PartitionInfo(1, 2, "e", 9, [0, 2], [1, 2], ["a"])
    return RunSpec(
        config=make_config(["weights=random", "dataset=demo", "engine=ray"]),
        run_dir=folder,
        manifest=folder / "manifest.parquet",
        dataset=DatasetSummary("/data", "d", 3, partition=part),
        shards=(Span(0, 2), Span(2, 3)),
        row_digests=("a", "b"),
        weights=WeightsChoice("random", "random", None, None, 0, "asked", True),
        remote=RemoteHandle("s3://bucket/run", "token", "plan", True),
        spawned_at=1.5,
    )


def test_a_spec_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_spec(tmp_path / "spec.json", spec(tmp_path))
    assert read_spec(tmp_path / "spec.json") == spec(tmp_path)


def test_a_sweep_goes_on_without_a_result_that_was_cut_off(tmp_path: Path) -> None:
    for number, status in enumerate(("finished", "failed")):
        (tmp_path / str(number)).mkdir()
        write_result(tmp_path / str(number) / "result.json", make_result({"status": status}))
    (tmp_path / "2").mkdir()
    (tmp_path / "2" / "result.json").write_text('{"status": "fin')
    results = read_results(tmp_path / name for name in "0213")
    assert [result.status for result in results] == ["finished", "failed"]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"schema": 1}, "is of version 1 of the runner's files, and this runner reads version 2"),
        ({"schema_version": 3}, "is of version 3"),
        ({"schema_version": 2, "status": "finished"}, "is of a run whose command ended before it"),
        (to_json({}) | {"status": "killed"}, r"can't be read \(.*status"),
        (to_json({}) | {"metrics": {"clips": "many"}}, r"can't be read \(.*metrics"),
        (to_json({}) | {"config": {}}, r"can't be read \(.*has no option"),
    ],
)
def test_another_version_or_a_broken_file_is_told_in_a_sentence(
    tmp_path: Path, values: dict[str, Any], words: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "result.json"
    path.write_text(json.dumps(values))
    with pytest.raises(ResumeError, match=words) as raised:
        read_result(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)
    assert read_results([tmp_path]) == []
    assert str(raised.value) in caplog.text


def test_a_tracking_state_is_read_as_it_was_written_and_a_damaged_one_is_none(tmp_path: Path) -> None:
    path = tmp_path / "tracking.json"
    assert read_tracking(path) is None
    state = TrackingState("http://h:5000", "1", "r", 2, "parent", {"realtime_factor": 3}, "logged")
    write_tracking(path, state)
    assert read_tracking(path) == state
    text = path.read_text()
    for damaged in ("", "[]", text[:-9], "{}", text.replace('"run_id"', '"run"')):
        path.write_text(damaged)
        assert read_tracking(path) is None
    path.write_text(text.replace('"schema_version": 1', '"schema_version": 9'))
    with pytest.raises(ResumeError, match="is of version 9"):
        read_tracking(path)
