"""Quality beside speed, in words: made-up results."""

from __future__ import annotations

import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from runner.cli.report import make_report
from runner.contract.result import EvaluatedData, Evaluation, RunResult
from runner.contract.sweep import SweepFad
from runner.reporting.logged_run import Row
from runner.reporting.quality import Quality, change, describe_quality, quality_findings, quality_of
from runner.reporting.report_forms import as_html, as_table
from runner.reporting.summary import summarize
from runner.reporting.verdict import verdict
from runner.tracking.query import MlflowReader
from tests.reporting.test_advice import result
from tests.results import make_result, with_config, with_metrics

DATA: dict[str, Any] = {
    "unit": "clip",
    "rows": 79,
    "labeled_rows": 79,
    "unlabeled_clips": 0,
    "groups": 60,
    "grouped_by": "group",
    "labels": {"dog": 40, "rain": 39},
    "labels_of_one_group": {},
    "multilabel": False,
    "folds": "drawn",
    "fold_rows": (16, 16, 16, 16, 15),
}


def evaluated(values: list[float], digest: str = "d", **given: Any) -> RunResult:
    run = with_metrics(result(**given), probe_accuracy=sum(values) / len(values), probe_accuracy_std=0.1)
    chance, scores = {"probe_accuracy": 0.1}, {"probe_accuracy": tuple(values)}
    return replace(run, evaluation=Evaluation(("probe",), EvaluatedData(**DATA), digest, scores, chance))


def findings(*results: RunResult) -> list[str]:
    return quality_findings([quality_of(each) for each in results])


def test_a_sweep_says_what_a_coarser_precision_cost_beside_its_speed() -> None:
    half = evaluated([0.8, 0.6], precision="float16", speed=176_400)
    coarse = evaluated([0.78, 0.55], precision="bfloat16", speed=120_000)
    lines = findings(half, evaluated([0.8, 0.6], speed=90_000), coarse)
    assert lines == [
        "Quality of cpu-balanced-float32: probe accuracy 70.0 % ± 10.0 (chance 10.0 %), on 79 clips of 2 labels, "
        "5 folds by 60 groups.",
        "cpu-balanced-float16: 176,400 × realtime, moved probe accuracy by 0.0 points.",
        "cpu-balanced-bfloat16: 120,000 × realtime, moved probe accuracy by -3.5 points (± 1.5 over folds).",
    ]


def far(run: RunResult, job: str, fad: float, reference: str = "0") -> RunResult:
    return replace(run, fad=SweepFad(job, reference, fad))


def test_fad_is_beside_probe_accuracy_and_speed() -> None:
    usual = far(evaluated([0.8, 0.6]), "0", 0.0)
    half = far(evaluated([0.8, 0.6], precision="float16", speed=176_400), "1", 0.0003)
    other_memory = far(evaluated([0.8, 0.6], memory="greedy"), "2", 1e-12)
    assert findings(usual, half, other_memory)[1:] == [
        "cpu-greedy-float32: 100 × realtime, moved FAD by less than 0.0001 and probe accuracy by 0.0 points.",
        "cpu-balanced-float16: 176,400 × realtime, moved FAD by 0.0003 and probe accuracy by 0.0 points.",
    ]
    assert "moved FAD by 0.0003 and probe accuracy by 0.0 points." in verdict([usual, half])
    of_another_sweep = far(half, "1", 0.0003, reference="9")
    assert findings(usual, of_another_sweep)[1].endswith("× realtime, moved probe accuracy by 0.0 points.")


@pytest.mark.slow
def test_without_labels_fad_is_said_of_settings_that_change_numbers() -> None:
    coarse = far(result(precision="bfloat16", speed=339), "0", 0.084, reference="2")
    half = far(result(precision="float16", speed=339), "1", 0.0, reference="2")
    usual = far(result(), "2", 0.0, reference="2")
    other_memory = far(result(memory="greedy"), "3", 1e-12, reference="2")
    soxr = with_config(far(result(run_name="soxr"), "4", 0.25, reference="2"), frontend={"resampler": "soxr"})
    assert findings(coarse, half, usual, other_memory, soxr, result(precision="tf32")) == [
        "soxr: 100 × realtime, moved FAD by 0.2500 from cpu-balanced-float32.",
        "cpu-balanced-float16: 339 × realtime, moved FAD by less than 0.0001 from cpu-balanced-float32.",
        "cpu-balanced-bfloat16: 339 × realtime, moved FAD by 0.0840 from cpu-balanced-float32.",
    ]


def test_another_resampler_is_compared_with_the_default_one_though_it_is_another_workload() -> None:
    usual = evaluated([0.8, 0.6])
    soxr = with_config(evaluated([0.8, 0.7], run_name="soxr"), frontend={"resampler": "soxr"})
    assert findings(soxr, usual)[1:] == [
        "soxr: 100 × realtime, moved probe accuracy by +5.0 points (± 5.0 over folds)."
    ]
    assert "soxr: 100 × realtime, moved probe accuracy by +5.0 points" in verdict([usual, soxr])


def test_quality_on_other_labels_is_not_compared() -> None:
    other = evaluated([0.9, 0.9], digest="other", memory="greedy")
    (_, line) = findings(evaluated([0.8, 0.6]), other)
    assert line == "cpu-greedy-float32: its quality is of other clips or labels, and not compared."


def test_rounds_of_a_sweep_are_one_run_and_what_was_not_evaluated_is_not_mentioned() -> None:
    rounds = [evaluated([0.8, 0.6], swept={"profile.round": str(number)}) for number in (1, 2)]
    assert len(findings(*rounds, result("gpu"))) == 1
    assert findings(result(), result("gpu")) == []


def test_without_folds_the_difference_is_of_the_means() -> None:
    one, other = (Quality(name, {"knn_accuracy": value}, "d") for name, value in (("a", 0.5), ("b", 0.512)))
    assert change(other, one) == "kNN accuracy by +1.2 points"
    assert change(Quality("c", {}, "d"), one) is None
    assert change(Quality("c", {"knn_accuracy": 0.5}, None), Quality("d", {"knn_accuracy": 0.5}, None)) is None


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"labeled_rows": 500}, "a sample of 500"),
        ({"folds": "given"}, "5 given folds"),
        ({"unlabeled_clips": 3}, "3 clips have no label"),
        ({"labels_of_one_group": {"owl": 2}, "labeled_rows": 81}, "left out 1 labels of a single group (owl)"),
    ],
)
def test_the_terminal_says_what_the_figures_are_of(data: dict[str, Any], words: str) -> None:
    lines = describe_quality(Evaluation((), EvaluatedData(**DATA | data), "d", {}, {}), {})
    assert words in lines[0][1]
    assert ("a sample" in lines[0][1]) == (words == "a sample of 500")


def test_the_summary_of_a_run_has_its_scores_with_spread_and_chance() -> None:
    run = replace(make_result({}), evaluation=evaluated([0.8, 0.6]).evaluation)
    text = summarize(with_metrics(run, probe_accuracy=0.7, probe_accuracy_std=0.1), "/run", None)
    assert "    quality  of 79 clips of 2 labels, 5 folds by 60 groups" in text
    assert "      probe  accuracy 70.0 % ± 10.0 (chance 10.0 %)" in text


def test_a_report_has_quality_beside_speed_and_compares_it() -> None:
    tags = {"evaluation.data_sha256": "d", "weights.checksum": "w", "sweep_fad.reference": f"b{'0' * 31}"}
    rows = [
        Row(f"{name}{'0' * 31}", precision, "FINISHED", 0, {"actual.precision": precision}, metrics, tags, "digest")
        for name, precision, metrics in (
            ("a", "float16", {"realtime_factor": 300.0, "probe_accuracy": 0.78, "knn_accuracy": 0.5, "sweep_fad": 2.5}),
            ("b", "float32", {"realtime_factor": 100.0, "probe_accuracy": 0.80, "knn_accuracy": 0.5, "sweep_fad": 0.0}),
        )
    ]
    report = make_report(rows, cast(MlflowReader, SimpleNamespace(blocks=lambda row, metric: ())), None)
    assert report.metrics == ("realtime_factor", "probe_accuracy")
    assert re.search(r"float16 a0000000 .* 300\.0 +0\.780 ", as_table(report))
    line = "float16 a0000000: 300 × realtime, moved FAD by 2.5000 and probe accuracy by -2.0 points."
    assert f"Quality of float32 b0000000: probe accuracy 80.0 %.\n{line}" in as_table(report)
    assert line in as_html(report)
