"""What is measured beside a run: repeated passes over its clips, the device by itself, batch sizes, a trace.

All of it comes after the run, on the same sessions and decode processes, and writes nothing of the run's.
"""

from __future__ import annotations

import itertools
import logging
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from runner.core.events import warn
from runner.core.layout import TRACE
from runner.devices.detection import DeviceType
from runner.devices.load import BackgroundLoad
from runner.inference.batch_size import measure_on
from runner.output.writer import RunWriter
from runner.pipeline.pipeline import EmbeddingPipeline, ShardedClips
from runner.profiling.sampler import EnergyMeter, Sampler
from runner.vggish.constants import EXAMPLE_SAMPLES

if TYPE_CHECKING:
    from runner.config.schema import ProfileConfig, RunConfig
    from runner.core.events import Events
    from runner.dataset.clips import Clip
    from runner.inference.batch_size import Trial
    from runner.inference.builder import Placement
    from runner.inference.session import VGGishSession
    from runner.inference.startup import LoadedModel
    from runner.output.rows import ClipRow
    from runner.pipeline.decode_pool import DecodePool
    from runner.pipeline.messages import Replica

log = logging.getLogger("runner.engines.worker")

_PASSES = 5
"""An interval that tells two settings apart takes at least so many."""

_PARTS = 3
"""A pass takes such a part of the time that is asked for: shorter ones are mostly their beginning."""

_BATCHES_A_PASS = 2
"""Full batches a replica, at least: the first is not computed while others are decoded."""

_MOST_SKIPPED = 64
"""Clips of a large data set that are passed over for one that is embedded: reading its list takes time as well."""

_MOST_PASSES = 200

_CURVE_BUDGET_S = 15.0

_TRACED_BATCHES = 3


class NullWriter(RunWriter):
    """Takes complete shards and keeps nothing."""

    def __init__(self) -> None:
        self.done = {}

    def write_shard(self, shard: int, rows: Sequence[ClipRow]) -> None:
        """Forget them."""

    def close(self) -> None:
        """Nothing is open."""


def profile_after_run(
    config: RunConfig,
    ready: LoadedModel,
    pool: DecodePool,
    replicas: Sequence[Replica],
    clips: Iterator[Clip],
    run_dir: Path,
    events: Events,
    result: dict[str, Any],
    stopped: Callable[[], bool],
) -> None:
    """Measure what ``profile`` asks for beside the run, into ``result``; trouble is a warning and never the run's end.

    Args:
        config: the run's.
        ready: its sessions.
        pool: the decode pool, open and idle.
        replicas: the sessions' replicas.
        clips: the clips that the run embedded.
        run_dir: the run's folder, for the trace.
        events: told what is under way.
        result: what the run came to so far.
        stopped: whether to end early.
    """
    profile, session, placement = config.profile, ready.sessions[0], ready.placement
    try:
        if profile.repeat_s > 0 or profile.min_batches > 0:
            events.send("phase", name="repeat")
            clips_per_pass = clips_for_a_pass(
                result["metrics"], profile.repeat_s, len(replicas) * session.effective_batch_size
            )
            chosen = evenly(clips, clips_per_pass, int(result["metrics"].get("session_clips", 0)))
            own = [clip._replace(number=n) for n, clip in enumerate(chosen)]
            gpus = placement.device.indices if placement.device.effective is DeviceType.GPU else ()
            found = repeat(profile, own, pool, replicas, gpus, stopped)
            result["metrics"] |= found.pop("metrics")
            result["repeats"] = found
        if profile.batch_size_curve and "batch_size_curve" not in result and not stopped():
            events.send("phase", name="curve")
            fits = partial(_fits, config, placement)
            steps = speed_over_batch_sizes(session, ready.dtypes[0], fits)
            curve = {
                "steps": steps,
                "batch_size": session.effective_batch_size,
                "reason": "in use; the others for comparison",
            }
            result["batch_size_curve"] = curve
        if profile.trace and not stopped():
            events.send("phase", name="trace")
            trace(session, run_dir / TRACE, ready.dtypes[0])
    except Exception as error:
        warn(f"profile={profile.name}: {type(error).__name__}: {error}", events, result)


def _fits(config: RunConfig, placement: Placement, size: int) -> bool:
    """Whether the memory policy allows a batch size."""
    from runner.inference.builder import memory_plan

    memory = replace(config.memory, batch_size=size)
    return memory_plan(placement.device, placement.precision, memory, placement.gpu_memory).batch_size == size


def repeat(
    profile: ProfileConfig,
    clips: Sequence[Clip],
    pool: DecodePool,
    replicas: Sequence[Replica],
    gpus: Sequence[int],
    stopped: Callable[[], bool],
) -> dict[str, Any]:
    """Embed the clips again and again, writing nothing, until ``repeat_s`` and ``min_batches`` are reached.

    Args:
        profile: how long, how often memory and power are sampled.
        clips: what a pass embeds; numbered from 0.
        pool: the decode pool, open and idle.
        replicas: the sessions' replicas.
        gpus: CUDA devices in use.
        stopped: whether to end early.

    Returns:
        ``passes`` (each with seconds, examples and × realtime), ``samples`` (each with ``t_s`` since the first pass)
        and ``metrics``: mean and standard deviation over the passes, and the energy of all of them where it can be
        read.
    """
    sampler = Sampler(profile.sample_every_s, gpus, power=True)
    energy = EnergyMeter(gpus)
    others, own_cpu_s = BackgroundLoad(), _cpu_s(pool)
    passes: list[dict[str, float]] = []
    began = time.perf_counter()
    sampler.start()
    try:
        while len(passes) < _MOST_PASSES and not stopped():
            enough = sum(each["seconds"] for each in passes) >= profile.repeat_s
            if len(passes) >= _PASSES and enough and sum(each["batches"] for each in passes) >= profile.min_batches:
                break
            engine = EmbeddingPipeline(
                ShardedClips([(0, len(clips))], iter(clips)), pool, NullWriter(), shutdown_timeout_s=0.0
            )
            start = time.perf_counter()
            engine.run(replicas)
            seconds, progress = engine.stats.steady_s, engine.stats.progress
            if not progress.examples:
                break
            passes.append(
                {
                    "started_s": start - began,
                    "seconds": seconds,
                    "batches": float(len(engine.stats.timings)),
                    "examples": float(progress.examples),
                    "audio_s": progress.audio_s,
                    "realtime_factor": progress.audio_s / seconds,
                }
            )
    finally:
        sampler.stop()
        joules = energy.joules()
        load = others.share(_cpu_s(pool) - own_cpu_s)
    samples = sampler.series(began)
    return {"passes": passes, "samples": samples, "metrics": _of_passes(passes, joules, samples, load)}


def _cpu_s(pool: DecodePool) -> float:
    """The processor time of this process and its decode processes."""
    return time.process_time() + sum(pool.cpu_s.values())


def _of_passes(
    passes: Sequence[dict[str, float]],
    joules: dict[str, float],
    samples: Sequence[dict[str, float]],
    others_share: float,
) -> dict[str, float]:
    if not passes:
        return {}
    speeds = [each["realtime_factor"] for each in passes]
    found = {
        "repeats": float(len(passes)),
        "repeat_realtime_factor_mean": statistics.fmean(speeds),
        "repeat_realtime_factor_std": statistics.stdev(speeds) if len(speeds) > 1 else 0.0,
        "repeat_seconds": sum(each["seconds"] for each in passes),
        "repeat_background_cpu_share": others_share,
    }
    watts = [each["power_w"] for each in samples if "power_w" in each]
    if watts:
        found["gpu_power_w_mean"] = statistics.fmean(watts)
    if joules:
        audio_s = sum(each["audio_s"] for each in passes)
        found["energy_j"] = sum(joules.values())
        found["joules_per_audio_hour"] = 3600 * found["energy_j"] / audio_s
        found |= {f"energy_{source}_j": value for source, value in joules.items()}
    return found


def clips_for_a_pass(metrics: Mapping[str, float], repeat_s: float, examples: int) -> int:
    """How many clips one pass embeds: a few passes fill the time, and each is some batches long.

    Args:
        metrics: of the run.
        repeat_s: what all passes shall take.
        examples: in a batch of every replica.
    """
    in_time = metrics["clips_per_s"] * max(repeat_s, 1.0) / _PARTS
    a_clip = metrics["examples"] / max(metrics["clips_embedded"], 1.0)
    return int(max(in_time, _BATCHES_A_PASS * examples / max(a_clip, 1e-9))) + 1


def evenly(clips: Iterator[Clip], wanted: int, count: int) -> Iterator[Clip]:
    """So many clips from all over the ``count`` that there are, as the first ones may be short, or of one kind."""
    step = min(max(count // wanted, 1), _MOST_SKIPPED)
    return itertools.islice(clips, 0, wanted * step, step)


def speed_over_batch_sizes(session: VGGishSession, dtype: str, fits: Callable[[int], bool]) -> list[dict[str, Any]]:
    """The model's speed at 1, 4, 16, … examples a batch and at the session's own size, which it keeps.

    Args:
        session: a ready one.
        dtype: of the windows.
        fits: whether the memory policy allows a batch size.
    """
    own = session.effective_batch_size
    oom_backoffs = list(session.oom_backoffs)
    sizes = sorted({size for size in (1, 4, 16, 64, 256, 1024, own // 2, own, 2 * own) if size and fits(size)})
    steps: list[Trial] = []
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
    return [asdict(step) for step in steps]


def trace(session: VGGishSession, folder: Path, dtype: str) -> None:
    """TensorFlow's profile of a few batches on the session, for TensorBoard's profiler or Perfetto."""
    import tensorflow as tf

    rng = np.random.default_rng(0)
    samples = rng.integers(-9000, 9000, (session.effective_batch_size, EXAMPLE_SAMPLES)).astype(np.int16)
    windows = samples if dtype == "int16" else (samples / np.float32(32768)).astype(np.float32)
    session.embed_windows(windows)
    tf.profiler.experimental.start(str(folder))
    try:
        for _ in itertools.repeat(None, _TRACED_BATCHES):
            session.embed_windows(windows)
    finally:
        tf.profiler.experimental.stop()
