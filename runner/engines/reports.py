"""A run's shards as the work of one process or of several, and the reports of it, which add up to one run's."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from runner.pipeline.messages import BatchTiming, PipelineStats, Progress

if TYPE_CHECKING:
    from runner.contract.result import Scalar, Startup
    from runner.dataset.clips import Clip
    from runner.output.remote.committer import RemoteCommitter
    from runner.output.rows import ClipRow
    from runner.output.state.journal import ShardEntry
    from runner.output.writer import CommitLog

_SHARED_OUT = ("memory.decode_workers", "memory.writer_processes", "memory.host_limit_mib", "threads.intra_op")
"""Values in effect of which each process of a run has a part."""


@dataclass(frozen=True)
class Work:
    """Shards to embed.

    Attributes:
        shards: their numbers, in order.
        clips: their clips, in order; None where none is ready yet, and more may come.
        count: number of the clips, about.
        commit_log: gets each committed shard.
        on_skip: called with every clip that is skipped; its error ends the run.
        forget_skipped: called with the number of skipped clips that will be skipped once more.
        remote: uploads each shard; None where the output is a folder.
        clips_before: clips that are done already, for the progress.
    """

    shards: Sequence[int]
    clips: Iterator[Clip | None]
    count: int
    commit_log: CommitLog
    on_skip: Callable[[ClipRow], None]
    forget_skipped: Callable[[int], None] = lambda count: None
    remote: RemoteCommitter | None = None
    clips_before: int = 0


@dataclass(frozen=True)
class EmbedReport:
    """One process's work so far.

    Attributes:
        stats: of its pipelines.
        resolved: values of the configuration that took effect in the meantime.
        cpu_s: processor time of it and its decode and writer processes, while it embedded.
        decode_s: seconds that its decode processes decoded, all together.
        decode_processes: how many it has.
        in_flight: batches that a replica has at a time.
        sums: metrics that add up over processes.
        most: metrics of which a run has the greatest.
    """

    stats: PipelineStats
    resolved: Mapping[str, Scalar] = field(default_factory=dict)
    cpu_s: float = 0.0
    decode_s: float = 0.0
    decode_processes: int = 0
    in_flight: int = 1
    sums: Mapping[str, float] = field(default_factory=dict)
    most: Mapping[str, float] = field(default_factory=dict)


def combined(reports: Sequence[EmbedReport]) -> EmbedReport:
    """Return the reports of a run's processes as one; what took effect is the first one's."""
    if len(reports) == 1:
        return reports[0]
    sums, most = Counter[str](), dict[str, float]()
    for report in reports:
        sums.update(report.sums)
        most |= {name: max(value, most.get(name, value)) for name, value in report.most.items()}
    return EmbedReport(
        stats=joined([report.stats for report in reports], range(len(reports))),
        resolved=reports[0].resolved,
        cpu_s=sum(report.cpu_s for report in reports),
        decode_s=sum(report.decode_s for report in reports),
        decode_processes=sum(report.decode_processes for report in reports),
        in_flight=max(report.in_flight for report in reports),
        sums=dict(sums),
        most=most,
    )


def joined(stats: Sequence[PipelineStats], first_replicas: Sequence[int]) -> PipelineStats:
    """Return the statistics of several pipelines of this machine as one pipeline's.

    Args:
        stats: of each.
        first_replicas: the number that its first replica gets.
    """
    if len(stats) == 1:
        return stats[0]
    began = min((own.started_at for own in stats if own.started_at), default=0.0)
    total = PipelineStats(started_at=began, results_at=max(own.results_at for own in stats), writers=0)
    for own, first in zip(stats, first_replicas, strict=True):
        _add_progress(total.progress, own.progress)
        total.timings += [_shifted(timing, first, own.started_at - total.started_at) for timing in own.timings]
        for number, wait_s in own.input_wait_s.items():
            total.input_wait_s[first + number] = total.input_wait_s.get(first + number, 0.0) + wait_s
        total.replica_failures += own.replica_failures
        total.cpu_s += own.cpu_s
        total.examples_done += own.examples_done
        total.writers += own.writers
        total.write_s += own.write_s
    total.timings.sort(key=lambda timing: timing.finished_s)
    return total


def _add_progress(total: Progress, own: Progress) -> None:
    for name in (count.name for count in dataclasses.fields(Progress)):
        value = getattr(own, name)
        if isinstance(value, dict):
            getattr(total, name).update(Counter(getattr(total, name)) + Counter(value))
        else:
            setattr(total, name, getattr(total, name) + value)


def _shifted(timing: BatchTiming, first_replica: int, later_s: float) -> BatchTiming:
    return BatchTiming(
        timing.replica + first_replica,
        timing.started_s + later_s,
        None if timing.copied_s is None else timing.copied_s + later_s,
        timing.finished_s + later_s,
        timing.examples,
    )


def progress_of(entries: Iterable[ShardEntry]) -> Progress:
    """Return the counts of committed shards."""
    total = Progress()
    for entry in entries:
        counts = entry.counts
        own = Progress(entry.clips, counts.embedded, counts.skipped, counts.warned, entry.examples, counts.audio_s)
        _add_progress(total, replace(own, padded=counts.padded, shards=1))
    return total


def joined_startups(startups: Sequence[Startup], requested: str, worst: int) -> Startup:
    """Return the startups of a run's processes, a device each, as one.

    Args:
        startups: in the order of the devices.
        requested: the configuration's device.
        worst: the one whose numbers are furthest from the reference's.
    """
    first, device = startups[0], startups[0].device
    resolved: dict[str, Scalar] = dict(first.resolved)
    for name in _SHARED_OUT:
        values = [startup.resolved.get(name) for startup in startups]
        if all(isinstance(value, int) for value in values):
            resolved[name] = sum(value for value in values if isinstance(value, int))
    resolved["device.index"] = ",".join(str(startup.resolved.get("device.index")) for startup in startups)
    if device is not None:
        reason = f"device.index=all: {len(startups)} of them, a process each"
        device = replace(device, requested=requested, count=len(startups), reason=reason)
    return replace(first, device=device, parity=startups[worst].parity, resolved=resolved)
