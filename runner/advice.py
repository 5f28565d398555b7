"""What limits a run and what to try, and which of a sweep's settings to use: pure decisions on result.json."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from runner.record import command_line

_STARVED = 0.2
_LITTLE_S = 2.0
"""A steady state shorter than this says little about a machine."""
BUSY = "other programs took"
OTHERS = 0.25
"""Other programs on so large a share of the processors make a figure unfit for comparison."""

_LIGHTER = 0.9
"""A run within the fastest one's spread is preferred if it takes so little of its memory."""

Result = Mapping[str, Any]


def advise(result: Result) -> str | None:
    """What limited a run, and what to try; None where there is nothing to say.

    Args:
        result: a finished run's result.json.
    """
    stage = result.get("bottleneck")
    if stage is None:
        return None
    metrics, resolved = result["metrics"], result.get("resolved", {})
    device = result["device"]["effective"]
    name = {"cpu": "CPU", "gpu": "GPU", "metal": "Metal GPU"}[device]
    if metrics.get("steady_s", math.inf) < _LITTLE_S:
        return f"{stage}-bound, but the run took only {metrics['steady_s']:.1f} s: embed more clips to learn more"
    if stage == "decode":
        workers = resolved.get("memory.decode_workers", "?")
        more = "a copy of the data set as 16 kHz mono WAV or on a local disk"
        if result["config"]["memory"]["name"] == "conservative":
            more = f"memory=balanced, which decodes on more cores, or {more}"
        return f"decode-bound: {workers} decode processes for 1 {name}; try {more}"
    if stage == "copy":
        pinned = "" if resolved.get("memory.pinned", True) else ", and page-locked memory (it was refused: ulimit -l)"
        return f"copy-bound: the bus to the {name} is full; try a larger memory.batch_size{pinned}"
    if stage == "write":
        return "write-bound: try output.dir on a faster disk, output.compression=none, or fewer output.formats"
    if device == "cpu":
        precision = result["precision"]["effective"]
        if precision == "float32" and result["config"]["precision"]["name"] != "auto":
            return "compute-bound, as it should be; precision=auto takes bfloat16 where the CPU multiplies it natively"
        return "compute-bound: the CPU is used in full; a GPU would be faster"
    starved = max((value for key, value in metrics.items() if key.endswith("_starved_share")), default=0.0)
    if starved > _STARVED:
        return f"compute-bound, but lanes waited {starved:.0%} of the time for batches; try a larger memory.queue_depth"
    faster = "" if result["config"]["precision"]["name"] == "auto" else "; precision=auto takes the fastest format"
    return f"compute-bound: the {name} is used in full{faster}"


def spread(result: Result) -> float | None:
    """One standard deviation of a run's × realtime: over repeated passes, else over windows of the run."""
    metrics = result.get("metrics", {})
    for key in ("repeat_audio_x_realtime_std", "window_audio_x_realtime_std"):
        if key in metrics:
            return float(metrics[key])
    return None


def speed(result: Result) -> float | None:
    """A run's × realtime: the mean of repeated passes where there are any, else of the run itself."""
    metrics = result.get("metrics", {})
    found = metrics.get("repeat_audio_x_realtime_mean", metrics.get("audio_x_realtime"))
    return None if found is None else float(found)


def setting(result: Result) -> tuple[str, str, str]:
    """Device and precision in effect, and memory policy: what a sweep's pictures group by."""
    config = result["config"]
    device = (result.get("device") or {}).get("effective", config["device"]["name"])
    precision = (result.get("precision") or {}).get("effective", config["precision"]["name"])
    return str(device), str(config["memory"]["name"]), str(precision)


def trouble(result: Result, reference: Result | None = None) -> list[str]:
    """Why a run's speed must not be ranked beside the reference's; empty where it may be."""
    found = []
    if result["status"] != "finished":
        found.append(result["status"])
    if speed(result) is None:
        found.append("no throughput")
    parity = result.get("parity")
    if parity is not None and not parity["passed"]:
        found.append("failed parity")
    load = result.get("metrics", {}).get("others_cpu_share", 0.0)
    if load > OTHERS:
        found.append(f"{BUSY} {load:.0%} of the processors")
    if (result.get("device") or {}).get("fallback_reason"):
        found.append(f"{result['config']['device']['name']} was absent: it ran on the CPU")
    if reference is not None:
        if (result.get("dataset") or {}).get("digest") != (reference.get("dataset") or {}).get("digest"):
            found.append("another data set")
        if (result.get("weights") or {}).get("checksum") != (reference.get("weights") or {}).get("checksum"):
            found.append("other weights")
    return found


def are_parts(results: Sequence[Result]) -> bool:
    """Whether a sweep's jobs are parts of one data set, which are no alternatives to choose from."""
    partitions = {result["config"].get("dataset", {}).get("partition") for result in results}
    return len(partitions) == len(results) > 1


def rankable(results: Sequence[Result]) -> list[Result]:
    """The runs that may be ranked; where all were made on a busy machine, those that have no other trouble."""
    if are_parts(results):
        return []
    found = [(result, trouble(result)) for result in results]
    fit = [result for result, why in found if not why]
    return fit or [result for result, why in found if len(why) == 1 and why[0].startswith(BUSY)]


def baseline(results: Sequence[Result]) -> Result | None:
    """What speed-ups are counted from: the fastest CPU run in float32, else the slowest run; None of none."""
    fit = rankable(results)
    if not fit:
        return None
    on_cpu = [result for result in fit if setting(result)[0] == "cpu" and setting(result)[2] == "float32"]
    return max(on_cpu, key=_speed) if on_cpu else min(fit, key=_speed)


def best(results: Sequence[Result]) -> Result | None:
    """The fastest run that may be ranked, or one within its spread that takes clearly less memory."""
    fit = rankable(results)
    if not fit:
        return None
    fastest = max(fit, key=_speed)
    margin = spread(fastest) or 0.0
    lighter = _LIGHTER * _memory(fastest)
    equal = [result for result in fit if _speed(result) >= _speed(fastest) - margin and _memory(result) <= lighter]
    return min(equal, key=_memory) if equal else fastest


def verdict(results: Sequence[Result]) -> str:
    """A sweep in one sentence, with the command that uses its best setting, or puts its parts together."""
    if are_parts(results):
        if any(result["status"] != "finished" for result in results):
            return "Its jobs are parts of one data set, and not all are finished: give the same command again."
        places = shlex.join([str(result["run_dir"]) for result in results])
        return f"Its jobs are parts of one data set. Put them together: python -m runner.merge {places} --output FOLDER"
    chosen = best(results)
    if chosen is None:
        return "No run can be recommended: none finished with a throughput and correct numbers."
    fastest = max(rankable(results), key=_speed)
    words = [f"{chosen['run_name']} is the fastest: {_speed(chosen):,.0f} × realtime{_plus_minus(chosen)}"]
    if chosen is not fastest:
        less = f"{fastest['run_name']} is no faster than its spread ({_speed(fastest):,.0f} ×) and takes more memory"
        words = [f"Use {chosen['run_name']}: {_speed(chosen):,.0f} × realtime{_plus_minus(chosen)}; {less}"]
    base = baseline(results)
    if base is not None and base is not chosen:
        words.append(f"{_speed(chosen) / _speed(base):.2f} × {base['run_name']}")
    if stage := chosen.get("bottleneck"):
        words.append(f"limited by {stage}")
    if parity := chosen.get("parity"):
        passed = "its numbers passed the parity gate" if parity["passed"] else "its numbers FAILED the parity gate"
        words.append(f"{passed} (error {chosen['metrics'].get('parity_rel_err', 0.0):.1e} of the largest value)")
    if busy := trouble(chosen):
        words.append(f"but {busy[0]}: measure again when the machine is idle")
    return f"{', '.join(words)}. Use it: {command(chosen)}"


def objective(result: Result) -> float:
    """What ``experiment=tune`` maximises: × realtime; 0 where parity failed or the host's memory ceiling was passed."""
    from runner.devices import DeviceType
    from runner.memory import ceiling_mib

    ceiling = ceiling_mib(result["config"]["memory"]["host_memory_mib"], DeviceType(setting(result)[0]))
    parity = result.get("parity")
    if (parity is not None and not parity["passed"]) or result["metrics"]["rss_peak_mib"] > (ceiling or math.inf):
        return 0.0
    return _speed(result)


def command(result: Result) -> str:
    """The command that repeats a run by itself, into a new folder."""
    return command_line(result.get("overrides", []))


def _speed(result: Result) -> float:
    return speed(result) or 0.0


def _memory(result: Result) -> float:
    return float(result["metrics"].get("rss_peak_mib", math.inf))


def _plus_minus(result: Result) -> str:
    deviation = spread(result)
    return "" if deviation is None else f" ± {deviation / max(_speed(result), 1e-9):.0%}"
