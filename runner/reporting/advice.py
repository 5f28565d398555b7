"""Advice on a run: what limits it, what to try, and the command that repeats it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from runner.config.command_line import command_line

if TYPE_CHECKING:
    from runner.contract.result import RunResult

_INPUT_WAIT = 0.2

_LITTLE_S = 2.0
"""A steady state shorter than this says little about a machine."""


def advise(result: RunResult) -> str | None:
    """Say what limited a run, and what to try; None where nothing was measured."""
    stage, startup = result.stats.bottleneck, result.startup
    if stage is None or startup.device is None or startup.precision is None:
        return None
    metrics, resolved, config = result.metrics, startup.resolved, result.info.config
    device = startup.device.effective
    name = {"cpu": "CPU", "gpu": "GPU", "metal": "Metal GPU"}[device]
    if metrics.get("steady_s", math.inf) < _LITTLE_S:
        return f"{stage}-bound, but the run took only {metrics['steady_s']:.1f} s: embed more clips to learn more"
    if stage == "decode":
        workers = resolved.get("memory.decode_workers", "?")
        more = "a copy of the data set as 16 kHz mono WAV or on a local disk"
        if config.memory.name == "conservative":
            more = f"memory=balanced, which decodes on more cores, or {more}"
        return f"decode-bound: {workers} decode processes for 1 {name}; try {more}"
    if stage == "copy":
        pinned = "" if resolved.get("memory.pinned", True) else ", and page-locked memory (it was refused: ulimit -l)"
        return f"copy-bound: the bus to the {name} is full; try a larger memory.batch_size{pinned}"
    if stage == "write":
        return (
            "write-bound: try output.dir on a faster disk, output.compression=none, fewer output.formats, or more "
            "memory.writer_processes"
        )
    if device == "cpu":
        is_exact = startup.precision.effective == "float32" and config.precision.name != "auto"
        if is_exact and "bfloat16" in config.model.spec.precisions:
            return "compute-bound; precision=auto takes bfloat16 where the CPU multiplies it natively"
        return "compute-bound: the CPU is used in full; a GPU would be faster"
    input_wait = max((value for key, value in metrics.items() if key.endswith("_input_wait_share")), default=0.0)
    if input_wait > _INPUT_WAIT:
        waited = f"replicas waited {input_wait:.0%} of the time for batches"
        return f"compute-bound, but {waited}; try a larger memory.queue_depth"
    faster = "" if config.precision.name == "auto" else "; precision=auto takes the fastest format"
    return f"compute-bound: the {name} is used in full{faster}"


def configuration_label(result: RunResult) -> tuple[str, str, str]:
    """Return device in effect, memory policy, precision in effect."""
    config, device, precision = result.info.config, result.startup.device, result.startup.precision
    return (
        device.effective if device else config.device.name,
        config.memory.name,
        precision.effective if precision else config.precision.name,
    )


def rerun_command(result: RunResult) -> str:
    """Return the command that repeats a run by itself, into a new folder."""
    overrides = [word for word in result.info.overrides if not word.lstrip("+").startswith("profile.round=")]
    return command_line(overrides)
