"""Statistics of many actors as one run's: speed, where the time went, which actors there were."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from runner.contract.result import ActorSummary, RunStats, Startup
from runner.engines.ray.messages import ActorEnd
from runner.pipeline.messages import BatchTiming
from runner.profiling.metrics import bottleneck, share_of, throughput_series

if TYPE_CHECKING:
    from runner.contract.events import Events
    from runner.contract.result import Points
    from runner.engines.ray.messages import ActorProgress, ActorReport
    from runner.output.state.journal import ShardEntry


@dataclass
class _Actor:
    """An actor's report and what it has embedded since; ``examples_seen`` are those of its last progress."""

    report: ActorReport
    clips: int = 0
    examples: int = 0
    audio_s: float = 0.0
    progress: ActorProgress | None = None
    examples_seen: int = 0
    end: ActorEnd = field(default_factory=ActorEnd)

    @property
    def device_name(self) -> str | None:
        """Kind and name of its device."""
        device = self.report.startup.device
        return device.label if device else None

    @property
    def realtime_factor(self) -> float | None:
        """Seconds of audio a second, while it was at work."""
        if self.progress is None or self.progress.ended <= self.progress.began:
            return None
        return self.audio_s / (self.progress.ended - self.progress.began)

    def summary(self, seconds: float) -> ActorSummary:
        """Describe it in a run of ``seconds``."""
        startup, busy = self.report.startup, {}
        if seconds > 0:
            busy = {stage: share_of(busy_s, seconds) for stage, busy_s in self.end.stages.items()}
        return ActorSummary(
            host=self.report.host,
            node=self.report.node,
            pid=self.report.pid,
            device=startup.device,
            device_name=self.device_name,
            precision=startup.precision,
            parity=startup.parity,
            clips=self.clips,
            examples=self.examples,
            audio_s=self.audio_s,
            realtime_factor=self.realtime_factor,
            busy_shares=busy,
            input_wait_share=share_of(self.end.input_wait_s, seconds) if seconds > 0 else None,
            bottleneck=bottleneck(busy),
        )


class ActorStats:
    """Adds up the reports of actors, each known by machine and process.

    Args:
        events: gets the actors' warnings.
    """

    def __init__(self, events: Events) -> None:
        self._events = events
        self._actors: dict[tuple[str, int], _Actor] = {}
        self._examples_at: Counter[int] = Counter()  # by the second since the epoch in which they were reported

    @property
    def _span(self) -> tuple[float, float]:
        """When the first actor began, and the last result of any, in seconds since the epoch."""
        known = [actor.progress for actor in self._actors.values() if actor.progress]
        return min((each.began for each in known), default=0.0), max((each.ended for each in known), default=0.0)

    @property
    def elapsed_s(self) -> float:
        """Seconds from the first actor's beginning to the last result of any."""
        began, ended = self._span
        return ended - began

    @property
    def audio_s(self) -> float:
        """Seconds of audio embedded."""
        return float(sum(actor.audio_s for actor in self._actors.values()))

    @property
    def examples_under_way(self) -> float:
        """Examples embedded of clips that are not finished."""
        return float(sum(actor.progress.under_way for actor in self._actors.values() if actor.progress))

    def add_actor(self, report: ActorReport) -> bool:
        """Add an actor that is ready; return whether it is the first one."""
        first = not self._actors
        self._actors[report.host, report.pid] = _Actor(report)
        self._warn(report.warnings)
        return first

    def add_shard(self, report: ActorReport, entry: ShardEntry) -> None:
        """Add a shard that an actor has embedded."""
        actor = self._actors[report.host, report.pid]
        actor.clips += entry.counts.embedded
        actor.examples += entry.examples
        actor.audio_s += entry.counts.audio_s

    def add_progress(self, report: ActorReport, progress: ActorProgress | None) -> None:
        """Note how far an actor is."""
        actor = self._actors[report.host, report.pid]
        if progress:
            self._examples_at[int(progress.ended)] += progress.examples - actor.examples_seen
            actor.progress, actor.examples_seen = progress, progress.examples

    def add_end(self, report: ActorReport, end: ActorEnd) -> None:
        """Note an actor's last report."""
        self.add_progress(report, end.progress)
        self._actors[report.host, report.pid].end = end
        self._warn(end.warnings)

    def startup(self) -> Startup:
        """Describe the run's startup: the first actor's, with the parity verdict of the worst one."""
        actors = list(self._actors.values())
        if not actors:
            return Startup()
        parity = self._worst_parity(actors).report.startup.parity
        return replace(actors[0].report.startup, parity=parity)

    def metrics(self) -> dict[str, float]:
        """Collect the run's metrics: speeds are added up, shares are averages, of startup and parity the worst."""
        actors, seconds = list(self._actors.values()), self.elapsed_s
        metrics = {"actors": float(len(actors)), "nodes": float(len({actor.report.node for actor in actors}))}
        if actors:
            slowest = max(actors, key=lambda actor: actor.report.metrics.get("startup_s", 0.0))
            for actor, start in ((slowest, "startup"), (self._worst_parity(actors), "parity_")):
                metrics |= {key: value for key, value in actor.report.metrics.items() if key.startswith(start)}
            metrics["parity_canaries"] = float(sum(actor.end.canaries for actor in actors))
        if self._is_measured:
            metrics["steady_s"] = seconds
            metrics |= {f"{stage}_busy_share": share for stage, share in self._stage_shares().items()}
            metrics |= _speeds(actors, seconds)
        return metrics

    def stats(self) -> RunStats:
        """Collect the run's statistics; clips skipped and warnings are the journal's to know."""
        actors, seconds = list(self._actors.values()), self.elapsed_s
        stats = RunStats(
            actors=tuple(actor.summary(seconds if self._is_measured else 0.0) for actor in actors),
            actors_summary=describe_actors(actors) if actors else None,
        )
        names = {actor.device_name for actor in actors if actor.device_name}
        if len(names) > 1:
            self._events.warn(f"actors ran on different devices: {', '.join(sorted(names))}")
        if not self._is_measured:
            return stats
        return replace(
            stats,
            bottleneck=bottleneck(self._stage_shares()),
            throughput_series=self._throughput_series(),
            steady_started_at=self._span[0],
        )

    @property
    def _is_measured(self) -> bool:
        return self.elapsed_s > 0 and any(actor.examples for actor in self._actors.values())

    def _warn(self, warnings: Sequence[str]) -> None:
        for message in warnings:
            self._events.warn(message)

    @staticmethod
    def _worst_parity(actors: Sequence[_Actor]) -> _Actor:
        return max(actors, key=lambda actor: actor.report.metrics.get("parity_rel_err", 0.0))

    def _throughput_series(self) -> Points:
        """Throughput of all actors together, in windows of whole seconds in which any progress was reported."""
        began = self._span[0]
        timings = [
            BatchTiming(0, 0.0, None, min(max(second + 1 - began, 0.0), self.elapsed_s), examples)
            for second, examples in sorted(self._examples_at.items())
            if examples
        ]
        return throughput_series(timings, self.audio_s)

    def _stage_shares(self) -> Mapping[str, float]:
        """The share of the run in which each stage was busy, on average over the actors that reported it."""
        busy: dict[str, list[float]] = {}
        for actor in self._actors.values():
            for stage, seconds in actor.end.stages.items():
                busy.setdefault(stage, []).append(seconds)
        return {stage: share_of(sum(values) / len(values), self.elapsed_s) for stage, values in busy.items()}


def _speeds(actors: Sequence[_Actor], seconds: float) -> dict[str, float]:
    """Speeds of the run, of each actor while it was at work, and of each machine."""
    metrics = {
        "realtime_factor": sum(actor.audio_s for actor in actors) / seconds,
        "examples_per_s": sum(actor.examples for actor in actors) / seconds,
        "clips_per_s": sum(actor.clips for actor in actors) / seconds,
    }
    nodes: dict[str, float] = {}
    for number, actor in enumerate(actors):
        if (speed := actor.realtime_factor) is not None:
            metrics[f"actor{number}_realtime_factor"] = speed
        metrics[f"replica{number}_input_wait_share"] = share_of(actor.end.input_wait_s, seconds)
        nodes[actor.report.node] = nodes.get(actor.report.node, 0.0) + actor.audio_s
    return metrics | {
        f"node{number}_realtime_factor": audio_s / seconds for number, audio_s in enumerate(nodes.values())
    }


def describe_actors(actors: Sequence[_Actor]) -> str:
    """Describe a run's actors in a line: how many on which devices, and on how many machines."""
    devices = Counter(actor.device_name for actor in actors)
    machines = len({actor.report.node for actor in actors})
    parts = ", ".join(f"{count} on {device}" for device, count in devices.most_common())
    return f"{parts}; {machines} machine{'s' * (machines > 1)}"
