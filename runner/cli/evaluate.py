"""``vggish-runner evaluate``: how well the embeddings of existing runs classify, cluster and retrieve."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from runner.config.groups.evaluate import TASKS, UNITS, EvaluateConfig, check_evaluation
from runner.core.errors import EvaluationError, RunnerError
from runner.core.files import write_atomic
from runner.core.layout import RunLayout
from runner.core.paths import as_path, is_url
from runner.core.printable import printable
from runner.core.readable import read_json
from runner.core.redact import without_credentials
from runner.evaluation.evaluate import evaluate, with_evaluation, write_evaluation
from runner.reporting.quality import describe_quality, quality_findings

_PATIENCE_S = 120.0
"""How long an object of a store may take."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluate runs, and compare several; exit status 1 if one could not be evaluated."""
    parser = _parser()
    options = parser.parse_args(arguments)
    failed = False
    results: list[dict[str, Any]] = []
    places: list[str] = []
    try:
        config = _config(options)
        check_evaluation(config)
        for place in (place for argument in options.runs for place in _runs(argument)):
            try:
                result = _evaluate(place, config, logs=not options.no_log)
            except (RunnerError, OSError) as error:
                failed = True
                print(f"error: {printable(without_credentials(f'{place}: {error}'))}", file=sys.stderr)
                continue
            results.append(result)
            places.append(place)
            print(printable(_told(place, result)))
    except RunnerError as error:
        print(f"error: {printable(without_credentials(str(error)))}", file=sys.stderr)
        return 1
    if len(results) > 1:
        print(printable("\n".join(["", *quality_findings(_told_apart(results, places))])))
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
    given = {key.name: getattr(options, key.name) for key in fields(EvaluateConfig)}
    return EvaluateConfig(**{**given, "tasks": [task.strip() for task in options.tasks.split(",")]})


def _runs(argument: str) -> Iterator[str]:
    """The places of the runs that an argument names: itself, or a sweep's finished jobs."""
    if is_url(argument):
        yield argument.rstrip("/")
        return
    folder = Path(as_path(argument)).expanduser().resolve()
    if not folder.is_dir():
        raise EvaluationError(f"{folder} is not there: give the folder of a run or a sweep, or a run's URL")
    sweep = RunLayout(folder).sweep
    for job in read_json(sweep)["jobs"] if sweep.exists() else ["."]:
        if job == "." or RunLayout(folder / job).result.exists():
            yield str(folder / job)


def _evaluate(place: str, config: EvaluateConfig, *, logs: bool) -> dict[str, Any]:
    """Evaluate a run and put what was found into its files and its MLflow run; its result.json."""
    if not is_url(place):
        return _evaluate_in(Path(place), place, config, logs=logs)
    from runner.storage.lease import Lease
    from runner.storage.object_store import Store

    store = Store(place, _PATIENCE_S, "RUN")
    with TemporaryDirectory(prefix="vggish-evaluate-") as scratch:
        folder = Path(scratch)
        for name in (RunLayout.result, RunLayout.tracking):
            if (content := store.read(name)) is not None:
                (folder / name).write_bytes(content)
        lease = Lease(store)
        lease.take()
        try:
            lease.confirm()
            result = _evaluate_in(folder, place, config, logs=logs)
            for path in folder.rglob("*"):
                if path.is_file() and path.name != RunLayout.tracking:
                    store.put(path, path.relative_to(folder).as_posix())
        finally:
            lease.release()
    return result


def _evaluate_in(folder: Path, place: str, config: EvaluateConfig, *, logs: bool) -> dict[str, Any]:
    path = RunLayout(folder).result
    result = read_json(path) if path.exists() else {"status": "finished", "config": {}}  # a merged folder has none
    if result["status"] != "finished":
        raise EvaluationError(f"the run is {result['status']}, not finished: rerun its command to resume it first")
    evaluation = evaluate(place, config)
    files = write_evaluation(evaluation, folder)
    result = with_evaluation(result, evaluation)
    if path.exists():
        write_atomic(path, json.dumps(result, indent=2))
    if logs and RunLayout(folder).tracking.exists():
        _log(read_json(RunLayout(folder).tracking), evaluation, files)
    return result


def _log(noted: Mapping[str, Any], evaluation: Mapping[str, Any], files: Sequence[Path]) -> None:
    """Add a run's quality to its MLflow run; trouble is a warning."""
    from runner.tracking.client import TrackingError
    from runner.tracking.late_metrics import log_late_metrics
    from runner.tracking.record import evaluation_tags

    artifacts = [(path, path.parent.name if path.suffix == ".png" else None) for path in files]
    try:
        log_late_metrics(noted, evaluation["metrics"], evaluation_tags(evaluation), artifacts)
    except TrackingError as error:
        logging.getLogger(__name__).warning("%s", error)


def _told_apart(results: Sequence[Mapping[str, Any]], places: Sequence[str]) -> list[dict[str, Any]]:
    """The results with names that tell them apart: of runs that are called alike, with their places."""
    names = Counter(result.get("run_name") for result in results)
    return [
        {**result, "swept": {}, "run_name": result["run_name"] if names[result.get("run_name")] == 1 else place}
        for result, place in zip(results, places, strict=True)
    ]


def _told(place: str, result: Mapping[str, Any]) -> str:
    lines = [("run", f"{result.get('run_name', '')} {place}".strip())]
    lines += describe_quality(result["evaluation"], result["metrics"])
    if (result.get("weights") or {}).get("is_random"):
        lines.append(("weights", "RANDOM: the figures are of an untrained network"))
    return "\n" + "\n".join(f"{name:>11}  {text}" for name, text in lines)
