"""Log a run to MLflow, in calls of few entries that may be repeated."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from runner.core.layout import FORMAT_FOLDERS, RunLayout
from runner.core.paths import is_url
from runner.reporting.comparability import FIRST_PASS
from runner.tracking.record import LIVE, MAX_TAG, SERIES, STEPS_WITH_A_MEANING

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

    from runner.contract.spec import DatasetSummary
    from runner.tracking.record import RunRecord

_METRICS_PER_CALL = 1000

_DATASET_TRIES = 4

_PARAMS_PER_CALL = 100


def steps_after(run: Run) -> dict[str, int]:
    """Return, for each metric of a run, the step after its last one, where a later attempt continues."""
    return {metric.key: metric.step + 1 for metric in run.data.to_proto().metrics}


def log_record(client: MlflowClient, run_id: str, record: RunRecord, first_step: Mapping[str, int]) -> None:
    """Log an attempt at a run, without its files; logging it again changes nothing.

    Metrics that earlier attempts had and this one lacks become NaN, lest they are taken for its own.

    Args:
        client: of the store.
        run_id: the run's.
        record: the attempt's.
        first_step: of the metrics that the run had before this attempt, from ``steps_after``.
    """
    from mlflow.entities import Metric

    client.update_run(run_id, name=record.name)
    known = client.get_run(run_id).data.params  # of an earlier attempt: MLflow refuses another value
    log_params(client, run_id, {key: value for key, value in record.params.items() if key not in known})
    changed = {key: value for key, value in record.params.items() if known.get(key, value) != value}
    if changed:
        log_batch(client, run_id, metrics=[], tags=cut({f"resumed.{key}": value for key, value in changed.items()}))
    at_ms = int(1000 * record.ended_at)
    values = {**record.metrics, **_lacking_metrics(record, first_step)}
    metrics = [Metric(name, float(value), at_ms, first_step.get(name, 0)) for name, value in values.items()]
    for name, step, series_at_ms, value in record.series:
        offset = 0 if name in STEPS_WITH_A_MEANING else first_step.get(name, 0)
        metrics.append(Metric(name, value, series_at_ms, offset + step))
    log_batch(client, run_id, metrics=metrics, tags=cut(record.tags))
    if record.dataset is not None:
        log_dataset(client, run_id, record.dataset)


def _lacking_metrics(record: RunRecord, first_step: Mapping[str, int]) -> dict[str, float]:
    if FIRST_PASS not in record.metrics:  # it measured nothing: the metrics of the earlier attempt stay
        return {}
    present = {*record.metrics, *SERIES}
    return {name: math.nan for name in first_step if name not in present and not name.startswith(LIVE)}


def log_dataset(client: MlflowClient, run_id: str, dataset: DatasetSummary) -> None:
    """Log a data set as the run's input.

    Args:
        client: of the store.
        run_id: the run's.
        dataset: the run's.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag

    profile = {"clips": dataset.clips, "is_demo": dataset.is_demo, "ignored": dataset.ignored}
    root = dataset.root
    scheme = urlsplit(root).scheme if is_url(root) else "local"
    entry = Dataset(
        name="demo" if dataset.is_demo else Path(root).name or "root",
        digest=dataset.digest,
        source_type="http" if scheme == "https" else scheme,  # MLflow's own names
        source=json.dumps({"url" if scheme.startswith("http") else "uri": root}),
        profile=json.dumps(profile),
    )
    inputs = [DatasetInput(entry, [InputTag("mlflow.data.context", "embedding")])]
    for tries in range(
        1, _DATASET_TRIES + 1
    ):  # two runs that log the same new data set at once collide in the database
        try:
            client.log_inputs(run_id, inputs)
            return
        except Exception:
            if tries == _DATASET_TRIES:
                raise
            time.sleep(0.1 * tries)


def log_files(client: MlflowClient, run_id: str, run_dir: Path, *, embeddings: bool) -> None:
    """Log the files of a run; with ``embeddings`` also those of its embeddings."""
    if (run_dir / ".hydra").is_dir():
        client.log_artifacts(run_id, str(run_dir / ".hydra"), "config")
    for name in (
        "runner.log",
        "result.json",
        RunLayout.evaluation,
        RunLayout.clips,
        RunLayout.statistics,
        RunLayout.batches,
    ):
        if (run_dir / name).exists():
            client.log_artifact(run_id, str(run_dir / name))
    for folder in (RunLayout.plots, RunLayout.trace, *(FORMAT_FOLDERS if embeddings else ())):
        if (run_dir / folder).is_dir():
            client.log_artifacts(run_id, str(run_dir / folder), folder)


def log_params(client: MlflowClient, run_id: str, params: Mapping[str, str]) -> None:
    """Log parameters; MLflow accepts an equal value again, so that this may be repeated."""
    from mlflow.entities import Param

    entries = [Param(key, value) for key, value in params.items()]
    for start in range(0, len(entries), _PARAMS_PER_CALL):
        client.log_batch(run_id, params=entries[start : start + _PARAMS_PER_CALL])


def log_batch(client: MlflowClient, run_id: str, *, metrics: Sequence[Any], tags: Mapping[str, str]) -> None:
    """Log metrics and tags, in as many calls as their number needs."""
    from mlflow.entities import RunTag

    entries = [RunTag(key, value) for key, value in tags.items()]
    client.log_batch(run_id, metrics=metrics[:_METRICS_PER_CALL], tags=entries)
    for start in range(_METRICS_PER_CALL, len(metrics), _METRICS_PER_CALL):
        client.log_batch(run_id, metrics=metrics[start : start + _METRICS_PER_CALL])


def metrics_at(values: Mapping[str, float], at_ms: int, step: int = 0) -> list[Any]:
    """Return MLflow's metrics of one time and step."""
    from mlflow.entities import Metric

    return [Metric(name, float(value), at_ms, step) for name, value in values.items()]


def cut(tags: Mapping[str, str]) -> dict[str, str]:
    """Return tags with their values cut to MLflow's limit."""
    return {key: value[:MAX_TAG] for key, value in tags.items()}
