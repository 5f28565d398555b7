"""A run's record for MLflow: parameters, tags, metrics, made from result.json alone.

Pure functions, so that a run logged at its end and one logged later from its files are the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runner.config.command_line import command_line
from runner.config.params import _NOT_IN_KEYS, ACTUAL, _text, config_params
from runner.config.quoting import shell_lines
from runner.core.metrics import in_order
from runner.core.redact import without_credentials

if TYPE_CHECKING:
    from runner.config.schema import RunConfig
    from runner.contract.result import Evaluation, RunInfo, RunResult, Scalar, Startup
    from runner.contract.spec import DatasetSummary

MAX_TAG = 5000

_MAX_SERIES = 200

_REQUESTED = {"device.name": "device.requested", "precision.name": "precision.requested"}

_STATUS = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
"""MLflow's words."""

BATCH_SIZE_SPEED, BATCH_SIZE_MEMORY = "batch_size_examples_per_s", "batch_size_memory_mib"
"""Metrics whose step is the batch size."""

_SERIES_METRICS = {"realtime_factor": "window_realtime_factor", "examples_per_s": "window_examples_per_s"}

_PASSES = "pass_realtime_factor"

STEPS_WITH_A_MEANING = (BATCH_SIZE_SPEED, BATCH_SIZE_MEMORY)

SERIES = (*_SERIES_METRICS.values(), _PASSES, *STEPS_WITH_A_MEANING)
"""Metrics of several steps, one after another but for those whose step is a batch size."""

LIVE = ("progress_", "system/")
"""Beginnings of the metrics that are logged while a run goes on."""

_SOURCE = "vggish-runner"


@dataclass(frozen=True)
class RunRecord:
    """A run in MLflow's terms; ``series`` holds (metric, step, milliseconds since the epoch, value)."""

    name: str
    status: str
    params: Mapping[str, str]
    tags: Mapping[str, str]
    metrics: Mapping[str, float]
    series: Sequence[tuple[str, int, int, float]]
    dataset: DatasetSummary | None
    started_at: float
    ended_at: float


def record_from_result(result: RunResult) -> RunRecord:
    """Make the record of a run."""
    return RunRecord(
        name=result.info.run_name,
        status=_STATUS[result.status],
        params=requested_params(result.info.config) | actual_params(result),
        tags=_tags(result),
        metrics=in_order(result.metrics),
        series=_series(result),
        dataset=result.info.dataset,
        started_at=result.info.first_attempt_at,
        ended_at=result.ended_at,
    )


def requested_params(config: RunConfig) -> dict[str, str]:
    """Return the configuration as ``config_params`` does, with ``.requested`` in names whose effect may be another."""
    return {_REQUESTED.get(key, key): value for key, value in config_params(config).items()}


def actual_params(result: RunResult) -> dict[str, str]:
    """Return the values that took effect, as ``actual.*``: MLflow's pages sort parameters by name.

    The settings that its sweep swept are among them, by which it differs from the runs that it is compared with.
    """
    values: dict[str, Scalar] = {**result.startup.resolved, "memory": result.info.config.memory.name}
    known = {*values, *(key.rpartition(".")[2] for key in values)}
    values |= {key: value for key, value in result.info.swept.items() if key not in known}
    return {_NOT_IN_KEYS.sub("_", f"{ACTUAL}{key}"): _text(values[key]) for key in sorted(values)}


def early_tags(info: RunInfo) -> dict[str, str]:
    """Return the tags that are known before the worker starts."""
    return {
        "device.requested": info.config.device.name,
        "precision.requested": info.config.precision.name,
        "run_dir": info.run_dir,
        "command": command_line(info.overrides),
    }


def source_tags(user: str | None, git: Mapping[str, str | bool] | None) -> dict[str, str]:
    """Return MLflow's own tags of a run's user and source."""
    tags = {
        "mlflow.user": user,
        "mlflow.source.name": _SOURCE,
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": (git or {}).get("commit"),
    }
    return {key: str(value) for key, value in tags.items() if value}


def _tags(result: RunResult) -> dict[str, str]:
    info, stats = result.info, result.stats
    command = command_line(info.overrides)
    tags: dict[str, Scalar] = {
        **early_tags(info),
        **source_tags(info.user, info.git),
        **_startup_tags(result.startup),
        **_prefixed("swept", info.swept),
        "actors_summary": stats.actors_summary,
        "attempt": info.attempt,
        "bottleneck": stats.bottleneck,
        "advice": result.advice,
        **_prefixed("host", result.host),
        **_prefixed("version", result.versions),
        **_prefixed("git", {key: str(value).lower() for key, value in (info.git or {}).items()}),
        **_prefixed("skipped", stats.skipped),
        **(evaluation_tags(result.evaluation) if result.evaluation else {}),
    }
    if failure := result.failure:
        tags |= {"failure.kind": failure.kind, "failure.signal": failure.signal, "failure.message": failure.message}
        tags["failure.log_tail"] = failure.log_tail[-MAX_TAG:]
    tags["mlflow.note.content"] = _note(result, command)
    texts = {key: without_credentials(str(value))[:MAX_TAG] for key, value in tags.items() if value not in (None, "")}
    return {_NOT_IN_KEYS.sub("_", key): text for key, text in texts.items()}


def evaluation_tags(evaluation: Evaluation) -> dict[str, str]:
    """Return the tags of a run's quality: its tasks, and the labeled rows behind it."""
    data = evaluation.data
    tags: dict[str, Scalar] = {"tasks": ",".join(evaluation.tasks), "data_sha256": evaluation.data_sha256}
    tags |= {"unit": data.unit, "rows": data.rows, "labels": len(data.labels), "groups": data.groups}
    return {key: str(value) for key, value in _prefixed("evaluation", {**tags, "folds": data.folds}).items()}


def _startup_tags(startup: Startup) -> dict[str, Scalar]:
    tags: dict[str, Scalar] = {}
    if device := startup.device:
        tags |= {"device.effective": device.effective, "device.name": device.name, "device.reason": device.reason}
        tags["device.fallback_reason"] = device.fallback_reason
    if precision := startup.precision:
        tags |= {"precision.effective": precision.effective, "precision.reason": precision.reason}
    if weights := startup.weights:
        tags |= {"weights.source": weights.source, "weights.checksum": weights.checksum, "weights.seed": weights.seed}
        tags |= {"weights.reason": weights.reason, "weights.random": str(weights.is_random).lower()}
    if model := startup.model:
        if model.conv:
            tags |= {"model.conv.effective": model.conv.effective, "model.conv.reason": model.conv.reason}
        tags |= {"model.compiler.effective": model.compiler.effective, "model.compiler.reason": model.compiler.reason}
    if parity := startup.parity:
        tags |= {"parity.passed": str(parity.passed).lower(), "parity.misses": "; ".join(parity.misses)}
        tags |= {"parity.action": parity.action, "parity.reference": parity.reference}
    return tags


def _prefixed(prefix: str, values: Mapping[str, Scalar]) -> dict[str, Scalar]:
    return {f"{prefix}.{key}": value for key, value in values.items()}


def _note(result: RunResult, command: str) -> str:
    metrics, startup = result.metrics, result.startup
    lines = [f"**{result.info.run_name}**: {result.status}", ""]
    if failure := result.failure:
        lines.append(f"- failure: {failure.message}")
    if device := startup.device:
        lines.append(f"- device: {device.label}, because {device.reason}")
    if startup.parity and "parity_rel_err" in metrics:
        verdict = "passed" if startup.parity.passed else "**failed**"
        lines.append(
            f"- parity: {verdict}, max error {metrics['parity_rel_err']:.1e} of the largest value, "
            f"min cosine {metrics['parity_min_cosine']:.7f}"
        )
    if "realtime_factor" in metrics:
        lines.append(f"- speed: {metrics['realtime_factor']:,.1f} × realtime")
    if (mean := "repeat_realtime_factor_mean") in metrics:
        ends = [f"{metrics[end]:,.1f}" for end in (f"{mean}_low", f"{mean}_high") if end in metrics]
        between = f" (95 %: {' to '.join(ends)})" if ends else ""
        lines.append(f"- repeated passes: {metrics[mean]:,.1f} × realtime{between}")
    if result.advice:
        lines.append(f"- {result.advice}")
    if "clips_embedded" in metrics:
        lines.append(f"- clips: {metrics['clips_embedded']:,.0f} embedded, {metrics['clips_skipped']:,.0f} skipped")
    if startup.weights and startup.weights.is_random:
        lines.append("- **random weights: the embeddings are meaningless**")
    return "\n".join([*lines, "", "Rerun:", "", *(f"    {line}" for line in shell_lines(command))])


def _series(result: RunResult) -> list[tuple[str, int, int, float]]:
    started_ms = 1000 * (result.stats.steady_started_at or result.info.started_at)
    passes_ms = started_ms + 1000 * result.metrics.get("steady_s", 0.0)
    series = []
    for point in result.startup.batch_size_curve.steps if result.startup.batch_size_curve else ():
        series.append((BATCH_SIZE_SPEED, point.batch_size, int(started_ms), point.examples_per_s))
        if point.memory_mib is not None:
            series.append((BATCH_SIZE_MEMORY, point.batch_size, int(started_ms), point.memory_mib))
    for step, own in enumerate((result.repeats.passes if result.repeats else ())[:_MAX_SERIES]):
        series.append((_PASSES, step, int(passes_ms + 1000 * own["started_s"]), own["realtime_factor"]))
    for step, window in enumerate(result.stats.throughput_series[:_MAX_SERIES]):
        for key, metric in _SERIES_METRICS.items():
            series.append((metric, step, int(started_ms + 1000 * window["t_s"]), window[key]))
    return series
