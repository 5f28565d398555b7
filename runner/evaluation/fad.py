"""Distances of runs from a reference: FAD with its interval, FAD∞, KAD, and FAD clip by clip."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property

import numpy as np

from runner.config.schema import FrontendConfig
from runner.core.errors import RunnerError
from runner.evaluation.scan import ClipScore, OtherClips, Scan, ScanRequest, scan
from runner.evaluation.sources import EmbeddingSet
from runner.output.run_model import RunModel
from runner.statistics.frechet import (
    Gaussian,
    Limit,
    bootstrap_interval,
    frechet_distance,
    frechet_limit,
    paired_interval,
)
from runner.statistics.kernel import MOST_ROWS, kernel_distance, median_distance
from runner.statistics.moments import Rows

LIMIT_ROWS = 100_000
"""Embeddings of a run that FAD∞ is fitted to; of more, so many are drawn."""

_COMPARED = ("model", "output", "weights.checksum")
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
    if not reference.summary.about or not run.summary.about:
        return []
    first, second = (
        {"output": RunModel.from_metadata(each.summary.about).outputs[0].name, **each.summary.about}
        for each in (reference, run)
    )
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
            self._rows = scan(self.embeddings, ScanRequest(MOST_ROWS, self._seed, has_groups=False)).sample
        return self._rows

    @cached_property
    def scan(self) -> Scan:
        """The sums of its groups of clips; raises as ``rows``."""
        return scan(self.embeddings, ScanRequest())

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
            f"{len(base.mean)}: compare the same output of one model"
        )
    fad = frechet_distance(base, Gaussian.of_covariance(summary.mean, summary.covariance, summary.n))
    notes = [note for note in (unknown(run),) if note]
    if not (options.interval or options.limit or options.kad or options.per_clip):
        return Score(run.name, summary.n, fad, notes=notes)
    if run.blocks is None and not (options.limit or options.kad or options.per_clip):
        return Score(run.name, summary.n, fad, notes=[*notes, "no interval: the embeddings are not at hand"])
    read, unpaired = _scan_run(reference, run, options)
    limit, kad = None, None
    if options.limit:
        limit = frechet_limit(base, read.sample, np.random.default_rng(options.seed), replace=options.limit == "fadtk")
    if options.kad:
        rows = read.sample[np.random.default_rng(options.seed).permutation(len(read.sample))[:MOST_ROWS]]
        width = reference.width if options.kad == "reference" else median_distance(rows)
        kad = kernel_distance(reference.rows, rows, width)
    interval, paired = None, 0
    if options.interval:
        rng = np.random.default_rng(options.seed)  # each figure has its own: it is the same whatever else is asked for
        if unpaired is None:
            interval = paired_interval(reference.scan.groups, read.groups, rng, resamples=options.interval)
            paired = len(read.clips) if interval else 0
        else:
            interval = bootstrap_interval(base, read.groups, rng, resamples=options.interval)
            notes += [f"{run.name}: interval with the reference fixed, not paired, as {unpaired}"] if interval else []
        if interval is None:
            notes.append("no interval: it needs two clips")
    scores = sorted(read.scores, key=lambda score: score.fad)
    return Score(run.name, summary.n, fad, interval, paired, limit, kad, scores, read.left_out, notes)


def _scan_run(reference: Reference, run: EmbeddingSet, options: FadOptions) -> tuple[Scan, str | None]:
    """Read a run's embeddings; return also why its interval can't be paired with the reference, None if it can."""
    request = ScanRequest(
        sample=LIMIT_ROWS if options.limit else MOST_ROWS if options.kad else 0,
        seed=options.seed,
        has_groups=options.interval > 0,
        base=reference.gaussian if options.per_clip else None,
    )
    if not options.interval:
        return scan(run, request), None
    try:
        check_pairs(reference.embeddings, run)
        return scan(run, request, reference.scan.clips), None
    except OtherClips as error:
        return scan(run, request), str(error)


def check_pairs(reference: EmbeddingSet, run: EmbeddingSet) -> None:
    """Check that two sets may be of the same clips, as far as this can be known without reading their embeddings.

    Raises:
        OtherClips: they can't be.
    """
    for embeddings in (reference, run):
        if embeddings.blocks is None:
            raise OtherClips(f"{embeddings.name} has no embeddings at hand")
    if reference.summary.n != run.summary.n:
        raise OtherClips("it has another number of examples than the reference")


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
