"""A run as MLflow is to know it: parameters, tags, metrics, made from result.json alone.

Pure functions, so that a run logged at its end and one logged later from its files are the same.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.files import write_atomic
from runner.metrics import in_order
from runner.paths import conf_dir
from runner.quoting import shell_lines, shell_override

TRACKING, SWEEP_FILE = "tracking.json", "sweep.json"
"""Files that note the MLflow run of a run's folder, and of a sweep's."""
ACTUAL = "actual."
"""What the names of parameters begin with that say what took effect."""
MAX_PARAM = 6000
MAX_TAG = 5000
_MAX_SERIES = 200
_NOT_IN_KEYS = re.compile(r"[^\w\-. /]")
# Hydra writes the colons of a sweep's overrides with a backslash
_USER = re.compile(r"([A-Za-z][\w+.\-]*\\?://)[^\s/'\"]*@")
_QUERY = re.compile(r"([A-Za-z][\w+.\-]*\\?://[^\s'\"?#]*)[?#][^\s'\"]*")
_TABLES = ("memory.batch_size_by_device.", "profile.device_speed_s.", "parity.tolerances.")
_REQUESTED = {"device.name": "device.requested", "precision.name": "precision.requested"}
_STATUS = {"finished": "FINISHED", "failed": "FAILED", "killed": "KILLED"}
_CURVE_METRICS = {"examples_per_s": "batch_size_examples_per_s", "memory_mib": "batch_size_memory_mib"}
"""The climb for a batch size: metrics whose step is the batch size."""
_SERIES_METRICS = {"audio_x_realtime": "window_audio_x_realtime", "examples_per_s": "window_examples_per_s"}
_PASSES = "pass_audio_x_realtime"
STEPS_WITH_A_MEANING = tuple(_CURVE_METRICS.values())
SERIES = (*_SERIES_METRICS.values(), _PASSES, *STEPS_WITH_A_MEANING)
"""Metrics of several steps, one after another but for those whose step is a batch size."""
LIVE = ("progress_", "system/")
"""What metrics begin with that are told while a run goes on."""
_SOURCE = "vggish-runner"


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


def started_at(about: Mapping[str, Any]) -> float:
    """When a run began, in seconds since the epoch: its first session, where it was taken up since."""
    return float(about.get("run_started_at") or about.get("started_at") or 0.0)


def config_params(config: Mapping[str, Any]) -> dict[str, str]:
    """The configuration flat and dotted, without credentials, as MLflow takes parameters.

    Tables (by kind of device, by precision) are left out: what took effect of them is in ``actual.*``.  The whole is
    among the artifacts.
    """
    flat = [(key, value) for key, value in _flat("", config) if not key.startswith(_TABLES)]
    return {_NOT_IN_KEYS.sub("_", key): _text(value) for key, value in flat}


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


def command_line(overrides: Sequence[str], multirun: bool = False, output_dir: str | None = None) -> str:
    """The command that repeats a run (or a sweep), quoted for Hydra and a shell, without credentials.

    That of one job of a sweep leaves out what makes it one of many.

    Args:
        overrides: as they were typed, options such as ``--config-dir=DIR`` in front.
        multirun: whether they are a sweep's.
        output_dir: where the command's files are to go; None: into a new folder, as a finished run's is taken.
    """
    sweeps = [each for each in overrides if _makes_a_sweep(each, overrides)]
    kept = [each for each in overrides if not each.lstrip("+").startswith("output.dir=")]
    if not multirun:
        kept = [each for each in kept if each not in sweeps or _experiment_file(each, overrides)]
        if any(_experiment_file(each, overrides) for each in kept if each in sweeps):
            kept.append("hydra.mode=RUN")  # an experiment of the user's own may hold more than its sweep
    many = ["-m"] if multirun and not sweeps else []
    words = shlex.join(["python", "-m", "runner", *many, *map(without_credentials, kept)])
    return f"{words} {shell_override('output.dir', output_dir)}" if output_dir is not None else words


def _makes_a_sweep(override: str, overrides: Sequence[str]) -> bool:
    key, _, value = override.lstrip("+").partition("=")
    if key == "experiment":
        path = _experiment_file(override, overrides) or conf_dir() / "experiment" / f"{value}.yaml"
        return path.exists() and "mode: MULTIRUN" in path.read_text(encoding="utf-8")
    return key.startswith(("hydra.", "hydra/"))


def _experiment_file(override: str, overrides: Sequence[str]) -> Path | None:
    """The file of an experiment of the user's own, in a folder that the command line named."""
    key, _, value = override.lstrip("+").partition("=")
    folders = [each.partition("=")[2] for each in overrides if each.startswith(("--config-dir=", "--config-path="))]
    paths = [Path(folder) / "experiment" / f"{value}.yaml" for folder in folders]
    return next((path for path in paths if key == "experiment" and path.is_file()), None)


def without_credentials(text: str) -> str:
    """A text with user, password and query taken out of every address in it."""
    return _QUERY.sub(r"\1", _USER.sub(r"\1", text))


def hide_credentials(folder: Path) -> None:
    """Take credentials out of what Hydra has written of the command line into a run's or a sweep's folder."""
    for path in (*folder.glob("*.yaml"), *(folder / ".hydra").glob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        if (clean := without_credentials(text)) != text:
            write_atomic(path, clean)


def _flat(prefix: str, value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return [
            pair for key, inner in value.items() for pair in _flat(f"{prefix}.{key}" if prefix else str(key), inner)
        ]
    return [(prefix, value)]


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        value = ",".join(map(str, value))
    return without_credentials(str(value))[:MAX_PARAM]


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
    tags["weights.meaningless"] = str(weights.get("meaningless")).lower() if weights else None
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
    if "audio_x_realtime" in metrics:
        lines.append(f"- speed: {metrics['audio_x_realtime']:,.1f} × realtime")
    if (mean := "repeat_audio_x_realtime_mean") in metrics:
        ends = [f"{metrics[end]:,.1f}" for end in (f"{mean}_low", f"{mean}_high") if end in metrics]
        between = f" (95 %: {' to '.join(ends)})" if ends else ""
        lines.append(f"- repeated passes: {metrics[mean]:,.1f} × realtime{between}")
    if advice := result.get("advice"):
        lines.append(f"- {advice}")
    if "clips_embedded" in metrics:
        lines.append(f"- clips: {metrics['clips_embedded']:,.0f} embedded, {metrics['clips_skipped']:,.0f} skipped")
    if (result.get("weights") or {}).get("meaningless"):
        lines.append("- **random weights: the embeddings are meaningless**")
    return "\n".join([*lines, "", "Repeat it:", "", *(f"    {line}" for line in shell_lines(command))])


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
        (_PASSES, step, int(passes_ms + 1000 * each["started_s"]), float(each["audio_x_realtime"]))
        for step, each in enumerate((result.get("repeats") or {}).get("passes", [])[:_MAX_SERIES])
    ]
    return curve + [
        (metric, step, int(started_ms + 1000 * window["t_s"]), float(window[key]))
        for step, window in enumerate(result.get("series", [])[:_MAX_SERIES])
        for key, metric in _SERIES_METRICS.items()
    ]
