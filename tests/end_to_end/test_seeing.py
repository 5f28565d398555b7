"""Sweeps that find the best setting, and what is said and kept of them."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from runner.cli.report import main as report
from tests.commands import Done, run


@pytest.fixture(scope="module")
def tuned(
    few_clips: Path, tmp_path_factory: pytest.TempPathFactory, new_outputs: Callable[[Path], Path]
) -> tuple[Done, Path]:
    """Optuna's search for the best settings, two trials long: what it printed, and its outputs."""
    outputs = new_outputs(tmp_path_factory.mktemp("tune") / "outputs")
    done = run(
        *("experiment=tune", f"dataset.root={few_clips}", "weights=random", "hydra.sweeper.n_trials=2"),
        *("profile.repeat_s=0.1", "device=cpu"),
        f"paths.outputs={outputs}",
    )
    assert done.status == 0, done.err
    return done, outputs


def said(done: Done) -> str:
    """The verdict: what comes last, after an empty line."""
    return done.out.rstrip().rpartition("\n\n")[2]


def test_optuna_tries_settings_and_the_best_is_said_with_its_command(tuned: tuple[Done, Path]) -> None:
    done, outputs = tuned
    assert "2 jobs, all finished" in done.out
    text = said(done)
    assert "× realtime" in text
    assert "passed the parity gate" in text
    assert "batch_size=" in text  # what was sought tells the jobs apart
    words = shlex.split(text.partition("Use it: ")[2])
    assert words[:3] == ["python", "-m", "runner"]
    assert any(word.startswith("memory.batch_size=") for word in words)
    assert not any(word.startswith(("experiment=", "hydra.")) for word in words)
    best = next(outputs.glob("sweeps/*/*/optimization_results.yaml")).read_text()
    assert "best_value" in best


def are_ranked(done: Done) -> bool:
    """Whether both jobs are: one that other programs disturbed is left out beside one that they did not."""
    return "Not ranked" not in said(done)


def test_the_parent_has_the_verdict_and_the_pictures(tuned: tuple[Done, Path]) -> None:
    done, outputs = tuned
    client = MlflowClient(f"sqlite:///{outputs}/mlflow.db")
    experiment = client.get_experiment_by_name("vggish-runner")
    parent, *jobs = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"])
    assert parent.data.tags["verdict"] == said(done)
    assert len({job.info.run_name for job in jobs}) == 2
    assert parent.data.metrics["best_realtime_factor"] > 1
    kept = {artifact.path for artifact in client.list_artifacts(parent.info.run_id, "plots")}
    assert "plots/throughput.png" in kept
    if are_ranked(done):
        assert kept == {f"plots/{name}.png" for name in ("throughput", "speedup", "pareto", "parity")}
    for job in jobs:
        own = {artifact.path for artifact in client.list_artifacts(job.info.run_id, "plots")}
        assert {"plots/throughput.png", "plots/embeddings.html"} <= own
        assert job.data.metrics["repeats"] >= 5
        assert job.data.tags["advice"]
    assert experiment.tags["mlflow.sharedViewState.vggish"]


def test_the_report_takes_the_sweeps_folder_and_has_its_pictures(
    tuned: tuple[Done, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done, outputs = tuned
    folder = next(outputs.glob("sweeps/*/*"))
    page = tmp_path / "report.html"
    uri = f"sqlite:///{outputs}/mlflow.db"
    assert report([str(folder), "--uri", uri, "--format", "html", "--output", str(page)]) == 0
    told, images = capsys.readouterr().out, page.read_text().count("data:image/png;base64,")
    assert ("2 runs ranked, 0 not" in told) if are_ranked(done) else ("1 runs ranked, 1 not" in told)
    assert images == 4 or (images and not are_ranked(done))
