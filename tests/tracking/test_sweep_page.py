"""What MLflow's page of a sweep says, and addresses of pages: made-up results, no store."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import pytest

from runner.config.quoting import shell_lines
from runner.contract.files import write_tracking
from runner.contract.tracking import TrackingState
from runner.reporting.comparability import REPEATS
from runner.reporting.verdict import verdict
from runner.tracking.links import compare_page
from runner.tracking.record import actual_params, record_from_result
from runner.tracking.runs import ui_location
from runner.tracking.sweep_page import fixed_params, sweep_note, swept_params
from tests.reporting.test_advice import result
from tests.reporting.test_verdict import repeated
from tests.results import with_config


@pytest.mark.slow
def test_the_note_has_the_short_table_first_then_the_verdict_then_commands_that_fit() -> None:
    jobs = [
        repeated([speed, speed + 2, speed - 2], memory=f"policy{speed}", overrides=[f"dataset.root=/a/{'b' * 60}"] * 3)
        for speed in (100, 200, 300, 400, 500, 600, 700, 800)
    ]
    jobs = [replace(job, mlflow_run_id=f"id{number}") for number, job in enumerate(jobs)]
    lines = sweep_note(jobs, ["memory=a,b", "dataset.root=/it's here"], "7").splitlines()
    assert lines[0].startswith("| setting")
    names = [line.partition("](")[0] for line in lines if line.startswith("| [")]
    assert names == [f"| [cpu-policy{speed}-float32" for speed in (800, 700, 600, 500, 400)]
    assert "(#/experiments/7/runs/id7?workflowType=machine_learning)" in lines[2]
    assert "3 more in the run list. [Compare them](#/compare-runs?" in "\n".join(lines)
    told = [line.removesuffix("  ").strip("*") for line in lines]
    sentences = verdict(jobs).splitlines()[:-1]
    where = [told.index(each) for each in sentences]
    assert where == sorted(where)
    assert told.index("Use it:") > where[-1]
    commands = [line[4:] for line in lines if line.startswith("    ")]
    assert max(map(len, commands)) <= 90
    assert shlex.split(commands[-1]) == ["python", "-m", "runner", "-m", "memory=a,b", "dataset.root=/it's here"]


@pytest.mark.slow
def test_a_baseline_that_is_slow_is_in_the_table_and_a_job_that_is_not_ranked_is_named_with_the_reason() -> None:
    fast = [result("gpu", memory=f"policy{n}", speed=1000.0 * n) for n in range(1, 8)]
    note = sweep_note([*fast, result(speed=9.0), result(memory="greedy", status="failed")], ["device=cpu,gpu"], "1")
    assert "| cpu-balanced-float32&emsp;| 9.0&emsp;| baseline&emsp;|" in note
    assert "Not ranked: cpu-greedy-float32 (failed)." in note
    assert "](#" not in note  # nothing is known of pages
    parts = [with_config(result(run_dir=f"/s/{n}"), dataset={"partition": f"{n + 1}/2"}) for n in range(2)]
    assert "Put them together:\n\n    python -m runner merge /s/0 /s/1 --output FOLDER" in sweep_note(parts, [], "1")


def test_a_parents_parameters_are_what_was_swept_and_what_its_jobs_have_in_common() -> None:
    jobs = [result(memory="greedy"), result(memory="balanced")]
    swept = {"memory.name": ["greedy", "balanced"]}
    assert swept_params(swept) == {"swept.memory": "greedy, balanced"}
    assert swept_params({"memory.name": []}) == {}  # a sweeper seeks them
    assert swept_params({"memory.name": []}, jobs) == {"swept.memory": "greedy, balanced"}
    fixed = fixed_params(jobs, ["memory=greedy,balanced", "memory.host_limit_mib=4096", "output.dir=/x"])
    assert fixed == {
        "device.requested": "cpu",
        "precision.requested": "float32",
        "memory.host_limit_mib": "4096",
        **{f"frontend.{key}": str(value) for key, value in vars(jobs[0].info.config.frontend).items()},
        "weights.name": "random",
        "dataset.name": "demo",
        "engine.name": "local",
    }
    assert fixed_params([], []) == {}


def test_what_took_effect_and_what_was_swept_sort_first_and_what_was_asked_for_is_called_so() -> None:
    effects = {"device": "cpu", "memory.batch_size": 64}
    run = result("gpu", resolved=effects, swept={"hop_s": "0.48", "batch_size": "9"}, metrics={})
    assert actual_params(run) == {
        "actual.device": "cpu",
        "actual.hop_s": "0.48",
        "actual.memory": "balanced",
        "actual.memory.batch_size": "64",
    }
    params = record_from_result(run).params
    assert sorted(params)[:4] == sorted(actual_params(run))  # MLflow's compare page sorts so
    assert params["device.requested"] == "gpu"
    assert "device.name" not in params  # which would be the device's own name


def test_a_runs_note_tells_repeated_passes_and_its_command_fits() -> None:
    run = result(overrides=[f"dataset.root=/{'a' * 50}", f"paths.outputs=/{'b' * 50}"], metrics={REPEATS: 81.0})
    note = record_from_result(run).tags["mlflow.note.content"]
    assert "- repeated passes: 81.0 × realtime" in note
    assert max(len(line) for line in note.splitlines()) < 95


@pytest.mark.parametrize("uri", ["http://me:secret@host:5000/", "sqlite:////a/mlflow.db"])
def test_pages_open_in_the_menu_of_model_training(tmp_path: Path, uri: str) -> None:
    root = "http://host:5000" if uri.startswith("http") else "http://127.0.0.1:5000"
    (tmp_path / "sweep.json").write_text(json.dumps({"experiment_id": "3", "run_id": "r", "jobs": []}))
    _, page = ui_location(uri, tmp_path)
    assert page == f"{root}/#/experiments/3/runs?viewStateShareKey=vggish&workflowType=machine_learning"
    write_tracking(tmp_path / "tracking.json", TrackingState(uri, "3", "r", attempt=1))
    _, page = ui_location(uri, tmp_path)
    assert page == f"{root}/#/experiments/3/runs/r?workflowType=machine_learning"
    assert unquote(compare_page("3", ["a", "b"])).startswith('#/compare-runs?runs=["a","b"]&experiments=["3"]&workflow')


@pytest.mark.parametrize("words", [["a"], ["it's", "a b", '"$x"', "y" * 200, *["z" * 9] * 40], []])
def test_a_command_in_lines_is_the_same_command(words: list[str]) -> None:
    lines = shell_lines(shlex.join(words), 60)
    assert shlex.split("\n".join(lines).replace(" \\\n", " ")) == words  # as a shell joins them
    assert all(len(line) <= 62 for line in lines if "y" not in line)
