"""The summary of a run or a sweep on the terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from runner.core.printable import printable
from runner.reporting.advice import advise
from runner.reporting.comparability import FIRST_PASS, REPEATS
from runner.reporting.intervals import ENDS, blocks_of, interval
from runner.reporting.quality import describe_quality
from runner.reporting.verdict import verdict

if TYPE_CHECKING:
    from pathlib import Path

    from runner.contract.result import BatchSizeCurve, RunResult, WeightsReport

_NAMED_CLIPS = 3
"""Skipped clips that the summary of a run names."""

_STARTUP = ("import", "device", "weights", "calibration", "compile", "batch_size", "parity", "pin")


def summarize(
    result: RunResult,
    location: str,
    tracking: str | None,
    resume: str | None = None,
    page: str | None = None,
    clips: Path | None = None,
) -> str:
    """Summarize one run.

    Args:
        result: the run's.
        location: its folder or URL.
        tracking: the line on MLflow; None if the run is not tracked.
        resume: the command that resumes it; None if it is complete.
        page: its page in the MLflow UI.
        clips: its clips.parquet, of which the first skipped clips are named.
    """
    rows = []
    for label, describe in _ROWS:
        if text := describe(result):
            rows.append((label, text))
            if label == "skipped" and clips:
                rows += [("", line) for line in _first_skipped(clips)]
    if result.evaluation:
        rows += describe_quality(result.evaluation, result.metrics)
    rows.append(("files", location))
    if resume:
        rows.append(("resume", resume))
    if tracking:
        rows.append(("mlflow", tracking))
    if page:
        rows.append(("", f"then {page}"))
    return "\n" + "\n".join(f"{label:>11}  {printable(text)}" for label, text in rows)


def _status(result: RunResult) -> str:
    return f"{result.info.run_name}: {result.status}"


def _failure(result: RunResult) -> str | None:
    return result.failure.message if result.failure else None


def _device(result: RunResult) -> str | None:
    device = result.startup.device
    return f"{device.label}: {device.reason}" if device else None


def _precision(result: RunResult) -> str | None:
    precision = result.startup.precision
    return f"{precision.effective}: {precision.reason}" if precision else None


def _model(result: RunResult) -> str | None:
    if (model := result.startup.model) is None or not model.outputs:
        return None
    return f"{model.title}: {', '.join(f'{name} of {width:,} values' for name, width in model.outputs.items())}"


def _convolution(result: RunResult) -> str | None:
    conv = result.startup.model and result.startup.model.conv
    return f"{conv.effective}: {conv.reason}" if conv else None


def _weights(result: RunResult) -> str | None:
    weights: WeightsReport | None = result.startup.weights
    if weights is None or weights.checksum is None:
        return None
    meaning, smoke = " (meaningless embeddings)" * weights.is_random, ", smoke test passed" * bool(weights.smoke)
    return f"{weights.source}{meaning}, sha256 {weights.checksum[:12]}{smoke}"


def _parity(result: RunResult) -> str | None:
    parity, metrics = result.startup.parity, result.metrics
    if parity is None:
        return None
    if "parity_rel_err" not in metrics:
        return f"FAILED: {', '.join(parity.misses)}"
    reference = parity.reference.partition(",")[0].replace("NumPy float64", "the reference in float64")
    text = (
        f"max error {metrics['parity_rel_err']:.1e} of the largest value, min cosine "
        f"{metrics['parity_min_cosine']:.7f}, against {reference}"
    )
    return text if parity.passed else f"FAILED: {text} ({', '.join(parity.misses)})"


def _clips(result: RunResult) -> str | None:
    metrics, dataset = result.metrics, result.info.dataset
    if "examples" not in metrics or dataset is None:
        return None
    embedded, skipped = int(metrics["clips_embedded"]), int(metrics["clips_skipped"])
    text = (
        f"{embedded:,} of {dataset.clips:,} embedded ({int(metrics['examples']):,} examples, "
        f"{metrics['audio_s']:,.0f} s)"
    )
    if padded := int(metrics["clips_padded"]):
        text += f", {padded:,} of them padded"
    if skipped:
        text += f", {skipped:,} skipped"
    if left := dataset.clips - embedded - skipped:
        text += f", {left:,} not done"
    return text


def _skipped(result: RunResult) -> str | None:
    return _see_clips(result, result.stats.skipped)


def _first_skipped(clips: Path) -> list[str]:
    """Name the first skipped clips of clips.parquet, each with its reason and detail; none if it can't be read."""
    import pyarrow.dataset

    columns = ["clip", "reason", "detail"]
    try:
        table = pyarrow.dataset.dataset(clips).head(
            _NAMED_CLIPS, columns=columns, filter=pyarrow.dataset.field("status") == "skipped"
        )
    except (OSError, ValueError):  # Arrow's own errors are of these
        return []
    return [f"{row['clip']}: {row['reason']}, {row['detail']}" for row in table.to_pylist()]


def _warned(result: RunResult) -> str | None:
    return _see_clips(result, result.stats.warnings_by_reason, ", embedded as far as decoded")


def _see_clips(result: RunResult, counts: Mapping[str, int], remark: str = "") -> str | None:
    return f"{_counts(counts)}{remark} (see clips.parquet)" if counts and "examples" in result.metrics else None


def _ignored(result: RunResult) -> str | None:
    ignored = result.info.dataset.ignored if result.info.dataset else None
    return f"files that are not clips: {_counts(ignored)}" if ignored and "examples" in result.metrics else None


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in sorted(counts.items(), key=lambda item: -item[1]))


def _speed(result: RunResult) -> str | None:
    metrics = result.metrics
    if "realtime_factor" not in metrics:
        return None
    return (
        f"{metrics['realtime_factor']:,.1f} × realtime, {metrics['examples_per_s']:,.1f} examples/s, "
        f"{metrics['clips_per_s']:,.1f} clips/s"
    )


def _bottleneck(result: RunResult) -> str | None:
    stage, metrics = result.stats.bottleneck, result.metrics
    if stage is None or "realtime_factor" not in metrics:
        return None
    shares = ", ".join(
        f"{name} {metrics[f'{name}_busy_share']:.0%}"
        for name in ("decode", "copy", "compute", "write")
        if f"{name}_busy_share" in metrics
    )
    return f"{stage} (busy: {shares})"


def _advice(result: RunResult) -> str | None:
    return advise(result) if "realtime_factor" in result.metrics else None


def _repeats(result: RunResult) -> str | None:
    metrics = result.metrics
    if "repeats" not in metrics:
        return None
    mean, deviation = metrics[REPEATS], metrics["repeat_realtime_factor_std"]
    text = f"{metrics['repeats']:.0f} passes, {mean:,.1f} × realtime ± {deviation:,.1f} (standard deviation)"
    low, high = (metrics.get(end) for end in ENDS[REPEATS])
    if low is not None and high is not None:
        text = f"{metrics['repeats']:.0f} passes, {mean:,.1f} × realtime (95 %: {low:,.1f} to {high:,.1f})"
    if "energy_j" not in metrics:
        return f"{text}; energy can't be read here"
    return f"{text}, {metrics['joules_per_audio_hour']:,.0f} J an hour of audio"


def _device_alone(result: RunResult) -> str | None:
    metrics = result.metrics
    if "model_only_realtime_factor" not in metrics:
        return None
    text = f"by itself {metrics['model_only_realtime_factor']:,.0f} × realtime"
    if "model_only_tflops" not in metrics:  # the model's multiplications were not counted
        return text
    share = f"{metrics['model_only_share_of_peak']:.0%} of that of its matrix products"
    return f"{text}, {metrics['model_only_tflops']:,.1f} TFLOP/s, {share}"


def _batch_size(result: RunResult) -> str | None:
    curve: BatchSizeCurve | None = result.startup.batch_size_curve
    if curve is None:
        return None
    points = ", ".join(f"{point.batch_size} {point.examples_per_s:,.0f}/s" for point in curve.steps)
    return f"{curve.batch_size}: {curve.reason} ({points})"


def _times(result: RunResult) -> str | None:
    metrics = result.metrics
    if "startup_s" not in metrics:
        return None
    steps = ", ".join(
        f"{name} {metrics[f'startup_{name}_s']:.1f}" for name in _STARTUP if f"startup_{name}_s" in metrics
    )
    text = f"cold start {metrics['startup_s']:.1f} s ({steps})"
    return f"{text}, steady {metrics['steady_s']:.1f} s" if "steady_s" in metrics else text


def _memory(result: RunResult) -> str | None:
    metrics = result.metrics
    if "rss_peak_mib" not in metrics:
        return None
    text = f"{metrics['rss_peak_mib']:,.0f} MiB at most"
    names = {"decode_rss_peak_mib": "decoding", "writer_rss_peak_mib": "writing"}
    if others := [f"{metrics[name]:,.0f} MiB {work}" for name, work in names.items() if metrics.get(name)]:
        text += f" (+ {', '.join(others)})"
    if "device_memory_peak_mib" in metrics:
        text += f", {metrics['device_memory_peak_mib']:,.0f} MiB on the device"
    if "device_memory_reserved_mib" in metrics:
        text += f" ({metrics['device_memory_reserved_mib']:,.0f} MiB held)"
    return text


_ROWS: tuple[tuple[str, Callable[[RunResult], str | None]], ...] = (
    ("run", _status),
    ("failure", _failure),
    ("device", _device),
    ("actors", lambda result: result.stats.actors_summary),
    ("precision", _precision),
    ("model", _model),
    ("convolution", _convolution),
    ("weights", _weights),
    ("parity", _parity),
    ("clips", _clips),
    ("skipped", _skipped),
    ("warnings", _warned),
    ("ignored", _ignored),
    ("speed", _speed),
    ("bottleneck", _bottleneck),
    ("advice", _advice),
    ("repeated", _repeats),
    ("device", _device_alone),
    ("batch size", _batch_size),
    ("time", _times),
    ("memory", _memory),
)
"""Rows of a run's summary: label, and a function that describes it; None where there is nothing to describe."""

_HEADER = (
    "job",
    "run",
    "status",
    "× realtime",
    "95 %",
    "repeated",
    "95 %",
    "cold start s",
    "peak MiB",
    "max error",
    "min cosine",
    "bottleneck",
)

_LEFT_ALIGNED = ("run", "status", "bottleneck")

_COLUMNS = {
    "startup_s": "{:,.1f}",
    "rss_peak_mib": "{:,.1f}",
    "parity_rel_err": "{:.1e}",
    "parity_min_cosine": "{:.7f}",
}


def summarize_sweep(
    results: Sequence[RunResult], location: str, tracking: str | None, page: str | None = None, unreadable: int = 0
) -> str:
    """Summarize a sweep in a table of its jobs, in their order; for the other arguments see ``summarize``.

    Args:
        unreadable: jobs without a result that can be read.
    """
    lines = _table([_HEADER, *(_job(number, result) for number, result in enumerate(results))])
    failed = sum(result.status != "finished" for result in results)
    lines.append("")
    jobs = f"{len(results) + unreadable} jobs"
    without_result = f"{unreadable} without a readable result.json" if unreadable else ""
    problems = ", ".join(filter(None, (f"{failed} failed or stopped" if failed else "", without_result)))
    lines.append(f"{jobs}, {problems or 'all finished'}")
    lines.append(f"files   {location}")
    if tracking:
        lines.append(f"mlflow  {tracking}")
    if page:
        lines.append(f"        then {page}")
    if len(results) > 1:
        lines += ["", verdict(results)]
    return printable("\n".join(["", *lines]))


def _job(number: int, result: RunResult) -> tuple[str, ...]:
    """Return a job's row of the table."""
    metrics = result.metrics
    cells = [cell for metric in (FIRST_PASS, REPEATS) for cell in _speed_and_interval(result, metric)]
    cells += [form.format(metrics[key]) if key in metrics else "-" for key, form in _COLUMNS.items()]
    return (str(number), result.info.run_name, result.status, *cells, result.stats.bottleneck or "-")


def _speed_and_interval(result: RunResult, metric: str) -> tuple[str, str]:
    value = result.metrics.get(metric)
    if value is None:
        return "-", "-"
    ends = interval(value, [blocks_of(result, metric)]) if value else None
    return f"{value:,.1f}", f"{ends[0]:,.1f} to {ends[1]:,.1f}" if ends else "-"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Align cells in columns, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if name in _LEFT_ALIGNED else cell.rjust(width)
            for name, cell, width in zip(_HEADER, row, widths, strict=True)
        ).rstrip()
        for row in rows
    ]
