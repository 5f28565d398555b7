"""Comparability of runs: the one rule of it, for results of a sweep and for runs in MLflow.

Runs are comparable if they did the same work: model, data set, front end and weights.  Within each such workload runs
that failed, had wrong numbers or another device than asked for are excluded; those whose metrics are of a loaded
machine, or of the last attempt alone, only where there are others.  Speeds are compared with their like: repeated
passes where every run of the workload has them, otherwise first passes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Generic, TypeVar

from runner.config.schema import GROUPS, ModelConfig
from runner.core.metrics import BACKGROUND_LOAD, MAX_BACKGROUND_LOAD, Direction, ranking_metric

if TYPE_CHECKING:
    from runner.config.schema import RunConfig
    from runner.contract.result import RunResult

T = TypeVar("T")

FIRST_PASS, REPEATS = "realtime_factor", "repeat_realtime_factor_mean"
"""The metrics of speed: a workload's runs are ranked by one of them unless another metric is asked for."""

NAMES = {FIRST_PASS: "first passes", REPEATS: "repeated passes"}

RESUMED = "resumed:"
"""Beginning of a reason that excludes a run only beside runs without it."""

_DIGITS = 12
"""Digits of digests that are shown."""


def workload(digest: str | None, params: Mapping[str, str], checksum: str | None) -> dict[str, str]:
    """Describe a run's work.

    Args:
        digest: of its data set.
        params: all of its parameters, of which those of the front end and of the model count.
        checksum: of its weights.
    """
    front_end = {key: value for key, value in sorted(params.items()) if key.startswith("frontend.")}
    return {
        "data set": (digest or "unknown")[:_DIGITS],
        "model": model_label(params),
        **front_end,
        "weights": (checksum or "unknown")[:_DIGITS],
    }


def model_label(params: Mapping[str, str]) -> str:
    """Name a run's model by its parameters: ``vggish``, with those that decide its numbers, if there are any.

    The path of a file is none of them, as the checksum of the weights says more.
    """
    name = params.get("model.name", ModelConfig.name)  # which runs of earlier versions do not have
    schemas = GROUPS["model"]
    assert isinstance(schemas, Mapping)
    keys = fields(schemas.get(name, ModelConfig))
    ignored = {"model.name", "model.path", *(f"model.{key.name}" for key in keys if key.metadata.get("free"))}
    defaults = {f"model.{key.name}": str(key.default) for key in keys}
    others = {
        key: value
        for key, value in sorted(params.items())
        if key.startswith("model.") and key not in ignored and value != defaults.get(key)
    }
    return " ".join([name, *(f"{key.partition('.')[2]}={value}" for key, value in others.items())])


def params_of(config: RunConfig, *groups: str) -> dict[str, str]:
    """Return the keys of some groups of a configuration as parameters."""
    return {f"{group}.{key}": str(value) for group in groups for key, value in asdict(getattr(config, group)).items()}


@dataclass(frozen=True)
class Facts:
    """The facts that decide whether a run may be ranked, and beside which others.

    ``status`` is that of result.json; ``workload`` names model, data set, front end and weights; ``fallback`` is the
    device that was asked for and absent; ``attempt`` counts from 1.
    """

    status: str
    metrics: Mapping[str, float]
    workload: Mapping[str, str]
    parity_passed: bool | None = None
    parity_off: bool = False
    fallback: str | None = None
    attempt: int = 1


@dataclass(frozen=True)
class Ranking(Generic[T]):
    """Runs of one workload, best first by ``metric``; ``caveats`` hold for all of them."""

    workload: Mapping[str, str]
    metric: str
    ranked: tuple[T, ...]
    caveats: tuple[str, ...] = ()


@dataclass(frozen=True)
class Comparison(Generic[T]):
    """Rankings, that of most runs first, and runs that are in none, with the reasons."""

    rankings: tuple[Ranking[T], ...]
    excluded: tuple[tuple[T, tuple[str, ...]], ...]


def facts_of_result(result: RunResult) -> Facts:
    """Return a run's facts from its result."""
    info, startup = result.info, result.startup
    return Facts(
        status=result.status,
        metrics=result.metrics,
        workload=workload(
            info.dataset.digest if info.dataset else None,
            params_of(info.config, "frontend", "model"),
            startup.weights.checksum if startup.weights else None,
        ),
        parity_passed=startup.parity.passed if startup.parity else None,
        parity_off=info.config.parity.name == "off",
        fallback=info.config.device.name if startup.device and startup.device.fallback_reason else None,
        attempt=info.attempt or 1,
    )


def difference(one: Mapping[str, str], other: Mapping[str, str]) -> str:
    """Describe how two workloads differ: ``frontend.hop_s is 0.48, not 0.96``; empty where they are the same.

    Of two models nothing else is said, as the rest follows.
    """
    keys = [key for key in {**one, **other} if one.get(key) != other.get(key)]
    keys = ["model"] if "model" in keys else keys
    return ", ".join(f"{key} is {one.get(key, 'unknown')}, not {other.get(key, 'unknown')}" for key in keys)


def exclusion_reasons(facts: Facts, metric: str) -> list[str]:
    """Return the reasons not to rank a run by a metric; none where it may be ranked beside any other."""
    reasons = []
    if facts.status != "finished":
        reasons.append(facts.status)
    value = facts.metrics.get(metric)
    if value is None or not math.isfinite(value):
        reasons.append(f"no {metric}" if value is None else f"{metric} is {value}")
    if facts.parity_passed is False:
        reasons.append("failed parity")
    if facts.parity_off:
        reasons.append("parity was off: its numbers were not checked")
    if facts.fallback:
        reasons.append(f"{facts.fallback} was absent: it ran on the CPU")
    done = facts.metrics.get("clips_embedded", 0.0) + facts.metrics.get("clips_skipped", 0.0)
    own = facts.metrics.get("attempt_clips", done if facts.attempt == 1 else 0.0)
    if facts.attempt > 1 and own < done:
        reasons.append(f"{RESUMED} its metrics are of attempt {facts.attempt} alone ({own:,.0f} of {done:,.0f} clips)")
    first = facts.metrics.get("background_cpu_share", 0.0)
    load = facts.metrics.get("repeat_background_cpu_share", first) if metric == REPEATS else first
    if load > MAX_BACKGROUND_LOAD:
        reasons.append(f"{BACKGROUND_LOAD} {load:.0%} of the processors")
    return reasons


def like_of(facts: Sequence[Facts]) -> str:
    """Return the metric of speed that all runs have: of repeated passes, otherwise of the first pass."""
    return REPEATS if facts and all(REPEATS in own.metrics for own in facts) else FIRST_PASS


def compare(runs: Sequence[T], facts: Callable[[T], Facts], metric: str | None = None) -> Comparison[T]:
    """Rank runs, each workload by itself.

    Args:
        runs: in any order.
        facts: returns a run's.
        metric: to rank by; None for speed, of repeated passes where all of a workload's runs have them.

    Raises:
        RunnerError: the metric tells no better runs from worse ones.
    """
    excluded: list[tuple[T, tuple[str, ...]]] = []
    groups: dict[tuple[tuple[str, str], ...], list[tuple[T, Facts]]] = {}
    for run in runs:
        own = facts(run)
        if reasons := _lasting(exclusion_reasons(own, metric or FIRST_PASS)):
            excluded.append((run, tuple(reasons)))
        else:
            groups.setdefault(tuple(own.workload.items()), []).append((run, own))
    rankings = []
    for key, members in sorted(groups.items(), key=lambda group: -len(group[1])):
        by = metric or like_of([own for _, own in members])
        judged = [(run, own, exclusion_reasons(own, by)) for run, own in members]
        clean = [(run, own) for run, own, reasons in judged if not reasons]
        caveats: tuple[str, ...] = ()
        if clean:
            excluded += [(run, tuple(reasons)) for run, _, reasons in judged if reasons]
        else:  # on a machine that was busy all the time the runs are ranked among themselves, with that caveat
            clean, caveats = members, _worst([reason for _, _, reasons in judged for reason in reasons])
        clean.sort(key=lambda pair: pair[1].metrics[by], reverse=ranking_metric(by).direction is Direction.HIGHER)
        rankings.append(Ranking(dict(key), by, tuple(run for run, _ in clean), caveats))
    return Comparison(tuple(rankings), tuple(excluded))


def _worst(reasons: Sequence[str]) -> tuple[str, ...]:
    """Return the worst reason of each kind: its numbers have as many digits as the others', or more."""
    kinds = ([reason for reason in reasons if reason.startswith(start)] for start in (BACKGROUND_LOAD, RESUMED))
    return tuple(max(kind, key=lambda reason: (len(reason), reason)) for kind in kinds if kind)


def _lasting(reasons: Sequence[str]) -> list[str]:
    """Return all reasons if one of them excludes a run from any ranking; otherwise none."""
    return list(reasons) if any(not reason.startswith((BACKGROUND_LOAD, RESUMED)) for reason in reasons) else []
