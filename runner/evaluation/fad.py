"""Distances of runs from a reference: FAD with its interval, FAD∞, KAD, and FAD clip by clip."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from runner.config.schema import FrontendConfig
from runner.core.errors import RunnerError
from runner.evaluation.locations import RowBlock
from runner.evaluation.sources import EmbeddingSet
from runner.statistics.frechet import (
    Gaussian,
    Limit,
    bootstrap_interval,
    frechet_distance,
    frechet_limit,
    paired_interval,
)
from runner.statistics.kernel import MOST_ROWS, kernel_distance, median_distance
from runner.statistics.moments import EmbeddingStatistics, Rows

GROUPS = 100
"""Groups of clips that are drawn for the interval: clip number modulo this."""

LIMIT_ROWS = 100_000
"""Embeddings of a run that FAD∞ is fitted to; of more, so many are drawn."""

_COMPARED = ("model", "weights.checksum")
"""What must be equal beside the front end, of what ``stats.npz`` says of its embeddings."""


@dataclass(frozen=True)
class FadOptions:
    """What to measure beside FAD.

    ``interval`` is the number of resamples, 0 for none; ``limit`` is subsets (drawn without replacement) or fadtk (with
    it), ``kad`` is reference or kadtk: whose median distance is the kernel's width.
    """

    interval: int = 200
    limit: str | None = None
    kad: str | None = None
    per_clip: bool = False
    seed: int = 0


class ClipScore(NamedTuple):
    """A clip's own FAD against the reference."""

    clip: str
    examples: int
    fad: float


@dataclass(frozen=True)
class Score:
    """What a run came to.

    ``paired`` is how many clips were drawn for the interval on both sides alike, 0 where the reference stayed as it is;
    ``left_out`` are clips without an FAD of their own, as they have a single example.
    """

    name: str
    examples: int | None
    fad: float
    interval: tuple[float, float] | None = None
    paired: int = 0
    limit: Limit | None = None
    kad: float | None = None
    clips: Sequence[ClipScore] = ()
    left_out: int = 0
    notes: Sequence[str] = field(default_factory=tuple)

    def metrics(self) -> dict[str, float]:
        """Its metrics, those that were measured, under the names of ``runner.core.metrics``."""
        metrics: dict[str, float] = {"fad": self.fad}
        if self.interval:
            metrics |= {"fad_low": self.interval[0], "fad_high": self.interval[1], "fad_paired_clips": self.paired}
        if self.limit:
            metrics |= {"fad_infinity": self.limit.value, "fad_infinity_slope": self.limit.slope}
            metrics["fad_infinity_r2"] = self.limit.r2
        if self.kad is not None:
            metrics["kad"] = self.kad
        return metrics


def differences(reference: EmbeddingSet, run: EmbeddingSet) -> list[str]:
    """Why the distance of two sets would say nothing of their audio: protocols or weights that are not the same.

    What a set does not say is taken to be the front end's default.  A file of another tool, which says nothing at all,
    differs from none: see ``unknown``.
    """
    first, second = reference.summary.about, run.summary.about
    if not first or not second:
        return []
    defaults = {f"frontend.{key}": str(value) for key, value in asdict(FrontendConfig()).items()}
    keys = [*_COMPARED, *(key for key in {**defaults, **first, **second} if key.startswith("frontend."))]
    pairs = ((key, first.get(key, defaults.get(key)), second.get(key, defaults.get(key))) for key in keys)
    return [
        f"{key} is {_abbreviated(one)} for {reference.name} and {_abbreviated(other)} for {run.name}"
        for key, one, other in pairs
        if one != other
    ]


def _abbreviated(value: str | None) -> str:
    return "unknown" if value is None else value[:12] if len(value) == 64 else value  # a SHA-256, in short


def unknown(embeddings: EmbeddingSet) -> str | None:
    """What a person must see to, as the file does not say with which weights and front end it was made."""
    if embeddings.summary.about:
        return None
    return f"{embeddings.name} does not say its protocol and weights: see to it that they are the same"


class Reference:
    """The set that runs are compared with.

    Args:
        embeddings: the set.
        seed: of the rows that are drawn of it.
    """

    def __init__(self, embeddings: EmbeddingSet, seed: int = 0) -> None:
        summary = embeddings.summary
        self.embeddings = embeddings
        self.gaussian = Gaussian.of_covariance(summary.mean, summary.covariance, summary.n)
        self._seed = seed
        self._rows: Rows | None = None
        self._width: float | None = None

    @property
    def rows(self) -> Rows:
        """Some of its embeddings, ``MOST_ROWS`` at most.

        Raises:
            RunnerError: the set is a file of statistics, without embeddings.
        """
        if self._rows is None:
            self._rows = _scan(self.embeddings, FadOptions(interval=0), MOST_ROWS, self._seed).sample
        return self._rows

    @cached_property
    def scan(self) -> _Scan:
        """The sums of its groups of clips; raises as ``rows``."""
        return _scan(self.embeddings, FadOptions(), 0, self._seed)

    @property
    def width(self) -> float:
        """The median distance between ``rows``."""
        if self._width is None:
            self._width = median_distance(self.rows)
        return self._width


def measure(reference: Reference, run: EmbeddingSet, options: FadOptions) -> Score:
    """Compare a run with the reference.

    Raises:
        RunnerError: their embeddings have different sizes, or the options need embeddings that are not at hand.
    """
    base, summary = reference.gaussian, run.summary
    if len(base.mean) != len(summary.mean):
        raise RunnerError(
            f"{run.name} has embeddings of {len(summary.mean)} values, and {reference.embeddings.name} of "
            f"{len(base.mean)}: compare those of one model"
        )
    fad = frechet_distance(base, Gaussian.of_covariance(summary.mean, summary.covariance, summary.n))
    notes = [note for note in (unknown(run),) if note]
    if not (options.interval or options.limit or options.kad or options.per_clip):
        return Score(run.name, summary.n, fad, notes=notes)
    if run.blocks is None and not (options.limit or options.kad or options.per_clip):
        return Score(run.name, summary.n, fad, notes=[*notes, "no interval: the embeddings are not at hand"])
    scan = _scan(run, options, LIMIT_ROWS if options.limit else MOST_ROWS if options.kad else 0, options.seed, base)
    limit, kad = None, None
    if options.limit:
        limit = frechet_limit(base, scan.sample, np.random.default_rng(options.seed), replace=options.limit == "fadtk")
    if options.kad:
        rows = scan.sample[np.random.default_rng(options.seed).permutation(len(scan.sample))[:MOST_ROWS]]
        width = reference.width if options.kad == "reference" else median_distance(rows)
        kad = kernel_distance(reference.rows, rows, width)
    interval, paired = None, 0
    if options.interval:
        rng = np.random.default_rng(options.seed)  # each figure has its own: it is the same whatever else is asked for
        if may_be_paired(reference.embeddings, run) and reference.scan.clip_list == scan.clip_list:
            interval = paired_interval(reference.scan.groups, scan.groups, rng, resamples=options.interval)
            paired = scan.clip_list[0] if interval else 0
        else:
            interval = bootstrap_interval(base, scan.groups, rng, resamples=options.interval)
        if interval is None:
            notes.append("no interval: it needs two clips")
    clips = sorted(scan.clips, key=lambda clip: clip.fad)
    return Score(run.name, summary.n, fad, interval, paired, limit, kad, clips, scan.left_out, notes)


def may_be_paired(reference: EmbeddingSet, run: EmbeddingSet) -> bool:
    """Whether two sets may be of the same clips, as far as this can be known without reading their embeddings.

    The digest of a data set is of its clips' names, labels and sizes; a merged run has none.
    """
    datasets = [each.result.info.dataset for each in (reference, run) if each.result]
    digests = {dataset.digest for dataset in datasets if dataset}
    has_rows = reference.blocks is not None and run.blocks is not None
    return has_rows and reference.summary.n == run.summary.n and len(digests) < 2


@dataclass
class _Scan:
    """What one reading of a set's embeddings gives: sums of groups of clips, a sample of rows, clips' distances.

    ``clip_list`` is the number of clips and a digest of their names and examples, in order.
    """

    groups: list[EmbeddingStatistics]
    clip_list: tuple[int, str]
    sample: Rows
    clips: list[ClipScore]
    left_out: int


def _scan(embeddings: EmbeddingSet, options: FadOptions, most: int, seed: int, base: Gaussian | None = None) -> _Scan:
    """Read a set's embeddings once; ``most`` of its rows are drawn for the sample."""
    summary = embeddings.summary
    if embeddings.blocks is None or summary.n is None:
        raise RunnerError(
            f"{embeddings.name} is a file of statistics, without the embeddings that this needs: give the run's folder "
            "or URL, or leave out --infinity, --kad and --per-clip"
        )
    chosen = np.arange(summary.n)
    if summary.n > most:
        chosen = np.sort(np.random.default_rng(seed).choice(summary.n, most, replace=False))
    groups = {number: EmbeddingStatistics(len(summary.mean)) for number in range(GROUPS if options.interval else 0)}
    sample = [np.empty((0, len(summary.mean)), np.float32)]
    clips = _Clips(base) if options.per_clip and base is not None else None
    listed = hashlib.sha256()
    first, clip, last = 0, -1, None
    for block in embeddings.blocks():
        numbers = clip + np.arange(len(block.clips)) + (block.clips[0] != last)
        begun = zip(block.clips, first + np.append(0, block.ends), strict=False)
        listed.update("".join(f"{name}\n{row}\n" for name, row in begun if name != last).encode())
        clip, last = int(numbers[-1]), block.clips[-1]
        drawn = chosen[np.searchsorted(chosen, first) : np.searchsorted(chosen, first + len(block.rows))]
        sample.append(block.rows[drawn - first])
        first += len(block.rows)
        if groups:
            _add_groups(groups, np.repeat(numbers % GROUPS, np.diff(block.ends, prepend=0)), block.rows)
        if clips:
            clips.add(block)
    if first != summary.n:
        raise RunnerError(
            f"{embeddings.name} has {first:,} examples, and its statistics are of {summary.n:,}: rerun its command"
        )
    filled = [group for group in groups.values() if group.n]
    scores, left_out = clips.finish() if clips else ([], 0)
    return _Scan(filled, (clip + 1, listed.hexdigest()), np.concatenate(sample), scores, left_out)


def _add_groups(groups: dict[int, EmbeddingStatistics], numbers: NDArray[np.int64], rows: Rows) -> None:
    order = np.argsort(numbers, kind="stable")
    present, firsts = np.unique(numbers[order], return_index=True)
    for number, places in zip(present, np.split(order, firsts[1:]), strict=True):
        groups[int(number)].add(rows[places])


class _Clips:
    """Distances of clips from the reference, whose rows come block by block."""

    def __init__(self, base: Gaussian) -> None:
        self._base = base
        self._scores: list[ClipScore] = []
        self._left_out = 0
        self._name: str | None = None
        self._rows: list[Rows] = []

    def add(self, block: RowBlock) -> None:
        """Take the next embeddings."""
        for name, rows in _clips_of(block):
            if name != self._name:
                self._end()
                self._name = name
            self._rows.append(rows)

    def finish(self) -> tuple[list[ClipScore], int]:
        """The clips' scores, and how many have none, as they have a single example."""
        self._end()
        return self._scores, self._left_out

    def _end(self) -> None:
        if self._name is None:
            return
        rows = np.concatenate(self._rows)
        if len(rows) < 2:
            self._left_out += 1
        else:
            self._scores.append(ClipScore(self._name, len(rows), frechet_distance(self._base, Gaussian.of_rows(rows))))
        self._rows = []


def _clips_of(block: RowBlock) -> Iterator[tuple[str, Rows]]:
    return zip(block.clips, np.split(block.rows, block.ends[:-1]), strict=True)


def failures(scores: Sequence[Score], most: float) -> list[str]:
    """The scores whose FAD is above a limit, each in a sentence."""
    return [f"{score.name}: FAD {score.fad:.6g} is above {most:g}" for score in scores if not score.fad <= most]


def check_limit(value: float) -> float:
    """Return a limit for ``failures``.

    Raises:
        RunnerError: it is no distance.
    """
    if not math.isfinite(value) or value < 0:
        raise RunnerError(f"--fail-above {value} is no distance: give a number from 0")
    return value
