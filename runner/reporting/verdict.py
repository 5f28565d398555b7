"""What a sweep comes to: which of its settings is fastest, how sure that is, and what can't be compared."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from runner.core.metrics import BACKGROUND_LOAD
from runner.reporting.advice import command, setting
from runner.reporting.comparability import NAMES, REPEATS, compare, difference, facts_of_result
from runner.reporting.intervals import blocks_of, interval, ratio
from runner.reporting.naming import variant_name

if TYPE_CHECKING:
    from runner.reporting.advice import Result
    from runner.reporting.comparability import Ranking
    from runner.reporting.intervals import Blocks, Interval

_LIGHTER = 0.9
"""A variant that is not measurably slower than the fastest is preferred if it takes so little of its memory."""


@dataclass(frozen=True)
class Variant:
    """A setting with the runs that measured it, several of them where a sweep has rounds.

    Args:
        name: what it is called.
        results: its runs, fastest first.
        metric: the speed that is compared, of first or of repeated passes.
    """

    name: str
    results: tuple[Result, ...]
    metric: str

    @property
    def best(self) -> Result:
        """Its fastest run."""
        return self.results[0]

    @property
    def speed(self) -> float:
        """× realtime, the mean over its runs."""
        return fmean(float(each["metrics"][self.metric]) for each in self.results)

    @property
    def memory_mib(self) -> float:
        """What its worker took at most."""
        return max(float(each["metrics"].get("rss_peak_mib", math.inf)) for each in self.results)

    @property
    def blocks(self) -> Blocks:
        """What an interval is made from."""
        found = [blocks_of(each, self.metric) for each in self.results]
        if len(found) > 1:  # a run that is too short for blocks is one by itself
            found = [own or (each["metrics"][self.metric],) for own, each in zip(found, self.results, strict=True)]
        return found

    @property
    def interval(self) -> Interval | None:
        """The 95 % interval of its speed."""
        return interval(self.speed, self.blocks)

    def times(self, other: Variant) -> Interval | None:
        """The 95 % interval of its speed over another's."""
        return ratio(self.speed, self.blocks, other.speed, other.blocks)

    def is_like(self, other: Variant) -> bool:
        """Whether no difference from another one can be measured."""
        found = self.times(other)
        return found is not None and found[0] <= 1 <= found[1]


@dataclass(frozen=True)
class Contest:
    """The variants of one workload, fastest first."""

    ranking: Ranking[Result]
    variants: tuple[Variant, ...]

    @property
    def baseline(self) -> Variant:
        """What speed-ups are counted from: the fastest on a CPU in float32, else the slowest."""
        on_cpu = [each for each in self.variants if setting(each.best)[::2] == ("cpu", "float32")]
        return on_cpu[0] if on_cpu else self.variants[-1]

    @property
    def equals(self) -> tuple[Variant, ...]:
        """The fastest, and those that are not measurably slower."""
        fastest, *others = self.variants
        return (fastest, *(each for each in others if fastest.is_like(each)))

    @property
    def chosen(self) -> Variant:
        """The fastest, or one that is not measurably slower and takes clearly less memory."""
        fastest = self.variants[0]
        lighter = [each for each in self.equals if each.memory_mib <= _LIGHTER * fastest.memory_mib]
        return min(lighter, key=lambda each: each.memory_mib) if lighter else fastest


def contests(results: Sequence[Result]) -> tuple[list[Contest], list[tuple[Result, tuple[str, ...]]]]:
    """The contests of a sweep, that of most jobs first, and the jobs that are in none, with the reasons."""
    if are_partitions(results):
        return [], []
    comparison = compare(results, facts_of_result)
    found = []
    for ranking in comparison.rankings:
        runs: dict[str, list[Result]] = {}
        for result in ranking.ranked:
            runs.setdefault(variant_name(result), []).append(result)
        variants = [Variant(name, tuple(each), ranking.metric) for name, each in runs.items()]
        found.append(Contest(ranking, tuple(sorted(variants, key=lambda each: -each.speed))))
    return found, list(comparison.left_out)


def are_partitions(results: Sequence[Result]) -> bool:
    """Whether a sweep's jobs are parts of one data set, which are no alternatives to choose from."""
    partitions = {result["config"].get("dataset", {}).get("partition") for result in results}
    return len(partitions) == len(results) > 1


def only_contest(results: Sequence[Result]) -> Contest | None:
    """The contest of a sweep whose ranked jobs all did the same work; None where there is no such one."""
    found, _ = contests(results)
    return found[0] if len(found) == 1 else None


def verdict(results: Sequence[Result]) -> str:
    """A sweep in a few lines, the last with the command that uses its best setting, or puts its parts together."""
    return "\n".join([*findings(results), *(f"{what}: {words}" for what, words in commands(results))])


def findings(results: Sequence[Result]) -> list[str]:
    """What a sweep showed, a sentence or two a line."""
    if are_partitions(results):
        if any(result["status"] != "finished" for result in results):
            return ["Its jobs are parts of one data set, and not all are finished: give the same command again."]
        return ["Its jobs are parts of one data set."]
    found, left_out = contests(results)
    several = len(found) > 1
    lines = list(dict.fromkeys(line for contest in found for line in _of_contest(contest, several)))
    lines += [_not_comparable(found[0], other) for other in found[1:]]
    if left_out:
        reasons = "; ".join(f"{result['run_name']} ({', '.join(why)})" for result, why in left_out)
        lines.append(f"Not ranked: {reasons}.")
    if not found:
        lines.insert(0, "No run can be recommended: none finished with a throughput and correct numbers.")
    return lines


def commands(results: Sequence[Result]) -> list[tuple[str, str]]:
    """What to do now: what a command is good for, and the command."""
    if are_partitions(results):
        if any(result["status"] != "finished" for result in results):
            return []
        places = shlex.join([str(result["run_dir"]) for result in results])
        return [("Put them together", f"python -m runner merge {places} --output FOLDER")]
    found, _ = contests(results)
    return [
        (f"Use {contest.chosen.name if len(found) > 1 else 'it'}", command(contest.chosen.best)) for contest in found
    ]


def _of_contest(contest: Contest, several: bool) -> list[str]:
    chosen, fastest, base, equals = contest.chosen, contest.variants[0], contest.baseline, contest.equals
    told = f"{with_interval(chosen.speed, chosen.interval)} × realtime"
    if len(contest.variants) == 1:
        head = f"{chosen.name}: {told}"
    elif len(equals) > 1:
        others = [f"{each.name} {with_interval(each.speed, each.interval)}" for each in equals if each is not chosen]
        head = f"No measurable difference: {chosen.name} {told}, {', '.join(others)}"
        if chosen is not fastest:
            head += f". Use {chosen.name}, which takes less memory"
    else:
        head = f"{chosen.name} is the fastest: {told}"
        second = contest.variants[1]
        if (times := fastest.times(second)) is not None:
            head += f", {with_interval(fastest.speed / second.speed, times, '.2f')} × {second.name}"
        else:
            head += f", {fastest.speed / second.speed:.2f} × {second.name}, measured once: that may be chance"
    if base is not chosen and base not in contest.variants[:2]:
        factor = with_interval(chosen.speed / base.speed, chosen.times(base), ".2f")
        head += f"{'.' if len(equals) > 1 else ','} {factor} × {base.name}"
    lines = [f"{head}."]
    metrics = chosen.best["metrics"]
    facts = [f"limited by {stage}"] if (stage := chosen.best.get("bottleneck")) else []
    if math.isfinite(chosen.memory_mib):
        facts.append(f"{chosen.memory_mib:,.0f} MiB")
    if parity := chosen.best.get("parity"):
        passed = "passed the parity gate" if parity["passed"] else "FAILED the parity gate"
        facts.append(f"its numbers {passed} (error {metrics.get('parity_rel_err', 0.0):.1e} of the largest value)")
    if facts and not several:
        lines.append(f"{chosen.name}: {', '.join(facts)}.")
    if contest.ranking.caveats:
        when = " when the machine is idle" if any(map(_is_load, contest.ranking.caveats)) else ""
        lines.append(f"But {', '.join(contest.ranking.caveats)}: measure again{when}.")
    return lines + _how(contest)


def _how(contest: Contest) -> list[str]:
    """How sure the comparison is, where there is one."""
    if len(contest.variants) == 1:
        return []
    names = NAMES[contest.ranking.metric]
    if any(each.interval is None for each in contest.variants):
        more = "" if contest.ranking.metric == REPEATS else ": profile.repeat_s=10 repeats them"
        return [f"Compared by {names}, some too short for an interval{more}."]
    return [f"Compared by {names}; in brackets 95 % intervals (bootstrap)."]


def _not_comparable(first: Contest, other: Contest) -> str:
    names = ", ".join(each.name for each in other.variants)
    against = ", ".join(each.name for each in first.variants)
    why = difference(other.ranking.workload, first.ranking.workload)
    return f"Not comparable: {names} with {against}, because {why}."


def _is_load(caveat: str) -> bool:
    return caveat.startswith(BACKGROUND_LOAD)


def with_interval(value: float, ends: Interval | None, form: str = "") -> str:
    """A number with its interval in brackets, if it has one; three digits or more unless a form is given."""
    form = form or (",.0f" if value >= 100 else ",.1f")
    return f"{value:{form}}" if ends is None else f"{value:{form}} ({ends[0]:{form}} to {ends[1]:{form}})"
