"""What a worker does: reads spec.json, embeds, writes the run's files and last result.json.

Events for the parent go to standard output, a JSON object a line; ``stop`` on standard input, or its end, asks for an
early end.  Everything else that is printed goes to standard error, which the parent points at runner.log.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from runner.canary import Canary
from runner.cold_start import LOG_FORMAT, ColdStart, Events, Ready, make_ready, warn
from runner.config import RunConfig, from_dict
from runner.cuda import pinned
from runner.device_speed import matmul_peak, model_only, speed_metrics
from runner.devices import DeviceType
from runner.engine import Engine, Lane
from runner.failures import failure_of
from runner.files import write_atomic
from runner.hardware import host_facts, peak_rss_mib, usable_cores, versions
from runner.limits import SkipLimit
from runner.measure import (
    BATCHES,
    bottleneck,
    stage_shares,
    starved_shares,
    steady_metrics,
    window_spread,
    windows_over_time,
    write_batches,
)
from runner.memory import ceiling_mib, gpu_memory_metrics
from runner.output import RunWriter, check_complete, totals
from runner.parts import (
    decode_options,
    decoders_for,
    favour_lanes,
    file_metadata,
    make_spill,
    make_writer,
    read_clips,
)
from runner.pool import DecodePool
from runner.printable import PrintableFormatter
from runner.profiling import measure_beside
from runner.readable import read_json
from runner.sampling import OthersLoad, Sampler
from runner.stop_signals import StopSignal
from runner.taking_up import agree, identity_of, shards_done, sole_worker
from runner.window_types import window_types

if TYPE_CHECKING:
    from runner.build import Placement
    from runner.store_writer import StoreMirror

log = logging.getLogger("runner.worker")

_PROGRESS_S = 0.25
KILLED_STATUS = 3
"""Exit status of a worker that ended early because it was told to."""


def main(spec_path: str) -> int:
    """Carry out one spec; the exit status is 0 for a finished run, 3 for one told to stop, 1 for a failed one."""
    events = Events(_take_standard_output())
    handler = logging.StreamHandler()
    handler.setFormatter(PrintableFormatter(LOG_FORMAT))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    run_dir = Path(spec_path).parent.parent
    result: dict[str, Any] = {"host": host_facts(), "versions": versions(), "metrics": {}}
    stop = StopSignal(lambda: _end_at_once(run_dir, events))
    spec: dict[str, Any] = {}
    try:
        spec |= read_json(Path(spec_path))
        _carry_out(spec, run_dir, events, result, stop)
    except Exception as error:
        log.exception("the run failed")
        result["status"] = "failed"
        result["failure"] = {**failure_of(error)._asdict(), "signal": None}
    except SystemExit:  # what Ray makes of SIGTERM while it starts
        result["status"] = "killed"
    stop.begin(lambda: None)  # from here on nothing ends this process at once
    _tell(run_dir, events, result)
    if spec and spec["config"]["engine"]["kind"] == "ray":
        from runner.ray_cluster import disconnect

        disconnect()
    return {"finished": 0, "killed": KILLED_STATUS}.get(result["status"], 1)


def _tell(run_dir: Path, events: Events, result: dict[str, Any]) -> None:
    """Leave the result to the parent."""
    try:
        write_atomic(run_dir / "result.json", json.dumps(result, indent=2))
    except OSError as error:  # the parent is told in another way
        log.error("result.json could not be written: %s", error)
        if result["status"] == "finished":
            result |= {"status": "failed", "failure": {**failure_of(error)._asdict(), "signal": None}}
    events.send("end", status=result["status"], failure=result.get("failure"))


def _end_at_once(run_dir: Path, events: Events) -> None:
    """End this process, which has nothing under way; the system gives up its locks, and ends its decode processes."""
    _tell(run_dir, events, {"status": "killed", "metrics": {}})
    os._exit(KILLED_STATUS)


def _carry_out(spec: dict[str, Any], run_dir: Path, events: Events, result: dict[str, Any], stop: StopSignal) -> None:
    config = from_dict(spec["config"])
    cold = ColdStart(spec["spawned_at"])
    if config.engine.kind == "ray":
        from runner import ray_engine

        ray_engine.carry_out(spec, run_dir, events, result, stop, _mirror(spec, config))
        return
    sampler = Sampler(config.profile.sample_every_s)
    sampler.start()
    with contextlib.ExitStack() as stack:
        stack.callback(sampler.stop)
        events.send("phase", name="lock")
        mirror = _mirror(spec, config)
        stack.enter_context(sole_worker(run_dir, config.engine.stop_grace_s, mirror.lock if mirror else None))
        pool = DecodePool(decode_options(config), _first_workers(config), config.dataset.clip_timeout_s)
        stack.callback(pool.close)
        look = mirror.shards_done if mirror else functools.partial(shards_done, run_dir, config, spec["rows"])
        checked = ThreadPoolExecutor(1).submit(look)  # while TensorFlow is imported
        spec["dtypes"] = window_types(Path(spec["manifest"]))
        ready = make_ready(config, spec, cold, events, result)
        placement, sessions = ready.placement, ready.sessions
        if placement.device.effective is DeviceType.GPU:
            sampler.gpus = placement.device.indices
        agree(run_dir, identity_of(sessions[0], ready.postprocess))
        done = checked.result()
        shards = [(int(first), int(end)) for first, end in spec["shards"]]
        left = sum(end - first for number, (first, end) in enumerate(shards) if number not in done)
        plan = placement.memory
        workers = decoders_for(plan.decode_workers, left)
        pool.open(workers, plan.spare_slots, sessions[0].rows_at_once)
        if placement.device.effective is DeviceType.GPU:
            with cold.step("pin"):
                unpinned = stack.enter_context(pinned(pool.memory))
            result["resolved"]["memory.pinned"] = unpinned is None
            if unpinned:
                warn(f"batches are copied to the GPU from pageable memory, which is slow: {unpinned}", events, result)
        metadata = file_metadata(config, sessions[0], placement)
        kind = mirror.writer_kind() if mirror else RunWriter
        writer = make_writer(spec, config, metadata, ready.postprocess, done, kind=kind)
        skipped_before = int(totals(done)[0]["clips_skipped"])
        spans = [span for n, span in enumerate(shards) if n not in done]
        engine = Engine(
            shards,
            read_clips(Path(spec["manifest"]), spans),
            pool,
            writer,
            stop_grace_s=config.engine.stop_grace_s,
            clips_left=left,
            on_skip=SkipLimit(config.dataset, spec["dataset"], skipped_before),
            spill=make_spill(run_dir, config),
        )
        stop.begin(engine.stop)
        result["metrics"] |= cold.metrics(time.time())
        events.send("phase", name="embed", seconds=cold.parts)
        canaries = [
            Canary(each, ready.answers, config.parity, ready.dtypes, lambda: len(writer.done)) for each in sessions
        ]
        lanes = [Lane.watched(*both) for both in zip(sessions, canaries, strict=True)]
        others, decode_cpu_s = OthersLoad(), sum(pool.cpu_s.values())
        favour_lanes()
        with _reporting(engine, events, spec["dataset"]["clips"] - left, config.frontend.hop_s, pool):
            engine.run(lanes)
        own_cpu_s = engine.cpu_s + sum(pool.cpu_s.values()) - decode_cpu_s
        result["metrics"]["parity_canaries"] = float(sum(canary.count for canary in canaries))
        result["metrics"]["others_cpu_share"] = others.share(own_cpu_s)
        sampler.stop()
        result["memory_series"] = sampler.series(engine.started_at)
        if not engine.stopped:
            check_complete(shards, writer.done)
        result["status"] = "killed" if len(writer.done) < len(shards) else "finished"
        _take_figures(result, engine, writer, pool, sessions[0].in_flight)
        result["metrics"] |= _memory_metrics(placement, pool)
        if result["status"] == "finished" and engine.timings:
            clips = read_clips(Path(spec["manifest"]), spans)
            measure_beside(config, ready, pool, lanes, clips, run_dir, events, result, stop.is_set)
        halved = [halving for each in sessions for halving in each.halvings if halving not in result["warnings"]]
        missed = [miss for canary in canaries for miss in canary.misses[:1]]
        for problem in (*engine.lane_failures, *halved, *missed):
            warn(problem, events, result)
        result["resolved"]["memory.batch_size"] = sessions[0].rows_at_once
    result["metrics"]["decoders_replaced"] = float(pool.deaths)
    seconds = config.profile.device_speed_s[placement.device.effective.value]
    if seconds > 0 and result["status"] == "finished":
        result["metrics"] |= _device_speed(config, ready, result["metrics"].get("examples_per_s"), seconds)
    write_batches(run_dir / BATCHES, engine.timings)
    _warn_of_ceiling(config, placement, result, events)


def _mirror(spec: dict[str, Any], config: RunConfig) -> StoreMirror | None:
    """What puts the run's files into an object store; None where they stay on a file system."""
    if "store" not in spec:
        return None
    from runner.store_writer import StoreMirror

    return StoreMirror(spec, config)


def _take_figures(result: dict[str, Any], engine: Engine, writer: RunWriter, pool: DecodePool, in_flight: int) -> None:
    """What a run came to: its counts, speed, spread, and where the time went."""
    progress = engine.progress
    result["metrics"] |= steady_metrics(engine)
    result["metrics"]["session_clips"] = float(progress.clips)
    overall, result["skipped"], result["noted"] = totals(writer.done)
    result["metrics"] |= overall
    shares = stage_shares(engine, sum(pool.busy_s.values()), len(pool))
    result["metrics"] |= {f"{stage}_busy_share": share for stage, share in shares.items()}
    result["metrics"] |= starved_shares(engine, in_flight)
    result["metrics"] |= window_spread(engine.timings, progress.audio_s)
    result["bottleneck"] = bottleneck(shares)
    result["series"] = windows_over_time(engine.timings, progress.audio_s)
    result["shards"] = len(writer.done)


def _device_speed(config: RunConfig, ready: Ready, examples_per_s: float | None, seconds: float) -> dict[str, float]:
    """The figures of the device by itself; a device that is out of memory for them has none."""
    placement, sessions = ready.placement, ready.sessions
    try:
        alone = model_only(sessions, seconds, ready.dtypes[0])
        kind, precision = placement.device.effective.value, placement.precision.effective
        peak = matmul_peak(sessions[0], kind, precision, seconds)
    except Exception as error:
        log.warning("the device by itself was not measured: %s", error)
        return {}
    return speed_metrics(examples_per_s, alone, peak, len(sessions), config.frontend.hop_s)


def _memory_metrics(placement: Placement, pool: DecodePool) -> dict[str, float]:
    found = {"rss_peak_mib": peak_rss_mib(), "decode_rss_peak_mib": sum(pool.rss_peak_mib.values())}
    found["decode_cpu_s"] = sum(pool.cpu_s.values())
    return found | gpu_memory_metrics(placement.device)


def _warn_of_ceiling(config: RunConfig, placement: Placement, result: dict[str, Any], events: Events) -> None:
    ceiling = config.memory.host_memory_mib
    used = result["metrics"]["rss_peak_mib"]
    allowed = ceiling_mib(ceiling, placement.device.effective)
    if allowed is not None and used > allowed:
        warn(f"the worker took {used:.0f} MiB, above memory.host_memory_mib={ceiling}", events, result)


@contextlib.contextmanager
def _reporting(engine: Engine, events: Events, clips_before: int, hop_s: float, pool: DecodePool) -> Iterator[None]:
    """Send the counts to the parent from a thread of its own, a few times a second, and once at the end.

    The examples of clips under way count as audio, one for every ``hop_s``, so that an hour-long clip shows at once how
    fast it is; what is sent at the end is of finished clips alone.  ``clips_before`` were done before this session.
    """
    over = threading.Event()

    def report() -> None:
        while not over.wait(_PROGRESS_S):
            examples = max(0, engine.examples_done - engine.progress.examples)
            send(examples, _clips_in(examples, engine, pool))

    def send(examples_under_way: int, clips_under_way: float) -> None:
        progress = engine.progress
        events.send(
            "progress",
            clips=clips_before + progress.clips,
            session_clips=progress.clips,
            clips_under_way=clips_under_way,
            skipped=sum(progress.skipped.values()),
            examples=progress.examples + examples_under_way,
            audio_s=progress.audio_s + examples_under_way * hop_s,
            elapsed_s=time.perf_counter() - engine.started_at,
        )

    thread = threading.Thread(target=report, name="report", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        send(0, 0.0)


def _clips_in(examples: int, engine: Engine, pool: DecodePool) -> float:
    """How many clips these examples of clips under way come to: by the parts that are decoded, or by the average clip.

    Each decode process has at most one clip under way in part.
    """
    progress = engine.progress
    average = progress.examples / max(progress.embedded, 1)
    return min(len(pool), max(pool.memory.parts_done(), examples / average if average else 0.0))


def _first_workers(config: RunConfig) -> int:
    """Decode processes to start before the device is known: they fill batches while TensorFlow is imported."""
    return min(config.memory.decode_workers or 1, max(1, usable_cores() // 2))


def _take_standard_output() -> IO[str]:
    """Keep standard output for events, and send what anything else prints to standard error."""
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return events
