"""The report on a real MLflow store with made-up runs: what is ranked, what is not and why, forms, the check."""

from __future__ import annotations

import csv
import io
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from mlflow.entities import Dataset, DatasetInput, Metric, Param, RunTag
from mlflow.tracking import MlflowClient

from runner.cli.report import main
from runner.contract.result import RunStats, WorkerResult
from runner.core.errors import RunnerError
from runner.reporting.intervals import interval_metrics
from runner.tracking import query
from runner.tracking.query import MlflowReader
from tests.conftest import PROJECT, environment


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, new_outputs: Callable[[Path], Path]) -> tuple[str, dict[str, str]]:
    """A sweep of four jobs and two runs: (uri, ids by name)."""
    folder = new_outputs(tmp_path_factory.mktemp("store"))
    uri = f"sqlite:///{folder}/mlflow.db"
    client = MlflowClient(uri)
    experiment = client.create_experiment("vggish-runner", f"file://{folder}/artifacts")
    parent = client.create_run(experiment, run_name="sweep x", tags={"sweep.overrides": "x"}).info.run_id
    client.set_terminated(parent)
    ids = {"sweep": parent}

    def add(
        name: str, speed: float, *, digest: str = "d", of: str | None = parent, noise: float = 0, **more: float | str
    ) -> None:
        tags = {"weights.checksum": "w", "parity.passed": "true", "command": f"python -m runner name={name}"}
        tags |= {key.replace("__", "."): str(value) for key, value in more.items() if isinstance(value, str)}
        tags |= {"mlflow.parentRunId": of} if of else {}
        run = client.create_run(experiment, run_name=name, tags=tags)
        windows = [speed + noise * ((7 * n) % 11 / 5 - 1) for n in range(60)] if noise else []
        metrics = {"realtime_factor": speed, "startup_s": 1e3 / speed, "examples_per_s": speed}
        metrics |= {key: value for key, value in more.items() if isinstance(value, float)}
        stats = RunStats(throughput_series=[{"realtime_factor": each} for each in windows])
        metrics |= interval_metrics(WorkerResult(status="finished", metrics=metrics, stats=stats))
        prefix = "resolved" if name == "twin" else "actual"  # as older runs have it
        params = {f"{prefix}.device": "cpu", "memory.name": "balanced", f"{prefix}.precision": "float32"}
        params["frontend.hop_s"] = str(more.get("frontend__hop_s", 0.96))
        client.log_batch(
            run.info.run_id,
            [Metric(key, value, 0, 0) for key, value in metrics.items()]
            + [Metric("window_realtime_factor", value, 0, step) for step, value in enumerate(windows)],
            [Param(key, value) for key, value in params.items()],
            [RunTag("bottleneck", "compute")],
        )
        client.log_inputs(run.info.run_id, [DatasetInput(Dataset("x", digest, "local", "{}"))])
        client.set_terminated(run.info.run_id)
        ids[name] = run.info.run_id

    add("slow", 100.0, noise=3.0)
    add("fast", 300.0, noise=9.0, repeat_realtime_factor_mean=310.0)
    add("wrong", 900.0, parity__passed="false")
    add("elsewhere", 800.0, digest="e")
    add("loaded", 700.0, of=None, background_cpu_share=0.5)
    add("absent", 600.0, of=None, device__fallback_reason="no driver", device__requested="gpu")
    add("hop", 400.0, of=None, frontend__hop_s="0.48")
    add("twin", 301.0, of=None, noise=9.0)
    return uri, ids


def report(store: tuple[str, dict[str, str]], *arguments: str) -> int:
    return main([*arguments, "--uri", store[0]])


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


@pytest.mark.slow
def test_runs_that_cannot_be_compared_are_listed_and_not_ranked(store, capsys) -> None:
    assert report(store, "--format", "csv") == 0
    found = {row["run"]: row for row in rows(capsys.readouterr().out)}
    assert [(name, row["rank"]) for name, row in found.items() if row["workload"] == "1"] == [
        *(("twin", "1"), ("fast", "2"), ("slow", "3")),
    ]
    assert {found[name]["rank"] for name in ("elsewhere", "hop")} == {"1"}  # each by itself
    assert found["elsewhere"]["workload"] != found["hop"]["workload"]
    assert float(found["fast"]["low"]) < 300 < float(found["fast"]["high"])
    why = {name: row["problems"] for name, row in found.items() if not row["rank"]}
    assert why.pop("wrong") == "failed parity"
    assert why.pop("loaded") == "other programs took 50% of the processors"
    assert why.pop("absent") == "gpu was absent: it ran on the CPU"
    assert not why  # the sweep itself is not listed: its jobs are


@pytest.mark.slow
def test_another_workload_is_said_to_be_one(store, capsys) -> None:
    assert report(store, "slow", "fast", "hop", "elsewhere") == 0
    text = capsys.readouterr().out
    assert "not comparable with workload 1, because frontend.hop_s is 0.48, not 0.96" in text
    assert "not comparable with workload 1, because data set is e, not d" in text


def test_first_passes_are_not_ranked_beside_repeats(store, capsys) -> None:
    assert report(store, "slow", "fast", "--format", "csv") == 0
    found = rows(capsys.readouterr().out)
    assert [row["ranked_by"] for row in found] == ["realtime_factor"] * 2
    assert report(store, "fast", "--format", "csv") == 0
    assert rows(capsys.readouterr().out)[0]["ranked_by"] == "repeat_realtime_factor_mean"


def test_what_is_within_noise_is_no_difference(store, capsys) -> None:
    assert report(store, "twin", "fast", "slow") == 0
    text = capsys.readouterr().out
    assert f"; no measurable difference to fast {store[1]['fast'][:8]}." in text
    assert "as good as the second" not in text


def test_a_sweep_stands_for_its_jobs(store, capsys) -> None:
    assert report(store, store[1]["sweep"], "--metric", "startup_s", "--format", "csv") == 0
    assert {row["run"] for row in rows(capsys.readouterr().out)} == {"slow", "fast", "wrong", "elsewhere"}


def test_the_ids_that_are_printed_are_taken(store, capsys) -> None:
    assert report(store, store[1]["fast"][:8], "--format", "csv") == 0
    assert [row["run"] for row in rows(capsys.readouterr().out)] == ["fast"]


def test_the_beginning_of_several_ids_is_an_error(store, capsys, monkeypatch) -> None:
    found = [SimpleNamespace(info=SimpleNamespace(run_id=f"abcd{n}")) for n in (1, 2)]
    reader = MlflowReader(SimpleNamespace())
    monkeypatch.setattr(reader, "_search", lambda experiments, text: found)
    with pytest.raises(RunnerError, match=r"abcd begins the ids of 2 runs \(abcd1, abcd2\)"):
        reader._by_prefix("abcd", ["1"])


def test_all_runs_are_read_page_by_page(store, capsys, monkeypatch) -> None:
    monkeypatch.setattr(query, "_PAGE", 3)
    assert report(store, "--format", "csv") == 0
    assert len(rows(capsys.readouterr().out)) == 8


def test_nothing_is_written_to_the_store(store, capsys) -> None:
    assert report(store, "--experiment", "not-there") == 1
    assert "not-there is no run" in capsys.readouterr().err
    assert MlflowClient(store[0]).get_experiment_by_name("not-there") is None


@pytest.mark.slow
def test_a_reader_that_goes_away_is_no_error(store) -> None:
    command = [sys.executable, "-m", "runner", "report", "--uri", store[0]]
    reader, writer = os.pipe()
    os.close(reader)
    ran = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, cwd=PROJECT, env=environment(), check=False)
    os.close(writer)
    assert (ran.returncode, ran.stderr) == (0, b"")


@pytest.mark.parametrize("metric", ["startup_s", "examples_per_s", "realtime_factor"])
def test_the_best_comes_first_by_the_metrics_own_direction(store, capsys, metric: str) -> None:
    assert report(store, "slow", "fast", "--metric", metric, "--format", "csv") == 0
    assert [row["run"] for row in rows(capsys.readouterr().out)] == ["fast", "slow"]


@pytest.mark.parametrize("metric", ["repeats", "nothing"])
def test_what_is_no_measure_of_better_is_refused(store, capsys, metric: str) -> None:
    assert report(store, "--metric", metric) == 1
    assert metric in capsys.readouterr().err


@pytest.mark.parametrize("form", ["table", "md"])
def test_the_terminals_forms_name_the_best_and_its_command(store, capsys, form: str) -> None:
    assert report(store, "slow", "fast", "--format", form) == 0
    text = capsys.readouterr().out
    assert "Best realtime_factor: fast" in text
    assert re.search(r"300\.0 \(29\d\.\d to 30\d\.\d\), 3\.00 \(2\.9\d to 3\.0\d\) × as good as the second", text)
    assert text.rstrip().endswith("python -m runner name=fast")


def test_the_page_is_self_contained(store, tmp_path: Path, capsys) -> None:
    page = tmp_path / "pages" / "report.html"
    assert report(store, "--format", "html", "--output", str(page)) == 0
    text = page.read_text()
    assert "<svg" in text
    assert "because data set is e, not d" in text
    assert 'src="http' not in text
    assert "href=" not in text
    assert str(page) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("run", "rule", "status", "words"),
    [
        ("slow", "realtime_factor=0.3:fast", 0, ""),
        ("slow", "realtime_factor=0.4:fast", 1, "0.333 × as good as 300.0 of fast"),
        ("slow", "startup_s=0.9:fast", 1, "which is below 0.9 (lower is better)"),
        ("fast", "startup_s=0.9:slow", 0, ""),
        ("fast", "repeats=0.9:slow", 1, "has no better direction"),
        (
            "fast",
            "realtime_fac=0.9:slow",
            1,
            "is not a metric: python -m runner.core.metrics lists all (similar: realtime_factor",
        ),
        ("elsewhere", "realtime_factor=0.4:fast", 1, "can't be compared, because data set is e, not d"),
        ("slow", "realtime_factor", 1, "give METRIC=RATIO:BASELINE"),
        ("slow", "realtime_factor=0.4:nothing", 1, "nothing is no run"),
        ("slow", "realtime_factor=0.4:slow", 1, "no run to compare"),
        ("slow", "realtime_factor=0.4:wrong", 1, "the baseline can't be compared with (failed parity)"),
    ],
)
def test_the_regression_check(store, capsys, run: str, rule: str, status: int, words: str) -> None:
    assert report(store, run, "--fail-below", rule) == status
    assert words in capsys.readouterr().err


FLOORS = """
machine: a made-up one
floors:
  - when: {frontend.hop_s: 0.96}
    realtime_factor: 200
    startup_s: 5
  - when: {weights.checksum: w, actual.precision: float32, frontend.hop_s: 0.48}
    realtime_factor: 500
"""


@pytest.mark.parametrize(
    ("run", "lines"),
    [
        ("fast", []),
        (
            "slow",
            ["realtime_factor 100.0 is below its floor of 200.0", "startup_s 10.0 is above its ceiling of 5.0"],
        ),
        ("hop", ["realtime_factor 400.0 is below its floor of 500.0"]),
        ("wrong", ["can't be compared: failed parity"]),
        ("loaded", ["can't be compared: other programs took 50% of the processors"]),
    ],
)
def test_the_check_against_floors(store, tmp_path: Path, capsys, run: str, lines: list[str]) -> None:
    (tmp_path / "floors.yaml").write_text(FLOORS)
    assert report(store, run, "--fail-below", str(tmp_path / "floors.yaml")) == int(bool(lines))
    assert capsys.readouterr().err.splitlines() == [f"FAILED: {run} {store[1][run][:8]}: {line}" for line in lines]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("floors: [{when: {frontend.hop_s: 7}, realtime_factor: 1}]", "has no floor for it"),
        ("floors: [{repeats: 1}]", "has no better direction"),
        ("floors: [{realtime_factor: fast}]", "can't be read"),
        ("realtime_factor: 1", "can't be read"),
        ("- [", "can't be read"),
        (None, "can't be read"),
    ],
)
def test_floors_that_say_nothing_of_a_run_fail(store, tmp_path: Path, capsys, text: str | None, words: str) -> None:
    if text is not None:
        (tmp_path / "floors.yaml").write_text(text)
    assert report(store, "fast", "--fail-below", str(tmp_path / "floors.yaml")) == 1
    assert words in capsys.readouterr().err


def test_what_is_not_there_is_said(store, capsys, tmp_path: Path) -> None:
    assert report(store, "nothing") == 1
    assert "nothing is no run, sweep, experiment or folder" in capsys.readouterr().err
    assert main(["--uri", f"sqlite:///{tmp_path}/none.db"]) == 1
    assert "there is no MLflow store" in capsys.readouterr().err
    assert not (tmp_path / "none.db").exists()
