"""The quality of embeddings in words: of one run, and what a coarser precision or another resampler cost of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import pstdev
from typing import TYPE_CHECKING

from runner.config.params import ACTUAL
from runner.config.schema import FrontendConfig
from runner.contract.sweep import SWEEP_FAD, SWEEP_FAD_REFERENCE, SweepFad
from runner.reporting.comparability import FIRST_PASS, REPEATS, model_label, params_of
from runner.reporting.naming import variant_name

if TYPE_CHECKING:
    from runner.contract.result import EvaluatedData, Evaluation, RunResult
    from runner.reporting.logged_run import Row

NAMES = {
    "probe_accuracy": "probe accuracy",
    "probe_map": "probe mAP",
    "knn_accuracy": "kNN accuracy",
    "knn_map": "kNN mAP",
    "retrieval_map_at_r": "mAP@R",
    "cluster_ami": "cluster AMI",
}
"""Metrics that stand for a run's quality, the first that it has before the others."""

_POINTS_RESOLUTION = 0.05
"""Percentage points that are not 0.0 when they are printed."""

_FAD_RESOLUTION = 0.00005
"""The least FAD that is not 0.0000 when it is printed."""

_FINEST = ("float32", "tf32", "float16", "bfloat16")
"""Precisions, the one with most digits first."""

_LINES = (
    ("probe", "probe", (("accuracy", "accuracy"), ("macro_f1", "macro F1"), ("map", "mAP"), ("auc", "AUC"))),
    ("few_shot", "few labels", (("accuracy", "accuracy"), ("macro_f1", "macro F1"))),
    ("knn", "kNN", (("accuracy", "accuracy"), ("macro_f1", "macro F1"), ("map", "mAP"), ("auc", "AUC"))),
    ("cluster", "clusters", (("ami", "AMI"), ("ari", "ARI"), ("v_measure", "v-measure"))),
    ("retrieval", "retrieval", (("map_at_r", "mAP@R"),)),
)


@dataclass(frozen=True)
class Quality:
    """The quality of a run.

    Attributes:
        name: The run's.
        metrics: All of the run's.
        digest: Of the labeled rows and their folds: runs with the same one may be compared.
        evaluation: With values by fold; None where only the metrics are known.
        precision: Of the network's products.
        frontend: The settings of the front end that are not the default ones.
        fad: The distance from a job of the same sweep; None where it is not known.
        model: That made the embeddings; see ``model_label``.
    """

    name: str
    metrics: Mapping[str, float]
    digest: str | None
    evaluation: Evaluation | None = None
    precision: str = "float32"
    frontend: Mapping[str, str] = field(default_factory=dict)
    fad: SweepFad | None = None
    model: str = ""

    @property
    def coarseness(self) -> tuple[int, bool]:
        """Sorts by precision, the finest first, then the default front end before others."""
        rank = _FINEST.index(self.precision) if self.precision in _FINEST else len(_FINEST)
        return rank, bool(self.frontend)

    @property
    def headline(self) -> str | None:
        """The metric that stands for the quality; None where it was not measured."""
        return next((metric for metric in NAMES if metric in self.metrics), None)

    def values(self, metric: str) -> Sequence[float | None]:
        """Return the metric's values by fold; empty where they are not known."""
        return self.evaluation.values.get(metric, ()) if self.evaluation else ()


def quality_of(result: RunResult, name: str | None = None) -> Quality:
    """Return the quality of a run, under the name of its setting unless there is another."""
    evaluation, precision = result.evaluation, result.startup.precision
    frontend = {key: str(value) for key, value in vars(result.info.config.frontend).items()}
    return Quality(
        name=name or variant_name(result),
        metrics=result.metrics,
        digest=evaluation.data_sha256 if evaluation else None,
        evaluation=evaluation,
        precision=precision.effective if precision else result.info.config.precision.name,
        frontend=_not_default(frontend),
        fad=result.fad,
        model=model_label(params_of(result.info.config, "model")),
    )


def quality_of_row(row: Row) -> Quality:
    """Return the quality of a run in MLflow, where it has no values by fold."""
    group, fad, reference = "frontend.", row.metrics.get(SWEEP_FAD), row.tags.get(SWEEP_FAD_REFERENCE)
    frontend = {key.removeprefix(group): value for key, value in row.params.items() if key.startswith(group)}
    return Quality(
        name=f"{row.name} {row.short_id}",
        metrics=row.metrics,
        digest=row.tags.get("evaluation.data_sha256"),
        precision=row.params.get(f"{ACTUAL}precision", ""),
        frontend=_not_default(frontend),
        fad=None if fad is None or reference is None else SweepFad(row.run_id, reference, fad),
        model=model_label(row.params),
    )


def _not_default(frontend: Mapping[str, str]) -> dict[str, str]:
    default = {key: str(value) for key, value in vars(FrontendConfig()).items()}
    return {key: value for key, value in frontend.items() if key in default and value != default[key]}


def describe_quality(evaluation: Evaluation, metrics: Mapping[str, float]) -> list[tuple[str, str]]:
    """Return the summary's lines on a run's quality, (label, text) each."""
    lines = [("quality", f"of {describe_data(evaluation.data)}")]
    for task, title, parts in _LINES:
        scores = []
        for part, name in parts:
            if (metric := f"{task}_{part}") in metrics:
                level = evaluation.chance.get(metric)
                scores.append(f"{name} {_value(metric, metrics)}" + (f" (chance {100 * level:.1f} %)" if level else ""))
        if scores:
            lines.append((title, ", ".join(scores)))
    return lines


def describe_data(data: EvaluatedData) -> str:
    """Describe the labeled rows: ``79 clips of 10 labels, 5 folds by 60 recordings``."""
    text = f"{data.rows:,} {data.unit}s of {len(data.labels):,} labels, {len(data.fold_rows)} "
    text += "given folds" if data.folds == "given" else f"folds by {data.groups:,} {data.grouped_by}s"
    if data.labeled_rows > data.rows + sum(data.labels_of_one_group.values()):
        text += f", a sample of {data.labeled_rows:,}"
    if names := [*data.labels_of_one_group]:
        text += f"; left out {len(names):,} labels of a single {data.grouped_by} ({', '.join(names[:3])})"
    if data.unlabeled_clips:
        text += f"; {data.unlabeled_clips:,} clips have no label"
    return text


def _value(metric: str, metrics: Mapping[str, float]) -> str:
    spread = metrics.get(f"{metric}_std")
    text = f"{100 * metrics[metric]:.1f} %"
    return text if spread is None else f"{text} ± {100 * spread:.1f}"


def change(quality: Quality, reference: Quality) -> str | None:
    """Return how far a run's quality is from the reference's: ``probe accuracy by -0.3 points (± 0.2 over folds)``;
    None where they are not of the same labeled rows, or were not measured."""
    metric = reference.headline
    if metric is None or metric not in quality.metrics or quality.digest is None or quality.digest != reference.digest:
        return None
    pairs = zip(quality.values(metric), reference.values(metric), strict=False)  # folds are the same, or not known
    differences = [100 * (own - other) for own, other in pairs if own is not None and other is not None]
    points = 100 * (quality.metrics[metric] - reference.metrics[metric])
    moved = "0.0" if abs(points) < _POINTS_RESOLUTION else f"{points:+.1f}"
    spread = pstdev(differences) if differences else 0.0
    return f"{NAMES[metric]} by {moved} points" + (
        f" (± {spread:.1f} over folds)" if spread >= _POINTS_RESOLUTION else ""
    )


def fad_change(quality: Quality, reference: Quality) -> str | None:
    """Return the FAD of a run from the reference, ``FAD by 0.0003``; None where it is not known."""
    own, other = quality.fad, reference.fad
    if own is None or other is None or own.reference != other.job:
        return None
    return f"FAD by {own.fad:.4f}" if own.fad >= _FAD_RESOLUTION else "FAD by less than 0.0001"


def ranked_by_precision(qualities: Sequence[Quality]) -> list[Quality]:
    """Return the runs to compare, the reference first: those whose quality was measured, or all if that is none.

    The reference is the first run of the finest precision, one with the default front end before others.  Runs of one
    name (the rounds of a sweep) count once.
    """
    settings: dict[str, Quality] = {}
    for quality in sorted(qualities, key=lambda quality: quality.headline is None):
        settings.setdefault(quality.name, quality)
    measured = [quality for quality in settings.values() if quality.headline]
    return sorted(measured or settings.values(), key=lambda quality: quality.coarseness)


def quality_findings(qualities: Sequence[Quality]) -> list[str]:
    """Return a comparison of runs in sentences: the reference's quality, and how far each other setting moved it.

    Without labels that is FAD alone, of the settings with another precision or front end, for each model by itself.
    """
    if not qualities:
        return []
    models = dict.fromkeys(quality.model for quality in qualities)
    if len(models) > 1 and not any(quality.headline for quality in qualities):
        by_model = ([quality for quality in qualities if quality.model == model] for model in models)
        return [line for own in by_model for line in quality_findings(own)]
    reference, *others = ranked_by_precision(qualities)
    speed = REPEATS if all(REPEATS in quality.metrics for quality in (reference, *others)) else FIRST_PASS
    lines = [_describe_reference(reference)] if reference.headline else []
    for quality in others:
        fast = f"{quality.metrics[speed]:,.0f} × realtime, " if speed in quality.metrics else ""
        moved, fad = change(quality, reference), fad_change(quality, reference)
        if moved:
            lines.append(f"{quality.name}: {fast}moved {f'{fad} and ' if fad else ''}{moved}.")
        elif reference.headline:
            lines.append(f"{quality.name}: its quality is of other clips or labels, and not compared.")
        elif fad and (quality.precision, quality.frontend) != (reference.precision, reference.frontend):
            lines.append(f"{quality.name}: {fast}moved {fad} from {reference.name}.")
    return lines


def _describe_reference(reference: Quality) -> str:
    metric = str(reference.headline)
    text = f"Quality of {reference.name}: {NAMES[metric]} {_value(metric, reference.metrics)}"
    if evaluation := reference.evaluation:
        level = evaluation.chance.get(metric)
        text += f" (chance {100 * level:.1f} %)" if level else ""
        text += f", on {describe_data(evaluation.data)}"
    return f"{text}."
