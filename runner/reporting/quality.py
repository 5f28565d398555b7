"""The quality of embeddings in words: of one run, and what a coarser precision or another resampler cost of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, pstdev
from typing import TYPE_CHECKING, Any

from runner.config.schema import FrontendConfig
from runner.reporting.comparability import FIRST_PASS, REPEATS
from runner.reporting.naming import variant_name

if TYPE_CHECKING:
    from runner.reporting.advice import Result

NAMES = {
    "probe_accuracy": "probe accuracy",
    "probe_map": "probe mAP",
    "knn_accuracy": "kNN accuracy",
    "knn_map": "kNN mAP",
    "retrieval_map_at_r": "mAP@R",
    "cluster_ami": "cluster AMI",
}
"""Metrics that stand for a run's quality, the first that it has before the others."""

_LINES = (
    ("probe", "probe", (("accuracy", "accuracy"), ("macro_f1", "macro F1"), ("map", "mAP"), ("auc", "AUC"))),
    ("few_shot", "few labels", (("accuracy", "accuracy"), ("macro_f1", "macro F1"))),
    ("knn", "kNN", (("accuracy", "accuracy"), ("macro_f1", "macro F1"), ("map", "mAP"), ("auc", "AUC"))),
    ("cluster", "clusters", (("ami", "AMI"), ("ari", "ARI"), ("v_measure", "v-measure"))),
    ("retrieval", "retrieval", (("map_at_r", "mAP@R"),)),
)


@dataclass(frozen=True)
class Quality:
    """What is known of a run's quality.

    Args:
        name: the run's.
        metrics: all of them.
        digest: of the labeled data and its folds: figures of the same digest may be compared.
        values: of each metric, a value a fold; empty where they are not known.
    """

    name: str
    metrics: Mapping[str, float]
    digest: str | None
    values: Mapping[str, Sequence[float]] = field(default_factory=dict)

    @property
    def headline(self) -> str | None:
        """The metric that stands for it; None where it was not measured."""
        return next((metric for metric in NAMES if metric in self.metrics), None)


def quality_of_result(result: Result) -> Quality:
    """Return the quality of a run from its result.json."""
    evaluation = result.get("evaluation") or {}
    values = evaluation.get("values") or {}
    return Quality(variant_name(result), result.get("metrics") or {}, evaluation.get("data_sha256"), values)


def describe_quality(evaluation: Mapping[str, Any], metrics: Mapping[str, float]) -> list[tuple[str, str]]:
    """Return what the terminal says of a run's quality: (name, text) of each line.

    Args:
        evaluation: as in result.json, or as evaluation.json.
        metrics: the run's.
    """
    if failure := evaluation.get("failure"):
        return [("quality", f"not measured: {failure}")]
    chance = evaluation["chance"]
    lines = [("quality", describe_data(evaluation["data"]))]
    for task, title, parts in _LINES:
        told = []
        for part, name in parts:
            if (metric := f"{task}_{part}") in metrics:
                told.append(f"{name} {_value(metric, metrics)}")
                if chance.get(metric):
                    told[-1] += f" (chance {100 * chance[metric]:.1f} %)"
        if told:
            lines.append((title, ", ".join(told)))
    return lines


def describe_data(data: Mapping[str, Any]) -> str:
    """Return what the figures are of: ``79 clips of 10 labels, 5 folds by recording``."""
    text = f"{data['rows']:,} {data['unit']}s of {len(data['labels']):,} labels, {len(data['fold_rows'])} "
    text += "given folds" if data["folds"] == "given" else f"folds by {data['groups']:,} {data['grouped_by']}s"
    if data["labeled_rows"] > data["rows"] + sum(data["labels_of_one_group"].values()):
        text += f", a sample of {data['labeled_rows']:,}"
    if left_out := data["labels_of_one_group"]:
        text += (
            f"; left out {len(left_out):,} labels of a single {data['grouped_by']} ({', '.join(list(left_out)[:3])})"
        )
    if data["unlabeled_clips"]:
        text += f"; {data['unlabeled_clips']:,} clips have no label"
    return text


def _value(metric: str, metrics: Mapping[str, float]) -> str:
    spread = metrics.get(f"{metric}_std")
    text = f"{100 * metrics[metric]:.1f} %"
    return text if spread is None else f"{text} ± {100 * spread:.1f}"


def change(quality: Quality, reference: Quality) -> str | None:
    """Return how far a run's quality is from the reference's: ``moved probe accuracy by -0.3 points (± 0.2 over
    folds)``; None where they are not of the same labeled data, or were not measured."""
    metric = reference.headline
    if metric is None or metric not in quality.metrics or quality.digest is None or quality.digest != reference.digest:
        return None
    own, others = quality.values.get(metric, ()), reference.values.get(metric, ())
    if own and len(own) == len(others):  # the same folds: their differences vary less than the folds do
        differences = [100 * (one - other) for one, other in zip(own, others, strict=True)]
        points, spread = fmean(differences), pstdev(differences)
    else:
        points, spread = 100 * (quality.metrics[metric] - reference.metrics[metric]), 0.0
    told = "0.0" if abs(points) < 0.05 else f"{points:+.1f}"
    return f"moved {NAMES[metric]} by {told} points" + (f" (± {spread:.1f} over folds)" if spread >= 0.05 else "")


def quality_findings(results: Sequence[Result]) -> list[str]:
    """Return what a sweep showed of quality beside speed: the reference's, and how far each variant moved it.

    The reference is the first run in float32 with the default front end, else the first in float32, else the first.
    """
    measured: dict[str, Result] = {}
    for result in results:
        if result["status"] == "finished" and (quality := quality_of_result(result)).headline:
            measured.setdefault(quality.name, result)
    if not measured:
        return []
    ordered = sorted(measured.values(), key=_distance)
    reference = quality_of_result(ordered[0])
    metric = str(reference.headline)
    evaluation = ordered[0]["evaluation"]
    level = evaluation["chance"].get(metric)
    told = f" (chance {100 * level:.1f} %)" if level else ""
    lines = [
        f"Quality of {reference.name}: {NAMES[metric]} {_value(metric, reference.metrics)}{told}, "
        f"on {describe_data(evaluation['data'])}."
    ]
    speed = REPEATS if all(REPEATS in result["metrics"] for result in ordered) else FIRST_PASS
    for result in ordered[1:]:
        quality = quality_of_result(result)
        moved = change(quality, reference)
        told = f"{result['metrics'][speed]:,.0f} × realtime, " if speed in result["metrics"] else ""
        if moved is None:
            lines.append(f"{quality.name}: its quality is of other clips or labels, and not compared.")
        else:
            lines.append(f"{quality.name}: {told}{moved}.")
    return lines


def _distance(result: Result) -> int:
    """How far a run's numbers are from those of float32 with the default front end, coarsely."""
    frontend, usual = result["config"].get("frontend") or {}, FrontendConfig()
    precision = (result.get("precision") or {}).get("effective")
    is_usual = all(frontend.get(key, value) == value for key, value in vars(usual).items())
    return 2 * (precision != "float32") + (not is_usual)
