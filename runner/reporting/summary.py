"""What a person reads when a run or a sweep is over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from runner.core.printable import printable
from runner.reporting.advice import advise
from runner.reporting.comparability import FIRST_PASS, REPEATS
from runner.reporting.intervals import ENDS, blocks_of, interval
from runner.reporting.verdict import verdict

_COLD_START = ("import", "device", "weights", "calibration", "compile", "batch_size", "parity", "pin")


def summarise(
    result: Mapping[str, Any],
    place: str,
    tracking: str | None,
    resume: str | None = None,
    page: str | None = None,
) -> str:
    """The summary of one run.

    Args:
        result: its result.json.
        place: where its files are, a folder or a URL.
        tracking: the line on MLflow; None if the run is not tracked.
        resume: the command that goes on with it; None if there is nothing to go on with.
        page: its page in the MLflow UI.
    """
    lines = [("run", f"{result['run_name']}: {result['status']}")]
    if failure := result.get("failure"):
        lines.append(("failure", str(failure["message"])))
    if device := result.get("device"):
        lines.append(("device", f"{device['effective']} ({device['name']}): {device['reason']}"))
    if cluster := result.get("cluster"):
        lines.append(("actors", str(cluster)))
    if precision := result.get("precision"):
        lines.append(("precision", f"{precision['effective']}: {precision['reason']}"))
    if model := result.get("model"):
        lines.append(("convolution", f"{model['conv']['effective']}: {model['conv']['reason']}"))
    if (weights := result.get("weights")) and "checksum" in weights:
        meaning = " (meaningless embeddings)" if weights["is_random"] else ""
        smoke = ", smoke test passed" if weights.get("smoke") else ""
        lines.append(("weights", f"{weights['source']}{meaning}, sha256 {weights['checksum'][:12]}{smoke}"))
    metrics = result.get("metrics", {})
    if parity := result.get("parity"):
        lines.append(("parity", _parity(parity, metrics)))
    if "examples" in metrics:
        lines += _counts(result, metrics)
    if "realtime_factor" in metrics:
        lines.append(
            (
                "speed",
                f"{metrics['realtime_factor']:,.1f} × realtime, {metrics['examples_per_s']:,.1f} examples/s, "
                f"{metrics['clips_per_s']:,.1f} clips/s",
            )
        )
        if stage := result.get("bottleneck"):
            lines.append(("bottleneck", _bottleneck(stage, metrics)))
        if advice := advise(result):
            lines.append(("advice", advice))
    if "repeats" in metrics:
        lines.append(("repeated", _repeats(metrics)))
    if "model_only_realtime_factor" in metrics:
        lines.append(("device", _device_alone(metrics)))
    if curve := result.get("batch_size_curve"):
        lines.append(("batch size", f"{curve['batch_size']}: {_curve(curve)}"))
    if "startup_s" in metrics:
        lines.append(("time", _times(metrics)))
    if "rss_peak_mib" in metrics:
        lines.append(("memory", _memory(metrics)))
    lines.append(("files", place))
    if resume:
        lines.append(("to go on", resume))
    if tracking:
        lines.append(("mlflow", tracking))
    if page:
        lines.append(("", f"then {page}"))
    return "\n" + "\n".join(f"{name:>11}  {printable(text)}" for name, text in lines)


def _parity(parity: Mapping[str, Any], metrics: Mapping[str, float]) -> str:
    if "parity_rel_err" not in metrics:
        return f"FAILED: {', '.join(parity['misses'])}"
    text = (
        f"max error {metrics['parity_rel_err']:.1e} of the largest value, min cosine "
        f"{metrics['parity_min_cosine']:.7f}, against the reference in float64"
    )
    return text if parity["passed"] else f"FAILED: {text} ({', '.join(parity['misses'])})"


def _counts(result: Mapping[str, Any], metrics: Mapping[str, float]) -> list[tuple[str, str]]:
    total = result["dataset"]["clips"]
    embedded, skipped = int(metrics["clips_embedded"]), int(metrics["clips_skipped"])
    text = f"{embedded:,} of {total:,} embedded ({int(metrics['examples']):,} examples, {metrics['audio_s']:,.0f} s)"
    if padded := int(metrics["clips_padded"]):
        text += f", {padded:,} of them padded to one example"
    if skipped:
        text += f", {skipped:,} skipped"
    if left := total - embedded - skipped:
        text += f", {left:,} not done"
    lines = [("clips", text)]
    if counted := _counted(result.get("skipped", {})):
        lines.append(("skipped", f"{counted} (see clips.parquet)"))
    if counted := _counted(result.get("noted", {})):
        lines.append(("noted", f"{counted} (see clips.parquet)"))
    if ignored := result["dataset"]["ignored"]:
        lines.append(("ignored", f"files that are not clips: {_counted(ignored)}"))
    return lines


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in sorted(counts.items(), key=lambda item: -item[1]))


def _times(metrics: Mapping[str, float]) -> str:
    parts = ", ".join(
        f"{name} {metrics[f'startup_{name}_s']:.1f}" for name in _COLD_START if f"startup_{name}_s" in metrics
    )
    text = f"cold start {metrics['startup_s']:.1f} s ({parts})"
    return f"{text}, steady {metrics['steady_s']:.1f} s" if "steady_s" in metrics else text


def _bottleneck(stage: str, metrics: Mapping[str, float]) -> str:
    shares = ", ".join(
        f"{name} {metrics[f'{name}_busy_share']:.0%}"
        for name in ("decode", "copy", "compute", "write")
        if f"{name}_busy_share" in metrics
    )
    return f"{stage} (busy: {shares})"


def _repeats(metrics: Mapping[str, float]) -> str:
    mean, deviation = metrics[REPEATS], metrics["repeat_realtime_factor_std"]
    text = f"{metrics['repeats']:.0f} passes, {mean:,.1f} × realtime ± {deviation:,.1f} (standard deviation)"
    low, high = (metrics.get(end) for end in ENDS[REPEATS])
    if low is not None and high is not None:
        text = f"{metrics['repeats']:.0f} passes, {mean:,.1f} × realtime (95 %: {low:,.1f} to {high:,.1f})"
    if "energy_j" not in metrics:
        return f"{text}; energy can't be read here"
    return f"{text}, {metrics['joules_per_audio_hour']:,.0f} J an hour of audio"


def _device_alone(metrics: Mapping[str, float]) -> str:
    return (
        f"by itself {metrics['model_only_realtime_factor']:,.0f} × realtime, {metrics['model_only_tflops']:,.1f} "
        f"TFLOP/s, {metrics['model_only_share_of_peak']:.0%} of that of its matrix products"
    )


def _curve(curve: Mapping[str, Any]) -> str:
    steps = ", ".join(f"{step['batch_size']} {step['examples_per_s']:,.0f}/s" for step in curve["steps"])
    return f"{curve['reason']} ({steps})"


def _memory(metrics: Mapping[str, float]) -> str:
    text = f"{metrics['rss_peak_mib']:,.0f} MiB at most"
    if decoders := metrics.get("decode_rss_peak_mib"):
        text += f" (+ {decoders:,.0f} MiB decoding)"
    if "device_memory_peak_mib" in metrics:
        text += f", {metrics['device_memory_peak_mib']:,.0f} MiB on the device"
    if "device_memory_reserved_mib" in metrics:
        text += f" ({metrics['device_memory_reserved_mib']:,.0f} MiB held)"
    return text


def _speed_and_ends(result: Mapping[str, Any], metric: str) -> tuple[str, str]:
    value = result.get("metrics", {}).get(metric)
    ends = value and interval(value, [blocks_of(result, metric)])
    return "-" if value is None else f"{value:,.1f}", f"{ends[0]:,.1f} to {ends[1]:,.1f}" if ends else "-"


def summarise_sweep(
    results: Sequence[Mapping[str, Any]], place: str, tracking: str | None, page: str | None = None
) -> str:
    """The table of a sweep's jobs, in their order; for the arguments see ``summarise``."""
    header = (
        *("job", "run", "status", "× realtime", "95 %", "repeated", "95 %", "cold start s", "peak MiB", "max error"),
        *("min cosine", "bottleneck"),
    )
    rows: list[tuple[str, ...]] = [header]
    for number, result in enumerate(results):
        metrics = result.get("metrics", {})
        figures = [text for metric in (FIRST_PASS, REPEATS) for text in _speed_and_ends(result, metric)]
        figures += [
            form.format(metrics[key]) if key in metrics else "-"
            for key, form in (
                *(("startup_s", "{:,.1f}"), ("rss_peak_mib", "{:,.1f}")),
                *(("parity_rel_err", "{:.1e}"), ("parity_min_cosine", "{:.7f}")),
            )
        ]
        figures.append(str(result.get("bottleneck") or "-"))
        rows.append((str(number), str(result["run_name"]), str(result["status"]), *figures))
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = [
        "  ".join(
            cell.ljust(width) if column in (1, 2, len(header) - 1) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    failed = sum(result["status"] != "finished" for result in results)
    lines += [
        "",
        f"{len(results)} jobs, {failed} failed or stopped" if failed else f"{len(results)} jobs, all finished",
    ]
    lines.append(f"files   {place}")
    if tracking:
        lines.append(f"mlflow  {tracking}")
    if page:
        lines.append(f"        then {page}")
    if len(results) > 1:
        lines += ["", verdict(results)]
    return printable("\n".join(["", *lines]))
