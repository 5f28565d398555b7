"""What a worker does: reads spec.json, embeds, writes the run's files and last result.json.

Events for the parent go to standard output, a JSON object a line; ``stop`` on standard input, or its end, asks for an
early end.  Everything else that is printed goes to standard error, which the parent points at runner.log.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.config.schema import from_dict
from runner.core.events import StartupTimer, warn
from runner.core.layout import BATCHES
from runner.dataset.clips import read_clips
from runner.dataset.window_types import window_types
from runner.devices.cuda import pinned
from runner.devices.detection import DeviceType
from runner.devices.host import peak_rss_mib, usable_cores
from runner.devices.load import BackgroundLoad
from runner.engines.common import _mirror, file_metadata, make_writer, tune_interpreter
from runner.inference.canary import Canary
from runner.inference.gpu_memory import gpu_memory_metrics
from runner.inference.memory import ceiling_mib
from runner.inference.session import identity_of
from runner.inference.startup import prepare_sessions
from runner.output.state.identity import agree
from runner.output.state.locks import worker_lock
from runner.output.verify import shards_done
from runner.output.writer import RunWriter, check_complete, make_spill, totals
from runner.pipeline.decode_pool import DecodePool, decode_options, decoders_for
from runner.pipeline.messages import Replica
from runner.pipeline.pipeline import EmbeddingPipeline, ShardedClips
from runner.pipeline.skip_limit import SkipLimit
from runner.profiling.device_speed import matmul_peak, model_only, speed_metrics
from runner.profiling.metrics import (
    bottleneck,
    input_wait_shares,
    stage_shares,
    steady_metrics,
    throughput_series,
    window_spread,
    write_batches,
)
from runner.profiling.passes import profile_after_run
from runner.profiling.sampler import Sampler

if TYPE_CHECKING:
    from runner.config.schema import RunConfig
    from runner.core.events import Events
    from runner.core.stop_signals import StopSignal
    from runner.inference.builder import Placement
    from runner.inference.startup import LoadedModel
    from runner.pipeline.messages import PipelineStats, Progress

log = logging.getLogger("runner.engines.worker")

_PROGRESS_S = 0.25


def _carry_out(spec: dict[str, Any], run_dir: Path, events: Events, result: dict[str, Any], stop: StopSignal) -> None:
    config = from_dict(spec["config"])
    cold = StartupTimer(spec["spawned_at"])
    if config.engine.name == "ray":
        from runner.engines.ray import driver

        driver.carry_out(spec, run_dir, events, result, stop, _mirror(spec, config))
        return
    sampler = Sampler(config.profile.sample_every_s)
    sampler.start()
    with contextlib.ExitStack() as stack:
        stack.callback(sampler.stop)
        events.send("phase", name="lock")
        mirror = _mirror(spec, config)
        stack.enter_context(worker_lock(run_dir, config.engine.shutdown_timeout_s, mirror.lock if mirror else None))
        pool = DecodePool(decode_options(config), _initial_decode_processes(config), config.dataset.decode_timeout_s)
        stack.callback(pool.close)
        look = mirror.shards_done if mirror else functools.partial(shards_done, run_dir, config, spec["rows"])
        checked = ThreadPoolExecutor(1).submit(look)  # while TensorFlow is imported
        spec["dtypes"] = window_types(Path(spec["manifest"]))
        ready = prepare_sessions(config, spec, cold, events, result)
        placement, sessions = ready.placement, ready.sessions
        if placement.device.effective is DeviceType.GPU:
            sampler.gpus = placement.device.indices
        agree(run_dir, identity_of(sessions[0], ready.postprocess))
        done = checked.result()
        shards = [(int(first), int(end)) for first, end in spec["shards"]]
        left = sum(end - first for number, (first, end) in enumerate(shards) if number not in done)
        plan = placement.memory
        workers = decoders_for(plan.decode_workers, left)
        pool.open(workers, plan.spare_slots, sessions[0].effective_batch_size)
        if placement.device.effective is DeviceType.GPU:
            with cold.step("pin"):
                unpinned = stack.enter_context(pinned(pool.memory.bytes))
            result["resolved"]["memory.pinned"] = unpinned is None
            if unpinned:
                warn(f"batches are copied to the GPU from pageable memory, which is slow: {unpinned}", events, result)
        metadata = file_metadata(config, sessions[0], placement)
        kind = mirror.writer_kind() if mirror else RunWriter
        writer = make_writer(spec, config, metadata, ready.postprocess, done, kind=kind)
        skipped_before = int(totals(done)[0]["clips_skipped"])
        spans = [span for n, span in enumerate(shards) if n not in done]
        engine = EmbeddingPipeline(
            ShardedClips(shards, read_clips(Path(spec["manifest"]), spans), left),
            pool,
            writer,
            shutdown_timeout_s=config.engine.shutdown_timeout_s,
            on_skip=SkipLimit(config.dataset, spec["dataset"], skipped_before),
            spill=make_spill(run_dir, config),
        )
        stop.begin(engine.stop)
        result["metrics"] |= cold.metrics(time.time())
        events.send("phase", name="embed", seconds=cold.parts)
        canaries = [
            Canary(each, ready.answers, config.parity, ready.dtypes, lambda: len(writer.done)) for each in sessions
        ]
        replicas = [Replica.watched(*both) for both in zip(sessions, canaries, strict=True)]
        others, decode_cpu_s = BackgroundLoad(), sum(pool.cpu_s.values())
        tune_interpreter()
        with _reporting(engine.stats, events, spec["dataset"]["clips"] - left, config.frontend.hop_s, pool):
            engine.run(replicas)
        own_cpu_s = engine.stats.cpu_s + sum(pool.cpu_s.values()) - decode_cpu_s
        result["metrics"]["parity_canaries"] = float(sum(canary.count for canary in canaries))
        result["metrics"]["background_cpu_share"] = others.share(own_cpu_s)
        sampler.stop()
        result["memory_series"] = sampler.series(engine.stats.started_at)
        if not engine.stopped:
            check_complete(shards, writer.done)
        result["status"] = "killed" if len(writer.done) < len(shards) else "finished"
        _collect_metrics(result, engine.stats, writer, pool, sessions[0].in_flight)
        result["metrics"] |= _memory_metrics(placement, pool)
        if result["status"] == "finished" and engine.stats.timings:
            clips = read_clips(Path(spec["manifest"]), spans)
            profile_after_run(config, ready, pool, replicas, clips, run_dir, events, result, stop.is_set)
        halved = [halving for each in sessions for halving in each.oom_backoffs if halving not in result["warnings"]]
        missed = [miss for canary in canaries for miss in canary.misses[:1]]
        for problem in (*engine.stats.replica_failures, *halved, *missed):
            warn(problem, events, result)
        result["resolved"]["memory.batch_size"] = sessions[0].effective_batch_size
    result["metrics"]["decode_process_restarts"] = float(pool.deaths)
    seconds = config.profile.device_benchmark_s[placement.device.effective.value]
    if seconds > 0 and result["status"] == "finished":
        result["metrics"] |= _device_speed(config, ready, result["metrics"].get("examples_per_s"), seconds)
    write_batches(run_dir / BATCHES, engine.stats.timings)
    _warn_of_ceiling(config, placement, result, events)


def _collect_metrics(
    result: dict[str, Any], stats: PipelineStats, writer: RunWriter, pool: DecodePool, in_flight: int
) -> None:
    """What a run came to: its counts, speed, spread, and where the time went."""
    progress = stats.progress
    result["metrics"] |= steady_metrics(stats)
    result["metrics"]["session_clips"] = float(progress.clips)
    overall, result["skipped"], result["noted"] = totals(writer.done)
    result["metrics"] |= overall
    shares = stage_shares(stats, sum(pool.busy_s.values()), len(pool))
    result["metrics"] |= {f"{stage}_busy_share": share for stage, share in shares.items()}
    result["metrics"] |= input_wait_shares(stats, in_flight)
    result["metrics"] |= window_spread(stats.timings, progress.audio_s)
    result["bottleneck"] = bottleneck(shares)
    result["series"] = throughput_series(stats.timings, progress.audio_s)
    result["shards"] = len(writer.done)


def _device_speed(
    config: RunConfig, ready: LoadedModel, examples_per_s: float | None, seconds: float
) -> dict[str, float]:
    """The figures of the device by itself; a device that is out of memory for them has none."""
    placement, sessions = ready.placement, ready.sessions
    try:
        alone = model_only(sessions, seconds, ready.dtypes[0])
        kind, precision = placement.device.effective.value, placement.precision.effective
        peak = matmul_peak(sessions[0], kind, precision, seconds)
    except Exception as error:
        log.warning("skipped the device benchmark: %s", error)
        return {}
    return speed_metrics(examples_per_s, alone, peak, len(sessions), config.frontend.hop_s)


def _memory_metrics(placement: Placement, pool: DecodePool) -> dict[str, float]:
    found = {"rss_peak_mib": peak_rss_mib(), "decode_rss_peak_mib": sum(pool.rss_peak_mib.values())}
    found["decode_cpu_s"] = sum(pool.cpu_s.values())
    return found | gpu_memory_metrics(placement.device)


def _warn_of_ceiling(config: RunConfig, placement: Placement, result: dict[str, Any], events: Events) -> None:
    ceiling = config.memory.host_limit_mib
    used = result["metrics"]["rss_peak_mib"]
    allowed = ceiling_mib(ceiling, placement.device.effective)
    if allowed is not None and used > allowed:
        warn(f"the worker took {used:.0f} MiB, above memory.host_limit_mib={ceiling}", events, result)


@contextlib.contextmanager
def _reporting(
    stats: PipelineStats, events: Events, clips_before: int, hop_s: float, pool: DecodePool
) -> Iterator[None]:
    """Send the counts to the parent from a thread of its own, a few times a second, and once at the end.

    The examples of clips under way count as audio, one for every ``hop_s``, so that an hour-long clip shows at once how
    fast it is; what is sent at the end is of finished clips alone.  ``clips_before`` were done before this session.
    """
    over = threading.Event()

    def report() -> None:
        while not over.wait(_PROGRESS_S):
            examples = max(0, stats.examples_done - stats.progress.examples)
            send(examples, _clips_in(examples, stats.progress, pool))

    def send(examples_under_way: int, clips_under_way: float) -> None:
        progress = stats.progress
        events.send(
            "progress",
            clips=clips_before + progress.clips,
            session_clips=progress.clips,
            clips_under_way=clips_under_way,
            skipped=sum(progress.skipped.values()),
            examples=progress.examples + examples_under_way,
            audio_s=progress.audio_s + examples_under_way * hop_s,
            elapsed_s=time.perf_counter() - stats.started_at,
        )

    thread = threading.Thread(target=report, name="report", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        send(0, 0.0)


def _clips_in(examples: int, progress: Progress, pool: DecodePool) -> float:
    """How many clips these examples of clips under way come to: by the parts that are decoded, or by the average clip.

    Each decode process has at most one clip under way in part.
    """
    average = progress.examples / max(progress.embedded, 1)
    return min(len(pool), max(pool.memory.fractions_decoded(), examples / average if average else 0.0))


def _initial_decode_processes(config: RunConfig) -> int:
    """Decode processes to start before the device is known: they fill batches while TensorFlow is imported."""
    return min(config.memory.decode_workers or 1, max(1, usable_cores() // 2))
