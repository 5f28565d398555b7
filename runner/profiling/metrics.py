"""Metrics of a run from its raw timings; no clock is read here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from runner.core.files import atomic

if TYPE_CHECKING:
    from runner.pipeline.messages import BatchTiming, PipelineStats

Span = tuple[float, float]
"""Start and end, in seconds."""

MAX_WINDOWS = 200
"""Most windows of a throughput series."""

_SPREAD_WINDOWS = 10


def steady_metrics(stats: PipelineStats) -> dict[str, float]:
    """Return throughput over the steady state, from a ready session to the last result on the host, and latencies."""
    progress, timings = stats.progress, stats.timings
    steady = stats.steady_s
    metrics = {
        "steady_s": steady,
        "steady_cpu_s": stats.cpu_s,
        "clips_embedded": float(progress.embedded),
        "clips_skipped": float(sum(progress.skipped.values())),
        "clips_padded": float(progress.padded),
        "examples": float(progress.examples),
        "audio_s": progress.audio_s,
        "batches": float(len(timings)),
    }
    if steady > 0 and timings:
        metrics |= {
            "realtime_factor": progress.audio_s / steady,
            "examples_per_s": progress.examples / steady,
            "clips_per_s": progress.clips / steady,
        }
        p50, p95, p99 = np.percentile([1000 * timing.duration_s for timing in timings], [50, 95, 99])
        metrics |= {"batch_ms_p50": float(p50), "batch_ms_p95": float(p95), "batch_ms_p99": float(p99)}
    return metrics


def window_spread(timings: Sequence[BatchTiming], audio_s: float) -> dict[str, float]:
    """Return the standard deviation of × realtime over ten windows of equally many batches, without the first
    (warm-up).

    Args:
        timings: of each batch; fewer than thirty have no spread.
        audio_s: seconds of audio in all batches together.
    """
    if len(timings) < 3 * _SPREAD_WINDOWS:
        return {}
    speeds = [window["realtime_factor"] for window in throughput_series(timings, audio_s, _SPREAD_WINDOWS)[1:]]
    return {"window_realtime_factor_std": float(np.std(speeds, ddof=1))}


def write_batches(path: Path, timings: Sequence[BatchTiming]) -> None:
    """Write the raw timings as a Parquet file: a row for each batch, in seconds since the steady state began."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    seconds = [(name, pa.float64()) for name in ("started_s", "copied_s", "finished_s")]
    schema = pa.schema([("replica", pa.int32()), *seconds, ("examples", pa.int32())])
    columns = {name: [getattr(timing, name) for timing in timings] for name in schema.names}
    with atomic(path) as temporary:
        pq.write_table(pa.Table.from_pydict(columns, schema=schema), temporary)


def stage_shares(stats: PipelineStats, decode_s: float, workers: int) -> dict[str, float]:
    """Return the share of the steady state in which each stage was busy, 0 to 1; see ``stage_seconds``."""
    steady = stats.steady_s
    if steady <= 0 or not stats.timings:
        return {}
    return {stage: share_of(busy, steady) for stage, busy in stage_seconds(stats, decode_s, workers).items()}


def share_of(busy_s: float, seconds: float) -> float:
    """Return ``busy_s`` as a share of ``seconds``, cut to 0..1.

    Writers, and decoders of clips without embeddings, work beyond the last result.
    """
    return min(1.0, max(0.0, busy_s / seconds)) if seconds > 0 else 0.0


def stage_seconds(stats: PipelineStats, decode_s: float, workers: int) -> dict[str, float]:
    """Return the seconds that each stage was busy.

    ``decode`` is averaged over the decode processes, and ``write``, making files of complete shards, over the writers.
    ``copy`` (to a device with memory of its own), ``compute`` and ``replica`` (either) are the time in which a replica
    had at least one batch in that stage, averaged over the replicas.

    Args:
        stats: of a pipeline that has run.
        decode_s: seconds that decode processes decoded, all together.
        workers: decode processes.
    """
    shared = {"decode": decode_s / workers, "write": stats.write_s / stats.writers}
    return {**shared, **replica_seconds(stats.timings)}


_STAGE_SPANS: dict[str, Callable[[BatchTiming], Span]] = {
    "copy": lambda batch: (batch.started_s, batch.started_s if batch.copied_s is None else batch.copied_s),
    "compute": lambda batch: (batch.started_s if batch.copied_s is None else batch.copied_s, batch.finished_s),
    "replica": lambda batch: (batch.started_s, batch.finished_s),
}
"""Time in which a batch keeps a stage of its replica busy."""


def replica_seconds(timings: Sequence[BatchTiming]) -> dict[str, float]:
    """Return the seconds of ``copy``, ``compute`` and ``replica``, see ``stage_seconds``; 0 without timings."""
    replicas = {timing.replica for timing in timings}

    def mean(span: Callable[[BatchTiming], Span]) -> float:
        spans = [[span(batch) for batch in timings if batch.replica == replica] for replica in replicas]
        return sum(map(union_length, spans)) / max(len(replicas), 1)

    return {stage: mean(span) for stage, span in _STAGE_SPANS.items()}


def input_wait_shares(stats: PipelineStats, threads: int) -> dict[str, float]:
    """Return the share of the steady state in which a replica's thread waited for a batch, on average, by replica.

    Args:
        stats: of a pipeline that has run.
        threads: of each replica.
    """
    steady = stats.steady_s
    waits = stats.input_wait_s.items()
    return {f"replica{number}_input_wait_share": share_of(wait_s / threads, steady) for number, wait_s in waits}


def bottleneck(shares: Mapping[str, float]) -> str | None:
    """Return the busiest stage: decode, copy, compute or write; None where nothing was measured."""
    stages = [stage for stage in ("compute", "decode", "copy", "write") if stage in shares]
    return max(stages, key=lambda stage: shares[stage]) if stages else None


def union_length(spans: Sequence[Span]) -> float:
    """Return the length of the union of spans."""
    total, covered_to = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, covered_to))
        covered_to = max(covered_to, end)
    return total


def throughput_series(
    timings: Sequence[BatchTiming], audio_s: float, most: int = MAX_WINDOWS
) -> list[dict[str, float]]:
    """Return throughput in windows of equally many batches.

    Args:
        timings: of each batch.
        audio_s: seconds of audio in all batches together; a batch has its share of the examples of it.
        most: most windows.
    """
    if not timings:
        return []
    total = sum(timing.examples for timing in timings)
    per_window = -(-len(timings) // most)
    windows = []
    previous = 0.0
    timings = sorted(timings, key=lambda timing: timing.finished_s)
    for start in range(0, len(timings), per_window):
        window = timings[start : start + per_window]
        examples, end = sum(timing.examples for timing in window), window[-1].finished_s
        seconds = max(end - previous, 1e-9)
        windows.append(
            {
                "t_s": end,
                "examples_per_s": examples / seconds,
                "realtime_factor": examples / total * audio_s / seconds,
            }
        )
        previous = end
    return windows
