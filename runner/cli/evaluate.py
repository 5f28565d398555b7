"""``vggish-runner evaluate``: how well the embeddings of existing runs classify, cluster and retrieve."""

from __future__ import annotations

import argparse
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NamedTuple

from runner.cli.errors import print_error, reports_errors
from runner.config.groups.evaluate import TASKS, UNITS, EvaluateConfig, check_evaluation
from runner.contract.sweep import SWEEP_FAD, SWEEP_FAD_REFERENCE
from runner.core.errors import EvaluationError, RunnerError
from runner.core.layout import RunLayout
from runner.core.paths import as_path, is_url
from runner.core.printable import printable

if TYPE_CHECKING:
    from runner.contract.result import RunResult
    from runner.contract.sweep import SweepFad
    from runner.contract.tracking import TrackingState
    from runner.reporting.quality import Quality

_PATIENCE_S = 120.0
"""How long an object of a store may take."""


class _Evaluated(NamedTuple):
    """A run whose quality was measured; ``result`` is None of a run at a URL, and of a merged folder."""

    location: str
    quality: Quality
    result: RunResult | None


@reports_errors
def main(arguments: Sequence[str] | None) -> int:
    """Evaluate runs, and compare several; exit status 1 if one could not be evaluated."""
    parser = _parser()
    options = parser.parse_args(arguments)
    failed = False
    evaluated: list[_Evaluated] = []
    config = _config(options)
    check_evaluation(config)
    for argument in options.runs:
        own: list[_Evaluated] = []
        for location in _runs(argument):
            try:
                own.append(_evaluate(location, config, logs=not options.no_log))
            except (RunnerError, OSError) as error:
                failed = True
                print_error(f"{location}: {error}")
        if not options.no_log:
            _log_fads(_fads(own))
        evaluated += own
    if len(evaluated) > 1:
        from runner.reporting.quality import quality_findings

        print(printable("\n".join(["", *quality_findings(_comparable(evaluated))])))
    return int(failed)


def _parser() -> argparse.ArgumentParser:
    default = EvaluateConfig()
    parser = argparse.ArgumentParser(
        prog="vggish-runner evaluate",
        description="Measure how well the embeddings of existing runs classify, cluster and retrieve what labels say.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's or a sweep's folder, or a run's URL")
    parser.add_argument(
        "--tasks", metavar="NAME,NAME", default=",".join(TASKS), help="which ones (default: %(default)s)"
    )
    parser.add_argument("--labels", metavar="PATH", help="label file, or folder of them: CSV, TSV, Parquet, Raven "
                        "selection tables, Audacity label tracks (default: the run's own labels)")  # fmt: skip
    parser.add_argument("--model-output", metavar="NAME", help="output of the model (default: the first)")
    parser.add_argument("--label-column", metavar="NAME", help="its column of labels (default: the usual names)")
    parser.add_argument("--fold-column", metavar="NAME", help="its column of given folds (default: folds are drawn)")
    parser.add_argument("--group-column", metavar="NAME", help="its column of what may not be on both sides of a fold")
    parser.add_argument("--group-pattern", metavar="REGEX", help="or a regular expression over the clip's name whose "
                        "first group says that (default: the recording)")  # fmt: skip
    parser.add_argument("--min-overlap-s", type=float, metavar="SECONDS", default=default.min_overlap_s,
                        help="of an annotation and a window that it labels (default: %(default)g)")  # fmt: skip
    parser.add_argument("--unit", choices=UNITS, default=default.unit,
                        help="a row is a clip's mean or a window (default: window if labels have times)")  # fmt: skip
    for name, meaning in (
        ("folds", "where none are given"),
        ("neighbors", "of kNN"),
        ("few-shot-samples", "labeled rows that the few-shot probe learns from; 0: none"),
        ("experiments", "draws of the few-shot probe and of k-means"),
        ("max-rows", "clips or windows; of more a sample is taken"),
        ("seed", "of all that is drawn"),
    ):
        value = getattr(default, name.replace("-", "_"))
        parser.add_argument(f"--{name}", type=int, metavar="N", default=value, help=f"{meaning} (default: %(default)s)")
    parser.add_argument("--no-log", action="store_true", help="leave the runs in MLflow as they are")
    return parser


def _config(options: argparse.Namespace) -> EvaluateConfig:
    values = {key.name: getattr(options, key.name) for key in fields(EvaluateConfig)}
    return EvaluateConfig(**{**values, "tasks": [task.strip() for task in options.tasks.split(",")]})


def _runs(argument: str) -> Iterator[str]:
    """The locations of the runs that an argument names: itself, or a sweep's finished jobs."""
    if is_url(argument):
        yield argument.rstrip("/")
        return
    folder = Path(as_path(argument)).expanduser().resolve()
    if not folder.is_dir():
        raise EvaluationError(f"{folder} is not there: give the folder of a run or a sweep, or a run's URL")
    from runner.contract.files import read_sweep

    sweep = RunLayout(folder).sweep
    for job in read_sweep(sweep).jobs if sweep.exists() else ["."]:
        if job == "." or RunLayout(folder / job).result.exists():
            yield str(folder / job)


def _evaluate(location: str, config: EvaluateConfig, *, logs: bool) -> _Evaluated:
    """Evaluate a run, put its quality into its files and its MLflow run, and print it."""
    if not is_url(location):
        return _evaluate_in(Path(location), location, config, logs=logs)
    from runner.storage.lease import Lease
    from runner.storage.object_store import ObjectStore

    store = ObjectStore(location, _PATIENCE_S, "RUN")
    with TemporaryDirectory(prefix="vggish-evaluate-") as scratch:
        folder = Path(scratch)
        for name in (RunLayout.result, RunLayout.tracking):
            if (content := store.read(name)) is not None:
                (folder / name).write_bytes(content)
        lease = Lease(store)
        lease.acquire()
        try:
            lease.confirm()
            evaluated = _evaluate_in(folder, location, config, logs=logs)
            for path in folder.rglob("*"):
                if path.is_file() and path.name != RunLayout.tracking:
                    store.put(path, path.relative_to(folder).as_posix())
        finally:
            lease.release()
    return evaluated._replace(result=None)


def _evaluate_in(folder: Path, location: str, config: EvaluateConfig, *, logs: bool) -> _Evaluated:
    from runner.contract.files import read_result, read_tracking, write_result
    from runner.evaluation.evaluate import evaluate, with_evaluation, write_evaluation
    from runner.reporting.quality import Quality, describe_quality, quality_of

    path = RunLayout(folder).result
    result = read_result(path) if path.exists() else None  # a merged folder has none
    if result and result.status != "finished":
        raise EvaluationError(f"the run is {result.status}, not finished: rerun its command to resume it first")
    report = evaluate(location, config)
    files = write_evaluation(report, folder)
    lines = [("run", location)]
    if result:
        result = with_evaluation(result, report)
        write_result(path, result)
        lines = [("run", f"{result.info.run_name} {location}")]
        if result.startup.weights and result.startup.weights.is_random:
            lines.append(("weights", "random: the scores are of an untrained network"))
    lines += describe_quality(report.quality, report.metrics)
    print(printable("\n" + "\n".join(f"{label:>11}  {text}" for label, text in lines)))
    if logs:
        from runner.tracking.record import evaluation_tags

        state = read_tracking(RunLayout(folder).tracking)
        _log(state, report.metrics, evaluation_tags(report.quality), files)
    quality = Quality(location, report.metrics, report.quality.data_sha256, report.quality)
    return _Evaluated(location, quality_of(result) if result else quality, result)


def _log(
    state: TrackingState | None, metrics: Mapping[str, float], tags: Mapping[str, str], files: Sequence[Path] = ()
) -> None:
    """Add to a run's MLflow run; trouble is a warning."""
    from runner.tracking.client import TrackingError
    from runner.tracking.late_metrics import log_late_metrics

    artifacts = [(path, path.parent.name if path.suffix == ".png" else None) for path in files]
    try:
        log_late_metrics(state, metrics, tags, artifacts)
    except TrackingError as error:
        logging.getLogger(__name__).warning("%s", error)


def _fads(evaluated: Sequence[_Evaluated]) -> dict[str, SweepFad]:
    """Return the distances between runs, by their folders; see ``sweep_fads``."""
    from runner.evaluation.sweep_fad import sweep_fads

    return sweep_fads(Path(), {run.location: run.result for run in evaluated if run.result})


def _log_fads(fads: Mapping[str, SweepFad]) -> None:
    """Add the distances between a sweep's jobs to their MLflow runs; trouble is a warning."""
    from runner.contract.files import read_tracking

    states = {job: read_tracking(RunLayout(Path(job)).tracking) for job in fads}
    for job, fad in fads.items():
        if reference := states[fad.reference]:
            _log(states[job], {SWEEP_FAD: fad.fad}, {SWEEP_FAD_REFERENCE: reference.run_id})


def _comparable(evaluated: Sequence[_Evaluated]) -> list[Quality]:
    """Return the qualities with the runs' distances; runs that are called alike are named by their locations."""
    names = Counter(run.quality.name for run in evaluated)
    fads = _fads(evaluated)
    return [
        replace(
            run.quality,
            name=run.quality.name if names[run.quality.name] == 1 else run.location,
            fad=fads.get(run.location),
        )
        for run in evaluated
    ]
