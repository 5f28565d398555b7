"""Verdict on a sweep: its fastest setting, how certain that is, and the jobs that can't be compared."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from runner.core.metrics import BACKGROUND_LOAD
from runner.reporting.advice import configuration_label, rerun_command
from runner.reporting.comparability import NAMES, REPEATS, compare, difference, facts_of_result
from runner.reporting.intervals import blocks_of, interval, ratio
from runner.reporting.naming import variant_name
from runner.reporting.quality import quality_findings, quality_of

if TYPE_CHECKING:
    from runner.contract.result import RunResult
    from runner.reporting.comparability import Ranking
    from runner.reporting.intervals import Blocks, Interval

_LIGHTER = 0.9
"""A variant that is not measurably slower than the fastest is preferred if it takes so little of its memory."""


@dataclass(frozen=True)
class Variant:
    """A setting with the runs that measured it, several of them where a sweep has rounds.

    Attributes:
        name: of the setting.
        results: its runs, fastest first.
        metric: the speed that is compared, of first or of repeated passes.
    """

    name: str
    results: tuple[RunResult, ...]
    metric: str

    @property
    def best(self) -> RunResult:
        """Its fastest run."""
        return self.results[0]

    @property
    def speed(self) -> float:
        """× realtime, the mean over its runs."""
        return fmean(result.metrics[self.metric] for result in self.results)

    @property
    def memory_mib(self) -> float:
        """The peak of its worker's memory."""
        return max(result.metrics.get("rss_peak_mib", math.inf) for result in self.results)

    @property
    def blocks(self) -> Blocks:
        """The blocks of its runs' speeds, for intervals."""
        blocks = [blocks_of(result, self.metric) for result in self.results]
        if len(blocks) > 1:  # a run that is too short for blocks is one by itself
            blocks = [own or (result.metrics[self.metric],) for own, result in zip(blocks, self.results, strict=True)]
        return blocks

    @property
    def interval(self) -> Interval | None:
        """The 95 % interval of its speed."""
        return interval(self.speed, self.blocks)

    def times(self, other: Variant) -> Interval | None:
        """The 95 % interval of its speed over another's."""
        return ratio(self.speed, self.blocks, other.speed, other.blocks)

    def is_like(self, other: Variant) -> bool:
        """Whether no difference from another one can be measured."""
        ends = self.times(other)
        return ends is not None and ends[0] <= 1 <= ends[1]


@dataclass(frozen=True)
class Contest:
    """The variants of one workload, fastest first."""

    ranking: Ranking[RunResult]
    variants: tuple[Variant, ...]

    @property
    def baseline(self) -> Variant:
        """The baseline of speed-ups: the fastest on a CPU in float32, otherwise the slowest."""
        on_cpu = [variant for variant in self.variants if configuration_label(variant.best)[::2] == ("cpu", "float32")]
        return on_cpu[0] if on_cpu else self.variants[-1]

    @property
    def equals(self) -> tuple[Variant, ...]:
        """The fastest, and those that are not measurably slower."""
        fastest, *others = self.variants
        return (fastest, *(other for other in others if fastest.is_like(other)))

    @property
    def chosen(self) -> Variant:
        """The fastest, or one that is not measurably slower and takes clearly less memory."""
        fastest = self.variants[0]
        lighter = [variant for variant in self.equals if variant.memory_mib <= _LIGHTER * fastest.memory_mib]
        return min(lighter, key=lambda variant: variant.memory_mib) if lighter else fastest


def contests(results: Sequence[RunResult]) -> tuple[list[Contest], list[tuple[RunResult, tuple[str, ...]]]]:
    """Return the contests of a sweep, that of most jobs first, and the jobs that are in none, with the reasons."""
    if are_partitions(results):
        return [], []
    comparison = compare(results, facts_of_result)
    all_contests = []
    for ranking in comparison.rankings:
        runs: dict[str, list[RunResult]] = {}
        for result in ranking.ranked:
            runs.setdefault(variant_name(result), []).append(result)
        variants = [Variant(name, tuple(own), ranking.metric) for name, own in runs.items()]
        all_contests.append(Contest(ranking, tuple(sorted(variants, key=lambda variant: -variant.speed))))
    return all_contests, list(comparison.excluded)


def are_partitions(results: Sequence[RunResult]) -> bool:
    """Whether a sweep's jobs are partitions of one data set, which are no alternatives to choose from."""
    partitions = {result.info.config.dataset.partition for result in results}
    return len(partitions) == len(results) > 1


def only_contest(results: Sequence[RunResult]) -> Contest | None:
    """Return the contest of a sweep whose ranked jobs all did the same work; None where there are none or several."""
    all_contests, _ = contests(results)
    return all_contests[0] if len(all_contests) == 1 else None


def verdict(results: Sequence[RunResult]) -> str:
    """Describe a sweep in a few lines, the last with the command that uses its best setting, or merges its jobs."""
    return "\n".join([*findings(results), *(f"{title}: {words}" for title, words in commands(results))])


def findings(results: Sequence[RunResult]) -> list[str]:
    """Return a sweep's findings, a sentence or two a line."""
    if are_partitions(results):
        if any(result.status != "finished" for result in results):
            return ["Its jobs are parts of one data set, and not all are finished: give the same command again."]
        return ["Its jobs are parts of one data set."]
    all_contests, excluded = contests(results)
    several = len(all_contests) > 1
    lines = list(dict.fromkeys(line for contest in all_contests for line in _of_contest(contest, several)))
    lines += [_not_comparable(all_contests[0], other) for other in all_contests[1:]]
    lines += quality_findings([quality_of(result) for result in results if result.status == "finished"])
    if excluded:
        described = "; ".join(f"{result.info.run_name} ({', '.join(reasons)})" for result, reasons in excluded)
        lines.append(f"Not ranked: {described}.")
    if not all_contests:
        lines.insert(0, "No run can be recommended: none finished with a throughput and correct numbers.")
    return lines


def commands(results: Sequence[RunResult]) -> list[tuple[str, str]]:
    """Return the commands that follow from a sweep, each with a title."""
    if are_partitions(results):
        if any(result.status != "finished" for result in results):
            return []
        locations = shlex.join([result.info.run_dir for result in results])
        return [("Put them together", f"python -m runner merge {locations} --output FOLDER")]
    all_contests, _ = contests(results)
    return [
        (f"Use {contest.chosen.name if len(all_contests) > 1 else 'it'}", rerun_command(contest.chosen.best))
        for contest in all_contests
    ]


def _of_contest(contest: Contest, several: bool) -> list[str]:
    chosen, fastest, base, equals = contest.chosen, contest.variants[0], contest.baseline, contest.equals
    speed = f"{with_interval(chosen.speed, chosen.interval)} × realtime"
    if len(contest.variants) == 1:
        head = f"{chosen.name}: {speed}"
    elif len(equals) > 1:
        others = [f"{like.name} {with_interval(like.speed, like.interval)}" for like in equals if like is not chosen]
        head = f"No measurable difference: {chosen.name} {speed}, {', '.join(others)}"
        if chosen is not fastest:
            head += f". Use {chosen.name}, which takes less memory"
    else:
        head = f"{chosen.name} is the fastest: {speed}"
        second = contest.variants[1]
        if (times := fastest.times(second)) is not None:
            head += f", {with_interval(fastest.speed / second.speed, times, '.2f')} × {second.name}"
        else:
            head += f", {fastest.speed / second.speed:.2f} × {second.name}, measured once: that may be chance"
    if base is not chosen and base not in contest.variants[:2]:
        factor = with_interval(chosen.speed / base.speed, chosen.times(base), ".2f")
        head += f"{'.' if len(equals) > 1 else ','} {factor} × {base.name}"
    lines = [f"{head}."]
    metrics = chosen.best.metrics
    facts = [f"limited by {stage}"] if (stage := chosen.best.stats.bottleneck) else []
    if math.isfinite(chosen.memory_mib):
        facts.append(f"{chosen.memory_mib:,.0f} MiB")
    if parity := chosen.best.startup.parity:
        passed = "passed the parity gate" if parity.passed else "FAILED the parity gate"
        facts.append(f"its numbers {passed} (error {metrics.get('parity_rel_err', 0.0):.1e} of the largest value)")
    if facts and not several:
        lines.append(f"{chosen.name}: {', '.join(facts)}.")
    if contest.ranking.caveats:
        when = " when the machine is idle" if any(map(_is_load, contest.ranking.caveats)) else ""
        lines.append(f"But {', '.join(contest.ranking.caveats)}: measure again{when}.")
    return lines + _how(contest)


def _how(contest: Contest) -> list[str]:
    """Describe how certain the comparison is, where there is one."""
    if len(contest.variants) == 1:
        return []
    names = NAMES[contest.ranking.metric]
    if any(variant.interval is None for variant in contest.variants):
        more = "" if contest.ranking.metric == REPEATS else ": profile.repeat_s=10 repeats them"
        return [f"Compared by {names}, some too short for an interval{more}."]
    return [f"Compared by {names}; in brackets 95 % intervals (bootstrap)."]


def _not_comparable(first: Contest, other: Contest) -> str:
    names = ", ".join(variant.name for variant in other.variants)
    against = ", ".join(variant.name for variant in first.variants)
    why = difference(other.ranking.workload, first.ranking.workload)
    return f"Not comparable: {names} with {against}, because {why}."


def _is_load(caveat: str) -> bool:
    return caveat.startswith(BACKGROUND_LOAD)


def with_interval(value: float, ends: Interval | None, form: str = "") -> str:
    """Format a number with its interval in brackets, if it has one; three digits or more unless a form is given."""
    form = form or (",.0f" if value >= 100 else ",.1f")
    return f"{value:{form}}" if ends is None else f"{value:{form}} ({ends[0]:{form}} to {ends[1]:{form}})"
