"""Which runs may be ranked beside which: the one rule of it, for results of a sweep and for runs in MLflow.

Runs are comparable if they did the same work: data set, front end and weights.  Within each such workload runs with
trouble of their own (failed, wrong numbers, another device than asked for) are left out; those whose figures are of a
loaded machine, or of a part of the run, only where there are others.  Speeds are compared with their like: repeated
passes where every run of the workload has them, else first passes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from runner.core.metrics import BACKGROUND_LOAD, MAX_BACKGROUND_LOAD, Direction, ranking_metric

T = TypeVar("T")

FIRST_PASS, REPEATS = "realtime_factor", "repeat_realtime_factor_mean"
"""The metrics of speed, one of which a workload's runs are ranked by where nothing else is asked for."""

NAMES = {FIRST_PASS: "first passes", REPEATS: "repeated passes"}

RESUMED = "resumed:"
"""What trouble begins with that makes a run unfit only beside runs without it."""

_DIGITS = 12
"""Of digests, as people are shown them."""


def workload(digest: str | None, params: Mapping[str, str], checksum: str | None) -> dict[str, str]:
    """What a run did, from its data set's digest, its parameters (those of the front end count) and its weights."""
    front_end = {key: value for key, value in sorted(params.items()) if key.startswith("frontend.")}
    return {"data set": (digest or "unknown")[:_DIGITS], **front_end, "weights": (checksum or "unknown")[:_DIGITS]}


@dataclass(frozen=True)
class Facts:
    """What decides whether a run may be ranked, and beside which others.

    ``status`` is that of result.json; ``workload`` what it did, by names that a person knows; ``fallback`` the device
    that was asked for and absent.
    """

    status: str
    metrics: Mapping[str, float]
    workload: Mapping[str, str]
    parity_passed: bool | None = None
    parity_off: bool = False
    fallback: str | None = None
    sessions: int = 1


@dataclass(frozen=True)
class Ranking(Generic[T]):
    """Runs of one workload, best first by ``metric``; ``caveats`` is what is wrong with all of them."""

    workload: Mapping[str, str]
    metric: str
    ranked: tuple[T, ...]
    caveats: tuple[str, ...] = ()


@dataclass(frozen=True)
class Comparison(Generic[T]):
    """Rankings, that of most runs first, and runs that are in none, with the reasons."""

    rankings: tuple[Ranking[T], ...]
    left_out: tuple[tuple[T, tuple[str, ...]], ...]


def facts_of_result(result: Mapping[str, Any]) -> Facts:
    """A run's facts from its result.json."""
    config, device, parity = result["config"], result.get("device") or {}, result.get("parity")
    return Facts(
        status=str(result["status"]),
        metrics=result.get("metrics") or {},
        workload=workload(
            (result.get("dataset") or {}).get("digest"),
            {f"frontend.{key}": str(value) for key, value in (config.get("frontend") or {}).items()},
            (result.get("weights") or {}).get("checksum"),
        ),
        parity_passed=None if parity is None else bool(parity["passed"]),
        parity_off=(config.get("parity") or {}).get("name") == "off",
        fallback=str(config["device"]["name"]) if device.get("fallback_reason") else None,
        sessions=int(result.get("session") or 1),
    )


def difference(one: Mapping[str, str], other: Mapping[str, str]) -> str:
    """In what two workloads differ, in words: ``frontend.hop_s is 0.48, not 0.96``; empty where they are the same."""
    keys = [key for key in {**one, **other} if one.get(key) != other.get(key)]
    return ", ".join(f"{key} is {one.get(key, 'unknown')}, not {other.get(key, 'unknown')}" for key in keys)


def troubles(facts: Facts, metric: str) -> list[str]:
    """Why a run must not be ranked by a metric, whatever it is beside; empty where it may be."""
    found = []
    if facts.status != "finished":
        found.append(facts.status)
    value = facts.metrics.get(metric)
    if value is None or not math.isfinite(value):
        found.append(f"no {metric}" if value is None else f"{metric} is {value}")
    if facts.parity_passed is False:
        found.append("failed parity")
    if facts.parity_off:
        found.append("parity was off: its numbers were not checked")
    if facts.fallback:
        found.append(f"{facts.fallback} was absent: it ran on the CPU")
    done = facts.metrics.get("clips_embedded", 0.0) + facts.metrics.get("clips_skipped", 0.0)
    here = facts.metrics.get("session_clips", done if facts.sessions == 1 else 0.0)
    if facts.sessions > 1 and here < done:
        found.append(f"{RESUMED} its figures are of session {facts.sessions} alone ({here:,.0f} of {done:,.0f} clips)")
    first = facts.metrics.get("background_cpu_share", 0.0)
    load = facts.metrics.get("repeat_background_cpu_share", first) if metric == REPEATS else first
    if load > MAX_BACKGROUND_LOAD:
        found.append(f"{BACKGROUND_LOAD} {load:.0%} of the processors")
    return found


def like_of(facts: Sequence[Facts]) -> str:
    """The metric of speed that all of them have: of repeated passes, or else of the first pass."""
    return REPEATS if facts and all(REPEATS in each.metrics for each in facts) else FIRST_PASS


def compare(runs: Sequence[T], facts: Callable[[T], Facts], metric: str | None = None) -> Comparison[T]:
    """Rank runs, each workload by itself.

    Args:
        runs: in any order.
        facts: gives a run's.
        metric: what to rank by; None for speed, of repeated passes where all of a workload's runs have them.

    Raises:
        RunnerError: the metric tells no better runs from worse ones.
    """
    known = [(run, facts(run)) for run in runs]
    own = [_lasting(troubles(each, metric or FIRST_PASS)) for _, each in known]
    left_out = [(run, tuple(why)) for (run, _), why in zip(known, own, strict=True) if why]
    groups: dict[tuple[tuple[str, str], ...], list[tuple[T, Facts]]] = {}
    for (run, each), why in zip(known, own, strict=True):
        if not why:
            groups.setdefault(tuple(each.workload.items()), []).append((run, each))
    rankings = []
    for key, members in sorted(groups.items(), key=lambda group: -len(group[1])):
        by = metric or like_of([each for _, each in members])
        judged = [(run, each, troubles(each, by)) for run, each in members]
        clean = [(run, each) for run, each, why in judged if not why]
        caveats: tuple[str, ...] = ()
        if clean:
            left_out += [(run, tuple(why)) for run, _, why in judged if why]
        else:  # on a machine that was busy all the time the runs are ranked among themselves, with that said
            clean, caveats = members, _worst([each for _, _, why in judged for each in why])
        clean.sort(key=lambda pair: pair[1].metrics[by], reverse=ranking_metric(by).direction is Direction.HIGHER)
        rankings.append(Ranking(dict(key), by, tuple(run for run, _ in clean), caveats))
    return Comparison(tuple(rankings), tuple(left_out))


def _worst(found: Sequence[str]) -> tuple[str, ...]:
    """Of each kind of trouble the worst: numbers in them are of as many digits, or more."""
    kinds = ([each for each in found if each.startswith(start)] for start in (BACKGROUND_LOAD, RESUMED))
    return tuple(max(kind, key=lambda each: (len(each), each)) for kind in kinds if kind)


def _lasting(found: Sequence[str]) -> list[str]:
    return list(found) if any(not each.startswith((BACKGROUND_LOAD, RESUMED)) for each in found) else []
