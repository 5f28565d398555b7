"""Figures of many actors as one run's: speed, where the time went, who was there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from runner.cold_start import Events, warn
from runner.engine import BatchTiming
from runner.measure import bottleneck, share_of, windows_over_time

_OF_THE_RUN = ("device", "precision", "weights", "model", "resolved", "batch_size_curve")
_OF_AN_ACTOR = ("role", "host", "node", "pid", "device", "precision", "parity", "clips", "examples", "audio_s")
_COUNTS = ("clips", "examples", "audio_s", "starved_s", "under_way")
_MEASURED = ("audio_x_realtime", "busy_shares", "starved_share", "bottleneck")


def _device_name(actor: Mapping[str, Any]) -> str | None:
    """What an actor embedded on; None for one that only decodes."""
    device = actor.get("device")
    return f"{device['effective']} ({device['name']})" if device else None


def described_actors(actors: Sequence[Mapping[str, Any]]) -> str:
    """A run's actors in a line: how many on what, and on how many machines."""
    devices = Counter(each["device_name"] for each in actors if each["role"] != "decode")
    parts = [f"{count} on {device}" for device, count in devices.most_common()]
    if decoding := sum(each["role"] == "decode" for each in actors):
        parts.append(f"{decoding} decoding")
    machines = len({each["node"] for each in actors})
    return f"{', '.join(parts)}; {machines} machine{'s' * (machines > 1)}"


class ActorFigures:
    """Takes the figures of reports; see ``take``.

    Args:
        events: told of what actors warn of.
        result: the run's; its ``warnings`` are added to.
    """

    def __init__(self, events: Events, result: dict[str, Any]) -> None:
        self._events, self._result = events, result
        self._actors: dict[str, dict[str, Any]] = {}
        self._began, self._ended = float("inf"), 0.0
        self._examples_at: Counter[int] = Counter()
        """Examples by the second since the epoch in which they were reported."""
        self._decoded_at: dict[str, Counter[float]] = {}
        """Seconds that each actor of those that only decode did so, likewise."""
        self.driver_stages: dict[str, float] = {}
        """Seconds of stages that are the driver's own, as in reports."""

    @property
    def elapsed_s(self) -> float:
        """Seconds from the first session's first work to the last report's."""
        return max(self._ended - self._began, 0.0)

    @property
    def audio_s(self) -> float:
        """Seconds of audio embedded."""
        return float(sum(each["audio_s"] for each in self._actors.values()))

    @property
    def examples_under_way(self) -> float:
        """Examples embedded of clips that are not finished."""
        return max(0.0, float(sum(each["under_way"] for each in self._actors.values())))

    def take(self, report: Mapping[str, Any]) -> None:
        """Take a report.

        Args:
            report: ``actor`` (who it is, as it describes itself); once there is work done, ``began`` and ``ended`` in
                seconds since the epoch, and what is known of that time: ``stages`` (seconds that each was busy),
                ``starved_s``, ``clips``, ``examples`` and ``audio_s`` embedded, and by how many the examples of clips
                ``under_way`` have become more.
        """
        actor = report["actor"]
        for message in actor.get("warnings", []):
            if message not in self._result["warnings"]:
                warn(message, self._events, self._result)
        nothing = dict.fromkeys((*_COUNTS, "busy_s", "until"), 0.0)
        who = f"{actor['host']}:{actor['pid']}"
        known = self._actors.setdefault(who, {**actor, **nothing, "stages": {}})
        if "began" not in report:
            return
        self._ended = max(self._ended, report["ended"])
        if known["role"] != "decode":  # as with the local engine: from a ready session
            self._began = min(self._began, report["began"])
        known["busy_s"] += max(0.0, report["ended"] - max(report["began"], known["until"]))  # calls overlap
        known["until"] = max(known["until"], report["ended"])
        self._examples_at[int(report["ended"])] += int(report.get("examples", 0))
        for key in _COUNTS:
            known[key] += report.get(key, 0.0)
        for stage, seconds in report.get("stages", {}).items():
            known["stages"][stage] = known["stages"].get(stage, 0.0) + seconds
        if known["role"] == "decode":
            self._decoded_at.setdefault(who, Counter())[int(report["ended"])] += report.get("stages", {}).get(
                "decode", 0.0
            )

    def fill(self) -> None:
        """Fill the run's result."""
        result, every = self._result, list(self._actors.values())
        embedding = [each for each in every if each["role"] != "decode"]
        result["metrics"] |= {"actors": float(len(embedding)), "nodes": float(len({each["node"] for each in every}))}
        if decoding := [each for each in every if each["role"] == "decode"]:
            result["metrics"]["decode_actors"] = float(len(decoding))
        if embedding:
            self._fill_from(embedding)
        seconds = self.elapsed_s
        if seconds > 0 and any(each["examples"] for each in embedding):
            result["metrics"]["steady_s"] = seconds
            self._fill_shares(every, seconds)
            self._fill_speed(embedding, max(seconds, self._decoding_s()))
            result["series"] = self._over_time()
            result["steady_started_at"] = self._began
        result["actors"] = [
            {key: each.get(key) for key in (*_OF_AN_ACTOR, *_MEASURED)} | {"device_name": _device_name(each)}
            for each in every
        ]
        result["cluster"] = described_actors(result["actors"])
        if len(models := {each["device_name"] for each in result["actors"]} - {None}) > 1:
            warn(f"actors ran on different devices: {', '.join(sorted(models))}", self._events, result)

    def _fill_from(self, embedding: list[dict[str, Any]]) -> None:
        """What the run says of itself: the first actor's, the slowest one's start, the worst one's parity."""
        result = self._result
        result.update({key: embedding[0][key] for key in _OF_THE_RUN if key in embedding[0]})
        slowest = max(embedding, key=lambda each: each["metrics"].get("cold_start_s", 0.0))
        worst = max(embedding, key=lambda each: each["metrics"].get("parity_rel_err", 0.0))
        if "parity" in worst:
            result["parity"] = worst["parity"]
        for of, start in ((slowest, "cold_start"), (worst, "parity_")):
            result["metrics"] |= {key: value for key, value in of["metrics"].items() if key.startswith(start)}

    def _fill_speed(self, embedding: list[dict[str, Any]], seconds: float) -> None:
        metrics = self._result["metrics"]
        for name, key in (("audio_x_realtime", "audio_s"), ("examples_per_s", "examples"), ("clips_per_s", "clips")):
            metrics[name] = sum(each[key] for each in embedding) / seconds
        nodes: dict[str, float] = {}
        for number, each in enumerate(embedding):
            if each["busy_s"] > 0:
                each["audio_x_realtime"] = each["audio_s"] / each["busy_s"]
                metrics[f"actor{number}_audio_x_realtime"] = each["audio_x_realtime"]
            metrics[f"lane{number}_starved_share"] = share_of(each["starved_s"], seconds)
            nodes[each["node"]] = nodes.get(each["node"], 0.0) + each["audio_s"]
        for number, audio_s in enumerate(nodes.values()):
            metrics[f"node{number}_audio_x_realtime"] = audio_s / seconds

    def _decoding_s(self) -> float:
        """Seconds that actors of their own decoded, on average: no run is faster, though some was done earlier."""
        return sum(each.total() for each in self._decoded_at.values()) / max(len(self._decoded_at), 1)

    def _over_time(self) -> list[dict[str, float]]:
        """Throughput of all actors together, in windows of whole seconds with a report in them."""
        timings = [
            BatchTiming(0, 0.0, None, min(max(second + 1 - self._began, 0.0), self.elapsed_s), examples)
            for second, examples in sorted(self._examples_at.items())
            if examples
        ]
        return windows_over_time(timings, self.audio_s)

    def _fill_shares(self, every: list[dict[str, Any]], seconds: float) -> None:
        """The share of the run in which each stage was busy, on average over the actors that have it."""
        for who, decoded_at in self._decoded_at.items():  # of the steady state alone
            self._actors[who]["stages"]["decode"] = sum(
                decoded for second, decoded in decoded_at.items() if second >= self._began
            )
        shares = {stage: share_of(busy, seconds) for stage, busy in self.driver_stages.items()}
        for stage in dict.fromkeys(stage for each in every for stage in each["stages"]):
            busy = [each["stages"][stage] for each in every if stage in each["stages"]]
            shares[stage] = share_of(sum(busy) / len(busy), seconds)
        for each in every:
            each["busy_shares"] = {stage: share_of(busy, seconds) for stage, busy in each["stages"].items()}
            each["starved_share"] = share_of(each["starved_s"], seconds)
            each["bottleneck"] = bottleneck(each["busy_shares"])
        self._result["metrics"] |= {f"{stage}_busy_share": share for stage, share in shares.items()}
        self._result["bottleneck"] = bottleneck(shares)
