"""Measurements after a run: repeated passes over its clips, speed over batch sizes, a trace.

They use the run's own sessions and decode processes, and write none of its files.
"""

from __future__ import annotations

import itertools
import logging
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from runner.audio.framing import synthetic_windows
from runner.contract.result import BatchSizeCurve, BatchSizePoint, Repeats
from runner.core.layout import RunLayout
from runner.devices.load import BackgroundLoad
from runner.inference.batch_size import measure_on
from runner.profiling.sampler import EnergyMeter, Sampler

if TYPE_CHECKING:
    from runner.config.schema import RunConfig
    from runner.contract.events import Events
    from runner.contract.spec import RunSpec
    from runner.dataset.clips import Clip
    from runner.inference.session import EmbeddingSession
    from runner.inference.startup import LoadedModel
    from runner.output.rows import ClipRow

log = logging.getLogger(__name__)

_PASSES = 5
"""Passes that an interval needs to distinguish two settings."""

_PARTS = 3
"""A pass takes such a part of the time that is asked for: shorter ones are mostly their beginning."""

_BATCHES_A_PASS = 2
"""Full batches a replica, at least: the first is not computed while others are decoded."""

_MOST_SKIPPED = 64
"""Clips of a large data set that are passed over for one that is embedded: reading its list takes time as well."""

_MOST_PASSES = 200

_CURVE_BUDGET_S = 15.0

_TRACED_BATCHES = 3


class NullWriter:
    """Drops complete shards; see ``Writer``."""

    parallel = 1

    def write_shard(self, shard: int, rows: Sequence[ClipRow]) -> None:
        """Drop them."""

    def revoke_from(self, count: int) -> None:
        """Do nothing."""


@dataclass(frozen=True)
class ProfileResult:
    """What was measured after a run; None where it was not asked for, or failed."""

    metrics: Mapping[str, float] = field(default_factory=dict)
    repeats: Repeats | None = None
    batch_size_curve: BatchSizeCurve | None = None


class Measured(Protocol):
    """The processes that have a run's sessions: ``engines.embedder.Embedder``, or several of it.

    Attributes:
        gpus: CUDA devices in use.
    """

    gpus: Sequence[int]

    @property
    def pids(self) -> Sequence[int]:
        """The processes, besides this one."""
        ...

    def call(self, name: str, *arguments: object) -> list[Any]:
        """Return the answers of all processes to a question."""
        ...

    def call_first(self, name: str, *arguments: object) -> list[Any]:
        """Return the answer of the first one."""
        ...


class PassReport(NamedTuple):
    """A process's part of a pass: ``time.perf_counter`` of its beginning and its last result, and counts."""

    started_at: float
    results_at: float
    batches: int
    examples: int
    audio_s: float


class Profiler:
    """Measures what ``profile`` asks for after a run, on its sessions and decode processes.

    Args:
        spec: the run's; a trace goes to its folder.
        measured: the processes that embedded it, now idle.
        events: gets phases and warnings.
        stopped: whether to end early.
    """

    def __init__(self, spec: RunSpec, measured: Measured, events: Events, stopped: Callable[[], bool]) -> None:
        self._config, self._run_dir, self._measured = spec.config, spec.run_dir, measured
        self._events, self._stopped = events, stopped

    def run(self, metrics: Mapping[str, float], *, has_curve: bool) -> ProfileResult:
        """Measure; a failure is a warning, and what was measured before it stays.

        Args:
            metrics: the run's.
            has_curve: whether the speed over batch sizes is known already.
        """
        profile, result = self._config.profile, ProfileResult()
        try:
            if profile.repeat_s > 0 or profile.min_batches > 0:
                self._events.phase("repeat")
                result = self._repeat(metrics)
            if profile.batch_size_curve and not has_curve and not self._stopped():
                self._events.phase("curve")
                (curve,) = self._measured.call_first("batch_size_curve")
                result = replace(result, batch_size_curve=curve)
            if profile.trace and not self._stopped():
                self._events.phase("trace")
                self._measured.call_first("trace", RunLayout(self._run_dir).trace)
        except Exception as error:
            self._events.warn(f"profile={profile.name}: {type(error).__name__}: {error}")
        return result

    def _repeat(self, metrics: Mapping[str, float]) -> ProfileResult:
        """Embed clips again and again, writing nothing, until ``repeat_s`` and ``min_batches`` are reached.

        ``repeats.passes`` have seconds, examples and × realtime, ``repeats.samples`` ``t_s`` since the first pass; the
        metrics are mean and standard deviation over the passes, and the energy of all of them where it can be read.
        """
        profile = self._config.profile
        examples = self._measured.call("examples_at_once")
        count = clips_for_a_pass(metrics, profile.repeat_s, sum(examples))
        self._measured.call("choose_clips", -(-count // len(examples)))
        gpus, pids = self._measured.gpus, (os.getpid(), *self._measured.pids)
        sampler, energy = Sampler(profile.sample_every_s, gpus, power=True, pids=pids), EnergyMeter(gpus)
        background, own_cpu_s = BackgroundLoad(), sum(self._measured.call("cpu_s"))
        passes: list[dict[str, float]] = []
        began = time.perf_counter()
        sampler.start()
        try:
            while not self._is_enough(passes) and (own := self._pass(began)):
                passes.append(own)
        finally:
            sampler.stop()
            joules = energy.joules()
            load = background.share(sum(self._measured.call("cpu_s")) - own_cpu_s)
        samples = sampler.series(began)
        return ProfileResult(_of_passes(passes, joules, samples, load), Repeats(passes, samples))

    def _is_enough(self, passes: Sequence[Mapping[str, float]]) -> bool:
        profile = self._config.profile
        if len(passes) >= _MOST_PASSES or self._stopped():
            return True
        seconds, batches = (sum(own[key] for own in passes) for key in ("seconds", "batches"))
        return len(passes) >= _PASSES and seconds >= profile.repeat_s and batches >= profile.min_batches

    def _pass(self, began: float) -> dict[str, float] | None:
        """Embed the clips once, in all processes at once; None if nothing came of them.

        ``began`` is the first pass's beginning.
        """
        reports: list[PassReport] = [own for own in self._measured.call("run_pass") if own.examples]
        if not reports:
            return None
        start = min(own.started_at for own in reports)
        seconds = max(own.results_at for own in reports) - start
        audio_s = sum(own.audio_s for own in reports)
        return {
            "started_s": start - began,
            "seconds": seconds,
            "batches": float(sum(own.batches for own in reports)),
            "examples": float(sum(own.examples for own in reports)),
            "audio_s": audio_s,
            "realtime_factor": audio_s / seconds,
        }


def batch_size_curve(model: LoadedModel, config: RunConfig) -> BatchSizeCurve:
    """Measure the model alone, on its first device, over batch sizes that the memory policy allows."""
    from runner.inference.builder import memory_plan

    session, placement = model.sessions[0], model.placement

    def fits(size: int) -> bool:
        memory = replace(config.memory, batch_size=size)
        plan = memory_plan(placement.device, placement.precision, memory, placement.gpu_memory, config.model.spec)
        return plan.batch_size == size

    points = speed_over_batch_sizes(session, model.dtypes[0], fits)
    return BatchSizeCurve(points, session.effective_batch_size, "in use; the others for comparison")


def _of_passes(
    passes: Sequence[Mapping[str, float]],
    joules: Mapping[str, float],
    samples: Sequence[Mapping[str, float]],
    background_share: float,
) -> dict[str, float]:
    if not passes:
        return {}
    speeds = [own["realtime_factor"] for own in passes]
    metrics = {
        "repeats": float(len(passes)),
        "repeat_realtime_factor_mean": statistics.fmean(speeds),
        "repeat_realtime_factor_std": statistics.stdev(speeds) if len(speeds) > 1 else 0.0,
        "repeat_seconds": sum(own["seconds"] for own in passes),
        "repeat_background_cpu_share": background_share,
    }
    watts = [sample["power_w"] for sample in samples if "power_w" in sample]
    if watts:
        metrics["gpu_power_w_mean"] = statistics.fmean(watts)
    if joules:
        audio_s = sum(own["audio_s"] for own in passes)
        metrics["energy_j"] = sum(joules.values())
        metrics["joules_per_audio_hour"] = 3600 * metrics["energy_j"] / audio_s
        metrics |= {f"energy_{source}_j": value for source, value in joules.items()}
    return metrics


def clips_for_a_pass(metrics: Mapping[str, float], repeat_s: float, examples: int) -> int:
    """Return how many clips one pass embeds: a few passes fill the time, and each is some batches long.

    Args:
        metrics: of the run.
        repeat_s: what all passes shall take.
        examples: in a batch of every replica.
    """
    in_time = metrics["clips_per_s"] * max(repeat_s, 1.0) / _PARTS
    a_clip = metrics["examples"] / max(metrics["clips_embedded"], 1.0)
    return int(max(in_time, _BATCHES_A_PASS * examples / max(a_clip, 1e-9))) + 1


def evenly(clips: Iterator[Clip], wanted: int, count: int) -> Iterator[Clip]:
    """Take ``wanted`` clips from all over the ``count`` that there are: the first may be short, or of one kind."""
    step = min(max(count // wanted, 1), _MOST_SKIPPED)
    return itertools.islice(clips, 0, wanted * step, step)


def speed_over_batch_sizes(
    session: EmbeddingSession, dtype: str, fits: Callable[[int], bool]
) -> tuple[BatchSizePoint, ...]:
    """The model's speed at 1, 4, 16, … examples a batch and at the session's own size, which it keeps.

    Args:
        session: a ready one.
        dtype: of the windows.
        fits: whether the memory policy allows a batch size.
    """
    own = session.effective_batch_size
    oom_backoffs = list(session.oom_backoffs)
    sizes = sorted({size for size in (1, 4, 16, 64, 256, 1024, own // 2, own, 2 * own) if size and fits(size)})
    steps: list[BatchSizePoint] = []
    start = time.perf_counter()
    try:
        measure = measure_on(session, dtype)
        for size in sizes:
            if time.perf_counter() - start > _CURVE_BUDGET_S or (step := measure(size)) is None:
                break
            steps.append(step)
    finally:
        session.set_batch_size(own)
        session.oom_backoffs[:] = oom_backoffs
    return tuple(steps)


def trace(session: EmbeddingSession, folder: Path, dtype: str) -> None:
    """TensorFlow's profile of a few batches on the session, for TensorBoard's profiler or Perfetto."""
    import tensorflow as tf

    windows = synthetic_windows(session.effective_batch_size, session.spec.window_samples, dtype)
    session.embed_windows(windows)
    tf.profiler.experimental.start(str(folder))
    try:
        for _ in itertools.repeat(None, _TRACED_BATCHES):
            session.embed_windows(windows)
    finally:
        tf.profiler.experimental.stop()
