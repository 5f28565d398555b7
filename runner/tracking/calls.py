"""What MLflow is told of a run, in calls of few entries that may be repeated."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from runner.core.layout import BATCHES, CLIPS, FOLDERS, PLOTS, TRACE, RunLayout
from runner.core.paths import is_url
from runner.reporting.comparability import FIRST_PASS
from runner.tracking.record import LIVE, MAX_TAG, SERIES, STEPS_WITH_A_MEANING

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

    from runner.tracking.record import RunRecord

_METRICS_A_CALL = 1000

_DATASET_ATTEMPTS = 4

_PARAMS_A_CALL = 100


def steps_after(run: Run) -> dict[str, int]:
    """For each metric that a run has the step that follows its last one: where a later session goes on."""
    return {each.key: each.step + 1 for each in run.data.to_proto().metrics}


def log_record(client: MlflowClient, run_id: str, record: RunRecord, first_step: Mapping[str, int]) -> None:
    """Tell all of a session but its files; told again it changes nothing.

    Figures that earlier sessions had and this one has not become NaN: with its speed they would be taken for its own.

    Args:
        client: of the store.
        run_id: the run's.
        record: the session's.
        first_step: of the metrics that the run had before this session, as ``steps_after`` has them.
    """
    from mlflow.entities import Metric

    client.update_run(run_id, name=record.name)
    known = client.get_run(run_id).data.params  # of an earlier session: MLflow takes no other value
    log_params(client, run_id, {key: value for key, value in record.params.items() if key not in known})
    changed = {key: value for key, value in record.params.items() if known.get(key, value) != value}
    if changed:
        log_batch(client, run_id, metrics=[], tags=cut({f"resumed.{key}": value for key, value in changed.items()}))
    at_ms = int(1000 * record.ended_at)
    values = {**record.metrics, **_without_a_figure(record, first_step)}
    metrics = [Metric(name, float(value), at_ms, first_step.get(name, 0)) for name, value in values.items()]
    for name, step, series_at_ms, value in record.series:
        before = 0 if name in STEPS_WITH_A_MEANING else first_step.get(name, 0)
        metrics.append(Metric(name, value, series_at_ms, before + step))
    log_batch(client, run_id, metrics=metrics, tags=cut(record.tags))
    if record.dataset is not None:
        log_dataset(client, run_id, record.dataset)


def _without_a_figure(record: RunRecord, first_step: Mapping[str, int]) -> dict[str, float]:
    if FIRST_PASS not in record.metrics:  # it measured nothing, and what an earlier session did stays together
        return {}
    kept = {*record.metrics, *SERIES}
    return {name: math.nan for name in first_step if name not in kept and not name.startswith(LIVE)}


def log_dataset(client: MlflowClient, run_id: str, dataset: Mapping[str, Any]) -> None:
    """Note a data set as the run's input.

    Args:
        client: of the store.
        run_id: the run's.
        dataset: as in result.json.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag

    profile = {key: dataset[key] for key in ("clips", "is_demo", "ignored")}
    root = dataset["root"]
    kind = urlsplit(root).scheme if is_url(root) else "local"
    entry = Dataset(
        name="demo" if dataset["is_demo"] else Path(root).name or "root",
        digest=dataset["digest"],
        source_type="http" if kind == "https" else kind,  # what MLflow calls its own sources
        source=json.dumps({"url" if kind.startswith("http") else "uri": root}),
        profile=json.dumps(profile),
    )
    inputs = [DatasetInput(entry, [InputTag("mlflow.data.context", "embedding")])]
    for attempt in range(_DATASET_ATTEMPTS):  # two runs that log the same new data set at once collide in the database
        try:
            client.log_inputs(run_id, inputs)
            return
        except Exception:
            if attempt + 1 == _DATASET_ATTEMPTS:
                raise
            time.sleep(0.1 * (attempt + 1))


def log_files(client: MlflowClient, run_id: str, run_dir: Path, *, embeddings: bool) -> None:
    """Log a run's files, those with its embeddings only if asked for."""
    if (run_dir / ".hydra").is_dir():
        client.log_artifacts(run_id, str(run_dir / ".hydra"), "config")
    for name in ("runner.log", "result.json", CLIPS, RunLayout.statistics, BATCHES):
        if (run_dir / name).exists():
            client.log_artifact(run_id, str(run_dir / name))
    for folder in (PLOTS, TRACE, *(FOLDERS if embeddings else ())):
        if (run_dir / folder).is_dir():
            client.log_artifacts(run_id, str(run_dir / folder), folder)


def log_params(client: MlflowClient, run_id: str, params: Mapping[str, str]) -> None:
    """Log parameters; MLflow takes an equal value again, so this may be repeated."""
    from mlflow.entities import Param

    entries = [Param(key, value) for key, value in params.items()]
    for start in range(0, len(entries), _PARAMS_A_CALL):
        client.log_batch(run_id, params=entries[start : start + _PARAMS_A_CALL])


def log_batch(client: MlflowClient, run_id: str, *, metrics: Sequence[Any], tags: Mapping[str, str]) -> None:
    """Log metrics and tags, in as many calls as it takes."""
    from mlflow.entities import RunTag

    entries = [RunTag(key, value) for key, value in tags.items()]
    client.log_batch(run_id, metrics=metrics[:_METRICS_A_CALL], tags=entries)
    for start in range(_METRICS_A_CALL, len(metrics), _METRICS_A_CALL):
        client.log_batch(run_id, metrics=metrics[start : start + _METRICS_A_CALL])


def metrics_at(values: Mapping[str, float], at_ms: int, step: int = 0) -> list[Any]:
    """Values as MLflow's metrics, of one moment."""
    from mlflow.entities import Metric

    return [Metric(name, float(value), at_ms, step) for name, value in values.items()]


def cut(tags: Mapping[str, str]) -> dict[str, str]:
    """Tags as long as MLflow takes them."""
    return {key: value[:MAX_TAG] for key, value in tags.items()}
