"""A run as MLflow is to know it: parameters, tags, metrics, made from result.json alone.

Pure functions, so that a run logged at its end and one logged later from its files are the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runner.config.command_line import command_line
from runner.config.params import _NOT_IN_KEYS, ACTUAL, _text, config_params
from runner.config.quoting import shell_lines
from runner.core.metrics import in_order
from runner.core.redact import without_credentials

MAX_TAG = 5000

_MAX_SERIES = 200

_REQUESTED = {"device.name": "device.requested", "precision.name": "precision.requested"}

_STATUS = {"finished": "FINISHED", "failed": "FAILED", "killed": "KILLED"}

_CURVE_METRICS = {"examples_per_s": "batch_size_examples_per_s", "memory_mib": "batch_size_memory_mib"}
"""The climb for a batch size: metrics whose step is the batch size."""

_SERIES_METRICS = {"realtime_factor": "window_realtime_factor", "examples_per_s": "window_examples_per_s"}

_PASSES = "pass_realtime_factor"

STEPS_WITH_A_MEANING = tuple(_CURVE_METRICS.values())

SERIES = (*_SERIES_METRICS.values(), _PASSES, *STEPS_WITH_A_MEANING)
"""Metrics of several steps, one after another but for those whose step is a batch size."""

LIVE = ("progress_", "system/")
"""What metrics begin with that are told while a run goes on."""

_SOURCE = "vggish-runner"


def started_at(about: Mapping[str, Any]) -> float:
    """When a run began, in seconds since the epoch: its first session, where it was taken up since."""
    return float(about.get("run_started_at") or about.get("started_at") or 0.0)


@dataclass(frozen=True)
class RunRecord:
    """What is logged of a run; ``series`` holds (metric, step, milliseconds since the epoch, value)."""

    name: str
    status: str
    params: Mapping[str, str]
    tags: Mapping[str, str]
    metrics: Mapping[str, float]
    series: Sequence[tuple[str, int, int, float]]
    dataset: Mapping[str, Any] | None
    started_at: float
    ended_at: float


def record_from_result(result: Mapping[str, Any]) -> RunRecord:
    """Everything that MLflow is told of a run, from its result.json."""
    return RunRecord(
        name=str(result["run_name"]),
        status=_STATUS[result["status"]],
        params=requested_params(result["config"]) | actual_params(result),
        tags=_tags(result),
        metrics=in_order(result.get("metrics", {})),
        series=_series(result),
        dataset=result.get("dataset"),
        started_at=started_at(result),
        ended_at=float(result.get("ended_at", result.get("started_at", 0.0))),
    )


def requested_params(config: Mapping[str, Any]) -> dict[str, str]:
    """The configuration as ``config_params`` gives it, with names that tell what was asked for from what was had."""
    return {_REQUESTED.get(key, key): value for key, value in config_params(config).items()}


def actual_params(result: Mapping[str, Any]) -> dict[str, str]:
    """What took effect, as ``actual.*``: MLflow's pages sort parameters by name, so that these are the first.

    So are the settings that its sweep swept, by which it differs from the runs that it is compared with.
    """
    found = {**result.get("resolved", {}), "memory": result["config"]["memory"]["name"]}
    told = {*found, *(key.rpartition(".")[2] for key in found)}
    found |= {key: value for key, value in (result.get("swept") or {}).items() if key not in told}
    return {_NOT_IN_KEYS.sub("_", f"{ACTUAL}{key}"): _text(found[key]) for key in sorted(found)}


def early_tags(config: Mapping[str, Any], run_dir: str, overrides: Sequence[str]) -> dict[str, str]:
    """The tags that are known before the worker starts."""
    return {
        "device.requested": str(config["device"]["name"]),
        "precision.requested": str(config["precision"]["name"]),
        "run_dir": run_dir,
        "command": command_line(overrides),
    }


def source_tags(about: Mapping[str, Any]) -> dict[str, str]:
    """What MLflow shows as a run's user and source, from its result.json or what there is of it."""
    tags = {
        "mlflow.user": about.get("user"),
        "mlflow.source.name": _SOURCE,
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": (about.get("git") or {}).get("commit"),
    }
    return {key: str(value) for key, value in tags.items() if value}


def _tags(result: Mapping[str, Any]) -> dict[str, str]:
    tags: dict[str, Any] = early_tags(result["config"], result.get("run_dir", ""), result.get("overrides", []))
    tags |= source_tags(result)
    device, precision, weights = (result.get(key) or {} for key in ("device", "precision", "weights"))
    tags |= {f"device.{key}": device.get(key) for key in ("effective", "name", "reason", "fallback_reason")}
    tags |= {f"precision.{key}": precision.get(key) for key in ("effective", "reason")}
    tags |= {f"weights.{key}": weights.get(key) for key in ("source", "checksum", "seed", "reason")}
    if model := result.get("model"):
        tags |= {f"model.conv.{key}": model["conv"][key] for key in ("effective", "reason")}
    if compiler := (result.get("model") or {}).get("compiler"):
        tags |= {f"model.compiler.{key}": compiler[key] for key in ("effective", "reason")}
    tags |= {f"swept.{key}": value for key, value in (result.get("swept") or {}).items()}
    tags["cluster"] = result.get("cluster")
    tags["sessions"] = result.get("session")
    tags["bottleneck"] = result.get("bottleneck")
    tags["advice"] = result.get("advice")
    if parity := result.get("parity"):
        tags |= {"parity.passed": str(parity["passed"]).lower(), "parity.misses": "; ".join(parity["misses"]) or None}
        tags |= {"parity.action": parity["action"], "parity.reference": parity["reference"]}
    tags["weights.meaningless"] = str(weights.get("is_random")).lower() if weights else None
    tags |= {f"host.{key}": value for key, value in (result.get("host") or {}).items()}
    tags |= {f"version.{key}": value for key, value in (result.get("versions") or {}).items()}
    tags |= {f"git.{key}": str(value).lower() for key, value in (result.get("git") or {}).items()}
    tags |= {f"skipped.{reason}": count for reason, count in (result.get("skipped") or {}).items()}
    failure = result.get("failure") or {}
    tags |= {f"failure.{key}": failure.get(key) for key in ("kind", "signal", "message")}
    if tail := failure.get("log_tail"):
        tags["failure.log_tail"] = tail[-MAX_TAG:]
    tags["mlflow.note.content"] = _note(result, tags["command"])
    told = {key: without_credentials(str(value))[:MAX_TAG] for key, value in tags.items() if value not in (None, "")}
    return {_NOT_IN_KEYS.sub("_", key): value for key, value in told.items()}


def evaluation_tags(evaluation: Mapping[str, Any]) -> dict[str, str]:
    """The tags of a run's quality: what was measured, on which labeled data."""
    data = evaluation["data"]
    counts = {key: str(data[key]) for key in ("unit", "rows", "groups", "folds")}
    about = {**counts, "labels": str(len(data["labels"])), "data_sha256": evaluation["data_sha256"]}
    return {f"evaluation.{key}": value for key, value in {"tasks": " ".join(evaluation["tasks"]), **about}.items()}


def _note(result: Mapping[str, Any], command: str) -> str:
    metrics, device = result.get("metrics") or {}, result.get("device") or {}
    lines = [f"**{result['run_name']}**: {result['status']}", ""]
    if failure := result.get("failure"):
        lines.append(f"- failure: {failure['message']}")
    if device:
        lines.append(f"- device: {device['effective']} ({device['name']}), because {device['reason']}")
    if "parity_rel_err" in metrics:
        verdict = "passed" if result["parity"]["passed"] else "**failed**"
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
    if advice := result.get("advice"):
        lines.append(f"- {advice}")
    if "clips_embedded" in metrics:
        lines.append(f"- clips: {metrics['clips_embedded']:,.0f} embedded, {metrics['clips_skipped']:,.0f} skipped")
    if (result.get("weights") or {}).get("is_random"):
        lines.append("- **random weights: the embeddings are meaningless**")
    return "\n".join([*lines, "", "Rerun:", "", *(f"    {line}" for line in shell_lines(command))])


def _series(result: Mapping[str, Any]) -> list[tuple[str, int, int, float]]:
    started_ms = 1000 * float(result.get("steady_started_at") or result.get("started_at", 0.0))
    curve = [
        (metric, int(step["batch_size"]), int(started_ms), float(step[key]))
        for step in (result.get("batch_size_curve") or {}).get("steps", [])
        for key, metric in _CURVE_METRICS.items()
        if step[key] is not None
    ]
    passes_ms = started_ms + 1000 * result.get("metrics", {}).get("steady_s", 0.0)
    curve += [
        (_PASSES, step, int(passes_ms + 1000 * each["started_s"]), float(each["realtime_factor"]))
        for step, each in enumerate((result.get("repeats") or {}).get("passes", [])[:_MAX_SERIES])
    ]
    return curve + [
        (metric, step, int(started_ms + 1000 * window["t_s"]), float(window[key]))
        for step, window in enumerate(result.get("series", [])[:_MAX_SERIES])
        for key, metric in _SERIES_METRICS.items()
    ]
