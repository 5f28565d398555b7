"""The quality of a run's embeddings: how well they classify, cluster and retrieve what its labels say.

A run with ``evaluate`` and ``vggish-runner evaluate`` both come here; ``evaluation.json`` is the result.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from runner.config.groups.evaluate import TASKS
from runner.contract.evaluation import Confusion, EvaluationReport
from runner.contract.files import write_evaluation_report
from runner.contract.result import EvaluatedData, Evaluation
from runner.core.layout import RunLayout
from runner.core.paths import as_path
from runner.evaluation.annotations import read_annotations
from runner.evaluation.data import digest_of, prepare
from runner.evaluation.labels import FileLabels, RunLabels
from runner.evaluation.sample import draw_sample, read_clips
from runner.evaluation.scores import chance_levels, per_label
from runner.output.run_blocks import read_metadata
from runner.output.run_model import RunModel
from runner.reporting.quality_figures import draw_quality

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from runner.config.groups.evaluate import EvaluateConfig
    from runner.contract.result import RunResult
    from runner.evaluation.data import LabeledData
    from runner.evaluation.labels import Labels
    from runner.evaluation.sample import Sample
    from runner.evaluation.scores import Scores

_SMALL = 4096
"""Rows of which products are too small for several threads: on a busy machine they wait for each other."""


def evaluate(location: str, config: EvaluateConfig) -> EvaluationReport:
    """Carry out the tasks on a run's embeddings.

    Args:
        location: the run's folder or URL.
        config: what to do; checked.

    Raises:
        EvaluationError: there are no embeddings or labels, or too few.
    """
    started = time.monotonic()
    labels: Labels = RunLabels(config.group_pattern)
    if config.labels is not None:
        labels = FileLabels(read_annotations(Path(as_path(config.labels)).expanduser().resolve(), config), config)
    unit = ("window" if labels.are_timed else "clip") if config.unit == "auto" else config.unit
    metadata = read_metadata(location)
    sample = draw_sample(
        read_clips(location, config.model_output),
        labels,
        unit=unit,
        window_s=RunModel.from_metadata(metadata).example_s * float(metadata.get("frontend.speed", 1)),
        max_rows=config.max_rows,
        seed=config.seed,
    )
    is_grouped = bool(config.group_column or config.group_pattern)
    from threadpoolctl import threadpool_limits  # scikit-learn's own

    data = prepare(sample, config.folds, config.seed)
    with threadpool_limits(1 if len(data.targets) < _SMALL else None):
        values, chance, ratings = _carry_out(data, config)
    quality = Evaluation(
        tasks=tuple(task for task in TASKS if task in config.tasks),
        data=_describe(sample, data, "group" if is_grouped else "recording"),
        data_sha256=digest_of(sample, {"folds": config.folds, "seed": config.seed, "unit": unit}),
        values={
            name: tuple(value if math.isfinite(value) else None for value in each) for name, each in values.items()
        },
        chance=chance,
    )
    return EvaluationReport(
        quality=quality,
        config=config,
        metrics=_summarize(values) | {"evaluate_s": time.monotonic() - started},
        per_label=None if ratings is None else per_label(data, ratings),
        confusion=None if ratings is None or data.is_multilabel else _confusion(data, ratings),
    )


def write_evaluation(report: EvaluationReport, run_dir: Path) -> list[Path]:
    """Write evaluation.json and its picture into a run's folder, and return their paths."""
    path = RunLayout(run_dir).evaluation
    write_evaluation_report(path, report)
    return [path, *draw_quality(report, run_dir)]


def with_evaluation(result: RunResult, report: EvaluationReport) -> RunResult:
    """Return a run's result with its quality in place of an earlier one."""
    earlier = result.evaluation.values if result.evaluation else {}
    names = {name for metric in earlier for name in (metric, f"{metric}_std")}
    others = {name: value for name, value in result.metrics.items() if name not in names}
    return replace(result, metrics={**others, **report.metrics}, evaluation=report.quality)


def _carry_out(
    data: LabeledData, config: EvaluateConfig
) -> tuple[Scores, dict[str, float], NDArray[np.float64] | None]:
    """Return the tasks' values, the chance levels of their metrics, and the ratings of the probe, or else of kNN."""
    values: Scores = {}
    chance: dict[str, float] = {}
    levels, ratings = chance_levels(data), None
    if "probe" in config.tasks:
        from runner.evaluation.probe import few_shot, probe

        scores, ratings = probe(data)
        values |= scores
        chance |= {f"probe_{metric}": level for metric, level in levels.items()}
        if config.few_shot_samples and not data.is_multilabel:
            values |= few_shot(data, config.folds, config.few_shot_samples, config.experiments, config.seed)
            chance |= {f"few_shot_{metric}": level for metric, level in levels.items()}
    if "knn" in config.tasks:
        from runner.evaluation.knn import knn

        scores, of_knn = knn(data, config.neighbors)
        values |= scores
        ratings = of_knn if ratings is None else ratings
        chance |= {f"knn_{metric}": level for metric, level in levels.items()}
    single = data.only(data.targets.sum(axis=1) == 1) if data.is_multilabel else data
    if len(single.names) > 1:
        if "cluster" in config.tasks:
            from runner.evaluation.clustering import cluster

            values |= cluster(single, config.experiments, config.seed)
            chance |= {"cluster_ami": 0.0, "cluster_ari": 0.0}
        if "retrieval" in config.tasks:
            from runner.evaluation.retrieval import chance_map_at_r, retrieve

            values |= retrieve(single)
            chance["retrieval_map_at_r"] = chance_map_at_r(single)
    return values, chance, ratings


def _summarize(values: Scores) -> dict[str, float]:
    """The mean and standard deviation of each metric over its folds or experiments; of NaN folds there is none."""
    metrics = {}
    for name, all_values in values.items():
        if known := [value for value in all_values if math.isfinite(value)]:
            metrics[name] = float(np.mean(known))
            metrics[f"{name}_std"] = float(np.std(known))
    return metrics


def _describe(sample: Sample, data: LabeledData, grouped_by: str) -> EvaluatedData:
    return EvaluatedData(
        unit=sample.unit,
        rows=len(data.targets),
        labeled_rows=sample.seen,
        unlabeled_clips=sample.unlabeled,
        groups=len(data.folds),
        grouped_by=grouped_by,
        labels={name: int(count) for name, count in zip(data.names, data.targets.sum(axis=0), strict=True)},
        labels_of_one_group=data.left_out,
        multilabel=data.is_multilabel,
        folds="given" if data.has_labeled_folds else "drawn",
        fold_rows=tuple(np.bincount(data.row_folds).tolist()),
    )


def _confusion(data: LabeledData, ratings: NDArray[np.float64]) -> Confusion:
    from sklearn.metrics import confusion_matrix

    matrix = confusion_matrix(data.classes, ratings.argmax(axis=1), labels=range(len(data.names)))
    return Confusion(tuple(data.names), tuple(map(tuple, matrix.tolist())))
