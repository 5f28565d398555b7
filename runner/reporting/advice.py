"""What limits a run and what to try, and what a tuning sweep seeks: pure decisions on result.json."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from runner.config.command_line import command_line

_STARVED = 0.2

_LITTLE_S = 2.0
"""A steady state shorter than this says little about a machine."""

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
            return "compute-bound; precision=auto takes bfloat16 where the CPU multiplies it natively"
        return "compute-bound: the CPU is used in full; a GPU would be faster"
    starved = max((value for key, value in metrics.items() if key.endswith("_input_wait_share")), default=0.0)
    if starved > _STARVED:
        return (
            f"compute-bound, but replicas waited {starved:.0%} of the time for batches; try a larger memory.queue_depth"
        )
    faster = "" if result["config"]["precision"]["name"] == "auto" else "; precision=auto takes the fastest format"
    return f"compute-bound: the {name} is used in full{faster}"


def setting(result: Result) -> tuple[str, str, str]:
    """Device in effect, memory policy, precision in effect."""
    config = result["config"]
    device = (result.get("device") or {}).get("effective", config["device"]["name"])
    precision = (result.get("precision") or {}).get("effective", config["precision"]["name"])
    return str(device), str(config["memory"]["name"]), str(precision)


def command(result: Result) -> str:
    """The command that repeats a run by itself, into a new folder."""
    overrides = [each for each in result.get("overrides", []) if not each.lstrip("+").startswith("profile.round=")]
    return command_line(overrides)
