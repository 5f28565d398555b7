"""FAD between the jobs of a sweep, from the statistics of each."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runner.contract.files import read_jobs, write_result, write_sweep
from runner.contract.result import RunResult
from runner.contract.sweep import SweepState
from runner.evaluation.sweep_fad import sweep_fads
from runner.reporting.quality import quality_findings, quality_of
from runner.statistics.files import to_npz
from runner.statistics.moments import EmbeddingStatistics
from tests.results import make_result, with_config, with_model
from tests.toy_model import ToyModel

ROWS = np.random.default_rng(0).standard_normal((300, 128))


def job(folder: Path, name: str, scale: float, precision: str, rows: int = 300, **values: Any) -> RunResult:
    """A job whose embeddings are scaled: its FAD from those as they are is (scale − 1)² (|μ|² + tr Σ)."""
    (folder / name).mkdir()
    statistics = EmbeddingStatistics.of(scale * ROWS[:rows])
    (folder / name / "stats.npz").write_bytes(to_npz(statistics, {}))
    values = {"precision": {"effective": precision}, "dataset": {}, "weights": {"checksum": "w"}, **values}
    return make_result({"run_name": name, **values})


def expected(scale: float) -> float:
    return (scale - 1) ** 2 * float(np.square(ROWS.mean(axis=0)).sum() + np.cov(ROWS, rowvar=False).trace())


def test_distances_are_from_the_job_of_the_finest_precision(tmp_path: Path) -> None:
    jobs = {
        "0": job(tmp_path, "0", 1.01, "bfloat16"),
        "1": job(tmp_path, "1", 1.001, "float16"),
        "2": with_config(job(tmp_path, "2", 1.1, "float32"), frontend={"resampler": "soxr"}),
        "3": job(tmp_path, "3", 1.0, "float32"),
        "4": job(tmp_path, "4", 1.0, "float32"),
    }
    fads = sweep_fads(tmp_path, jobs)
    assert {fad.reference for fad in fads.values()} == {"3"}
    distances = [fads[name].fad for name in jobs]
    assert distances == pytest.approx([expected(scale) for scale in (1.01, 1.001, 1.1, 1, 1)], rel=1e-9, abs=1e-12)
    assert distances[3:] == [0.0, 0.0]


@pytest.mark.slow
def test_jobs_of_other_data_or_weights_or_without_statistics_have_none(tmp_path: Path) -> None:
    jobs = {
        "0": job(tmp_path, "0", 1.0, "float32"),
        "1": job(tmp_path, "1", 1.1, "float16", dataset={"digest": "e" * 32}),
        "2": job(tmp_path, "2", 1.1, "float16", weights={"checksum": "x"}),
        "3": job(tmp_path, "3", 1.1, "float16", status="failed"),
        "4": job(tmp_path, "4", 1.1, "float16"),
        "5": job(tmp_path, "5", 1.1, "float16", rows=1),
        "6": job(tmp_path, "6", 1.1, "float16"),
    }
    (tmp_path / "4" / "stats.npz").unlink()
    assert [*sweep_fads(tmp_path, jobs)] == ["0", "6"]
    (tmp_path / "0" / "stats.npz").write_bytes(b"damaged")
    assert sweep_fads(tmp_path, jobs) == {}
    assert sweep_fads(tmp_path, {"6": jobs["6"]}) == {}


def test_each_model_has_a_reference_of_its_own(tmp_path: Path) -> None:
    jobs = {
        "0": job(tmp_path, "0", 1.0, "float32"),
        "1": with_model(job(tmp_path, "1", 1.01, "float16"), ToyModel()),
        "2": with_model(job(tmp_path, "2", 1.0, "float32"), ToyModel()),
        "3": job(tmp_path, "3", 1.1, "float16"),
    }
    fads = sweep_fads(tmp_path, jobs)
    assert {name: fad.reference for name, fad in fads.items()} == {"0": "0", "1": "2", "2": "2", "3": "0"}
    assert fads["1"].fad == pytest.approx(expected(1.01))
    findings = quality_findings([quality_of(replace(result, fad=fads[name])) for name, result in jobs.items()])
    assert findings == [
        f"3: moved FAD by {expected(1.1):.4f} from 0.",
        f"1: moved FAD by {expected(1.01):.4f} from 2.",
    ]


def test_partitions_of_one_data_set_are_not_compared(tmp_path: Path) -> None:
    jobs = {name: with_config(job(tmp_path, name, 1.0, "float32"), dataset={"partition": f"{name}/2"}) for name in "12"}
    assert sweep_fads(tmp_path, jobs) == {}


def test_sweep_json_keeps_the_distances_for_who_logs_it_later(tmp_path: Path) -> None:
    jobs = {"0": job(tmp_path, "0", 1.0, "float32"), "1": job(tmp_path, "1", 1.1, "float16")}
    for name, result in jobs.items():
        write_result(tmp_path / name / "result.json", result)
    fads = sweep_fads(tmp_path, jobs)
    write_sweep(tmp_path / "sweep.json", SweepState(fads=tuple(fads.values())))
    found = read_jobs(tmp_path, [tmp_path / name for name in (*jobs, "absent")])
    assert {name: result.fad for name, result in found.items()} == fads
    write_result(tmp_path / "0" / "result.json", replace(jobs["0"], fad=fads["0"]))
    assert '"fad"' not in (tmp_path / "0" / "result.json").read_text()
