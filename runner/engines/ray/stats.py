"""Figures of many actors as one run's: speed, where the time went, who was there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from runner.core.events import warn
from runner.pipeline.messages import BatchTiming
from runner.profiling.metrics import bottleneck, share_of, throughput_series

if TYPE_CHECKING:
    from runner.core.events import Events

_OF_THE_RUN = ("device", "precision", "weights", "model", "resolved", "batch_size_curve")

_OF_AN_ACTOR = ("host", "node", "pid", "device", "precision", "parity", "clips", "examples", "audio_s")

_MEASURED = ("realtime_factor", "busy_shares", "input_wait_share", "bottleneck", "device_name")


def described_actors(actors: Sequence[Mapping[str, Any]]) -> str:
    """A run's actors in a line: how many on what, and on how many machines."""
    devices = Counter(each["device_name"] for each in actors)
    machines = len({each["node"] for each in actors})
    parts = ", ".join(f"{count} on {device}" for device, count in devices.most_common())
    return f"{parts}; {machines} machine{'s' * (machines > 1)}"


class ActorFigures:
    """Takes what actors tell of themselves, each known by machine and process.

    Args:
        events: told of what actors warn of.
        result: the run's; its ``warnings`` are added to.
    """

    def __init__(self, events: Events, result: dict[str, Any]) -> None:
        self._events, self._result = events, result
        self._actors: dict[tuple[str, int], dict[str, Any]] = {}
        self._examples_at: Counter[int] = Counter()
        """Examples by the second since the epoch in which they were told of."""

    @property
    def _span(self) -> tuple[float, float]:
        """When the first actor began, and the last one was heard of, in seconds since the epoch."""
        known = [each for each in self._actors.values() if "began" in each]
        return min((each["began"] for each in known), default=0.0), max((each["ended"] for each in known), default=0.0)

    @property
    def elapsed_s(self) -> float:
        """Seconds from the first session's first work to the last that was heard of."""
        began, ended = self._span
        return ended - began

    @property
    def audio_s(self) -> float:
        """Seconds of audio embedded."""
        return float(sum(each["audio_s"] for each in self._actors.values()))

    @property
    def examples_under_way(self) -> float:
        """Examples embedded of clips that are not finished."""
        return float(sum(each["under_way"] for each in self._actors.values()))

    def meet(self, about: Mapping[str, Any]) -> bool:
        """Take what an actor is; whether it is the first one."""
        counts = dict.fromkeys(("clips", "examples", "audio_s", "told_of", "under_way", "starved_s"), 0)
        device = about.get("device")
        name = f"{device['effective']} ({device['name']})" if device else None
        first = not self._actors
        self._actors[about["host"], about["pid"]] = {**about, **counts, "stages": {}, "device_name": name}
        self._warn(about)
        return first

    def take_shard(self, about: Mapping[str, Any], entry: Mapping[str, Any]) -> None:
        """Take a line of the journal that an actor gave."""
        known = self._actors[about["host"], about["pid"]]
        known["clips"] += entry["counts"]["embedded"]
        known["examples"] += entry["examples"]
        known["audio_s"] += entry["counts"]["audio_s"]

    def take_progress(self, about: Mapping[str, Any], told: Mapping[str, Any]) -> None:
        """Take how far an actor is, or what it gave at its end."""
        known = self._actors[about["host"], about["pid"]]
        if "began" in told:
            self._examples_at[int(told["ended"])] += told["examples"] - known["told_of"]
            known["told_of"] = told["examples"]
            known |= {key: value for key, value in told.items() if key not in ("examples", "warnings")}
        self._warn(told)

    def _warn(self, told: Mapping[str, Any]) -> None:
        for message in told.get("warnings", ()):
            if message not in self._result["warnings"]:
                warn(message, self._events, self._result)

    def fill(self) -> None:
        """Fill the run's result."""
        result, every = self._result, list(self._actors.values())
        result["metrics"] |= {"actors": float(len(every)), "nodes": float(len({each["node"] for each in every}))}
        if every:
            self._fill_from(every)
        seconds = self.elapsed_s
        if seconds > 0 and any(each["examples"] for each in every):
            result["metrics"]["steady_s"] = seconds
            self._fill_shares(every, seconds)
            self._fill_speed(every, seconds)
            result["series"] = self._over_time()
            result["steady_started_at"] = self._span[0]
        result["actors"] = [{key: each.get(key) for key in (*_OF_AN_ACTOR, *_MEASURED)} for each in every]
        if every:
            result["cluster"] = described_actors(every)
        if len(names := {each["device_name"] for each in every} - {None}) > 1:
            warn(f"actors ran on different devices: {', '.join(sorted(names))}", self._events, result)

    def _fill_from(self, every: list[dict[str, Any]]) -> None:
        """What the run says of itself: the first actor's, the slowest one's start, the worst one's parity."""
        result = self._result
        result.update({key: every[0][key] for key in _OF_THE_RUN if key in every[0]})
        slowest = max(every, key=lambda each: each["metrics"].get("startup_s", 0.0))
        worst = max(every, key=lambda each: each["metrics"].get("parity_rel_err", 0.0))
        if "parity" in worst:
            result["parity"] = worst["parity"]
        for of, start in ((slowest, "startup"), (worst, "parity_")):
            result["metrics"] |= {key: value for key, value in of["metrics"].items() if key.startswith(start)}
        result["metrics"]["parity_canaries"] = float(sum(each.get("canaries", 0) for each in every))

    def _fill_speed(self, every: list[dict[str, Any]], seconds: float) -> None:
        metrics = self._result["metrics"]
        for name, key in (("realtime_factor", "audio_s"), ("examples_per_s", "examples"), ("clips_per_s", "clips")):
            metrics[name] = sum(each[key] for each in every) / seconds
        nodes: Counter[str] = Counter()
        for number, each in enumerate(every):
            if each.get("ended", 0.0) > each.get("began", 0.0):
                each["realtime_factor"] = each["audio_s"] / (each["ended"] - each["began"])
                metrics[f"actor{number}_realtime_factor"] = each["realtime_factor"]
            metrics[f"replica{number}_input_wait_share"] = each["input_wait_share"]
            nodes[each["node"]] += each["audio_s"]
        for number, audio_s in enumerate(nodes.values()):
            metrics[f"node{number}_realtime_factor"] = audio_s / seconds

    def _over_time(self) -> list[dict[str, float]]:
        """Throughput of all actors together, in windows of whole seconds in which something was told."""
        began = self._span[0]
        timings = [
            BatchTiming(0, 0.0, None, min(max(second + 1 - began, 0.0), self.elapsed_s), examples)
            for second, examples in sorted(self._examples_at.items())
            if examples
        ]
        return throughput_series(timings, self.audio_s)

    def _fill_shares(self, every: list[dict[str, Any]], seconds: float) -> None:
        """The share of the run in which each stage was busy, on average over the actors that have told."""
        shares = {}
        for stage in dict.fromkeys(stage for each in every for stage in each["stages"]):
            busy = [each["stages"][stage] for each in every if stage in each["stages"]]
            shares[stage] = share_of(sum(busy) / len(busy), seconds)
        for each in every:
            each["busy_shares"] = {stage: share_of(busy, seconds) for stage, busy in each["stages"].items()}
            each["input_wait_share"] = share_of(each["starved_s"], seconds)
            each["bottleneck"] = bottleneck(each["busy_shares"])
        self._result["metrics"] |= {f"{stage}_busy_share": share for stage, share in shares.items()}
        self._result["bottleneck"] = bottleneck(shares)
