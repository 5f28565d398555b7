"""``engine=local``: one process with all devices of this machine, its decode processes, and the run's files."""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from runner.contract.result import RunStats
from runner.core.layout import RunLayout
from runner.core.span import Span
from runner.core.startup_timer import StartupTimer
from runner.dataset.clips import read_clips
from runner.dataset.window_types import window_types
from runner.devices.cuda import pinned
from runner.devices.detection import DeviceType
from runner.devices.host import peak_rss_mib
from runner.devices.load import BackgroundLoad
from runner.engines.common import (
    Engine,
    file_metadata,
    identity_of,
    make_writer,
    remote_committer,
    shard_files,
    tune_interpreter,
)
from runner.engines.progress import report_progress
from runner.inference.canary import Canary
from runner.inference.gpu_memory import gpu_memory_metrics
from runner.inference.memory import ceiling_mib
from runner.inference.resampling import resamples_on_device
from runner.inference.startup import SessionStartup
from runner.output.state.identity import check_identity
from runner.output.state.journal import Journal
from runner.output.state.locks import worker_lock
from runner.output.verify import load_committed_shards
from runner.output.writer import ShardWriter, check_complete, make_spill, totals
from runner.pipeline.decode_pool import DecodePool, decode_options, decoders_for, initial_decode_processes
from runner.pipeline.messages import Replica
from runner.pipeline.pipeline import EmbeddingPipeline, ShardedClips
from runner.pipeline.skip_limit import SkipLimit
from runner.pipeline.writer_processes import WriterProcesses
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
from runner.profiling.passes import Profiler
from runner.profiling.sampler import Sampler

if TYPE_CHECKING:
    from runner.contract.result import Scalar, Status
    from runner.inference.builder import Placement
    from runner.inference.startup import LoadedModel
    from runner.output.remote.committer import RemoteCommitter
    from runner.output.state.journal import ShardEntry
    from runner.output.writer import Files, ShardFiles
    from runner.pipeline.messages import PipelineStats

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Inputs:
    """A run's resources before its model is loaded.

    ``committed`` waits for the shards that are done and verified; ``remote`` is None where the output is a folder.
    """

    pool: DecodePool
    sampler: Sampler
    remote: RemoteCommitter | None
    committed: Callable[[], dict[int, ShardEntry]]


@dataclass(frozen=True)
class _Work:
    """What embeds: the pipeline from the pool to the writer, and the replicas with their canaries.

    ``metadata`` is that of the run's files; ``spans`` are the rows of the shards that are left, ``clips`` in all.
    """

    model: LoadedModel
    pool: DecodePool
    pipeline: EmbeddingPipeline
    writer: ShardWriter
    replicas: list[Replica]
    canaries: list[Canary]
    metadata: dict[str, str]
    spans: list[Span]
    clips: int


class LocalEngine(Engine):
    """Embeds a run on this machine; see ``Engine``."""

    _writers: WriterProcesses | None = None

    def run(self) -> Status:
        """Embed what is left, and measure what ``profile`` asks for."""
        self._timer = StartupTimer(self._spec.spawned_at)
        with contextlib.ExitStack() as stack:
            inputs = self._open_inputs(stack)
            model = self._load_model()
            if model.placement.device.effective is DeviceType.GPU:
                inputs.sampler.gpus = model.placement.device.indices
            work = self._open_pipeline(inputs, model, stack)
            self._embed(work, inputs.sampler)
            status: Status = "interrupted" if len(work.writer.committed) < len(self._spec.shards) else "finished"
            if status == "finished" and work.pipeline.stats.timings:
                self._profile(work)
            self._warn_of_sessions(work)
        self.metrics["decode_process_restarts"] = float(work.pool.deaths)
        if status == "finished":
            self._measure_device(model)
        write_batches(RunLayout(self._spec.run_dir).batches, work.pipeline.stats.timings)
        self._warn_of_ceiling(model.placement)
        return status

    def close(self) -> None:
        """Nothing is left."""

    def _open_inputs(self, stack: contextlib.ExitStack) -> _Inputs:
        """Take the worker's lock, start decode processes, and verify committed shards in the background.

        Raises:
            ResumeError: another worker is at work on the run.
        """
        spec, config = self._spec, self._spec.config
        sampler = Sampler(config.profile.sample_every_s)
        sampler.start()
        stack.callback(sampler.stop)
        self._events.phase("lock")
        remote = remote_committer(spec)
        lock = remote.worker_lock if remote else None
        stack.enter_context(worker_lock(spec.run_dir, config.engine.shutdown_timeout_s, lock))
        processes = initial_decode_processes(config, spec.dataset.clips)
        pool = DecodePool(decode_options(config), processes, config.dataset.decode_timeout_s)
        stack.callback(pool.close)
        verify = (
            remote.load_committed_shards
            if remote
            else functools.partial(load_committed_shards, spec.run_dir, config.output.formats, spec.row_digests)
        )
        committed = ThreadPoolExecutor(1).submit(verify)  # while TensorFlow is imported
        return _Inputs(pool, sampler, remote, committed.result)

    def _load_model(self) -> LoadedModel:
        """Load the model, whose identity must be that of the shards already done.

        Raises:
            RunnerError: device, weights or parity, or a resumed run had other weights or another precision.
        """
        startup = SessionStartup(
            self._spec,
            window_types(self._spec.manifest, self._spec.config.preparation),
            self._timer,
            self._events,
        )
        try:
            model = startup.prepare()
        finally:
            self.startup = startup.report
            self.metrics |= startup.metrics
        check_identity(self._spec.run_dir, identity_of(model.sessions[0], model.postprocess))
        return model

    def _open_pipeline(self, inputs: _Inputs, model: LoadedModel, stack: contextlib.ExitStack) -> _Work:
        """Open the decode pool in the size that the memory policy plans, and connect it to writer and replicas."""
        spec, config, pool = self._spec, self._spec.config, inputs.pool
        committed = inputs.committed()
        spans = [span for number, span in enumerate(spec.shards) if number not in committed]
        clips = sum(end - first for first, end in spans)
        plan = model.placement.memory
        on_device = resamples_on_device(config.device.resampling, model.placement.device.effective)
        self._resolve({"device.resampling": "device" if on_device else "host"})
        decoders, rows = decoders_for(plan.decode_workers, clips), model.sessions[0].effective_batch_size
        pool.open(decoders, plan.spare_slots, rows, resample=not on_device)
        if model.placement.device.effective is DeviceType.GPU:
            self._pin(pool, stack)
        metadata = file_metadata(config, model.sessions[0], model.placement)
        journal = Journal(RunLayout(spec.run_dir).journal)
        stack.callback(journal.close)
        make_files = shard_files(spec, model.sessions[0].spec, metadata, model.postprocess)
        files = self._open_files(make_files, plan.writer_processes, stack)
        writer = make_writer(spec, files, journal, committed, inputs.remote)
        skipped_before = sum(totals(committed).skipped.values())
        pipeline = EmbeddingPipeline(
            ShardedClips(spec.shards, read_clips(spec.manifest, spans), clips),
            pool,
            writer,
            shutdown_timeout_s=config.engine.shutdown_timeout_s,
            on_skip=SkipLimit(config.dataset, spec.dataset, skipped_before),
            spill=make_spill(spec.run_dir, config),
        )
        self._stop.begin(pipeline.stop)
        canaries = [
            Canary(session, model.answers, config.parity, model.dtypes, lambda: len(writer.committed))
            for session in model.sessions
        ]
        replicas = [Replica.watched(*pair) for pair in zip(model.sessions, canaries, strict=True)]
        return _Work(model, pool, pipeline, writer, replicas, canaries, metadata, spans, clips)

    def _open_files(self, make_files: Callable[[], ShardFiles], processes: int, stack: contextlib.ExitStack) -> Files:
        """Open the writer of the shards' files: processes where the plan has any."""
        if not processes:
            return make_files()
        self._writers = WriterProcesses(make_files, processes)
        stack.callback(self._writers.close)
        return self._writers

    def _pin(self, pool: DecodePool, stack: contextlib.ExitStack) -> None:
        """Lock the slots' pages for copies to the GPU."""
        with self._timer.step("pin"):
            refused = stack.enter_context(pinned(pool.memory.bytes))
        self._resolve({"memory.pinned": refused is None})
        if refused:
            self._events.warn(f"batches are copied to the GPU from pageable memory, which is slow: {refused}")

    def _embed(self, work: _Work, sampler: Sampler) -> None:
        """Run the pipeline, and collect its metrics and statistics.

        Raises:
            RunnerError: too many clips were skipped, a canary missed, or shards have no end.
        """
        spec, pipeline, pool = self._spec, work.pipeline, work.pool
        self.metrics |= self._timer.metrics(time.time())
        self._events.phase("embed")
        background, decode_cpu_s = BackgroundLoad(), sum(pool.cpu_s.values())
        tune_interpreter()
        done, hop_s = spec.dataset.clips - work.clips, spec.config.frontend.file_hop_s
        with (
            report_progress(pipeline.stats, self._events, done, hop_s, pool),
            work.writer.clips_table(work.metadata),
        ):
            pipeline.run(work.replicas)
        own_cpu_s = pipeline.stats.cpu_s + sum(pool.cpu_s.values()) - decode_cpu_s
        if self._writers:
            own_cpu_s += self._writers.cpu_s
            self.metrics["writer_rss_peak_mib"] = self._writers.rss_peak_mib
        self.metrics["parity_canaries"] = float(sum(canary.count for canary in work.canaries))
        self.metrics["background_cpu_share"] = background.share(own_cpu_s)
        sampler.stop()
        if not pipeline.stopped:
            check_complete(spec.shards, work.writer.committed)
        in_flight = work.model.sessions[0].in_flight
        self.stats = _collect_stats(pipeline.stats, work.writer, pool)
        self.stats = replace(self.stats, memory_series=sampler.series(pipeline.stats.started_at))
        self.metrics |= _collect_metrics(pipeline.stats, work.writer, pool, in_flight)
        self.metrics |= _memory_metrics(work.model.placement, pool)

    def _profile(self, work: _Work) -> None:
        """Measure what ``profile`` asks for after the run."""
        spec = self._spec
        profiler = Profiler(spec, work.model, work.pool, work.replicas, self._events, self._stop.is_set)
        clips, curve = read_clips(spec.manifest, work.spans), self.startup.batch_size_curve
        profile = profiler.run(clips, self.metrics, has_curve=curve is not None)
        self.metrics |= profile.metrics
        self.repeats = profile.repeats
        self.startup = replace(self.startup, batch_size_curve=curve or profile.batch_size_curve)

    def _warn_of_sessions(self, work: _Work) -> None:
        """Pass on failed replicas, batches that were halved, and misses of canaries."""
        backoffs = [backoff for session in work.model.sessions for backoff in session.oom_backoffs]
        faults = [fault for session in work.model.sessions for fault in session.resampling_faults]
        misses = [miss for canary in work.canaries for miss in canary.misses[:1]]
        if not (faults or misses):
            work.model.programs.commit()  # with those that were compiled in the course of the run
        for problem in (*work.pipeline.stats.replica_failures, *backoffs, *faults, *misses):
            self._events.warn(problem)
        self._resolve({"memory.batch_size": work.model.sessions[0].effective_batch_size})

    def _measure_device(self, model: LoadedModel) -> None:
        """Measure the device by itself; one that is out of memory for that has no such metrics."""
        config, placement, sessions = self._spec.config, model.placement, model.sessions
        seconds = config.profile.device_benchmark_s[placement.device.effective.value]
        if seconds <= 0:
            return
        try:
            alone = model_only(sessions, seconds, model.dtypes[0])
            kind, precision = placement.device.effective.value, placement.precision.effective
            peak = matmul_peak(sessions[0], kind, precision, seconds)
        except Exception as error:
            log.warning("skipped the device benchmark: %s", error)
            return
        examples_per_s = self.metrics.get("examples_per_s")
        self.metrics |= speed_metrics(
            examples_per_s, alone, peak, len(sessions), config.frontend.file_hop_s, sessions[0].spec.flop
        )

    def _warn_of_ceiling(self, placement: Placement) -> None:
        used = self.metrics["rss_peak_mib"]
        allowed = ceiling_mib(self._spec.config.memory, placement.device.effective)
        if allowed is not None and used > allowed:
            limit = placement.memory.host_limit_mib
            self._events.warn(f"the worker took {used:.0f} MiB, above memory.host_limit_mib={limit}")

    def _resolve(self, values: Mapping[str, Scalar]) -> None:
        self.startup = replace(self.startup, resolved={**self.startup.resolved, **values})


def _collect_stats(stats: PipelineStats, writer: ShardWriter, pool: DecodePool) -> RunStats:
    sums = totals(writer.committed)
    return RunStats(
        skipped=sums.skipped,
        warnings_by_reason=sums.warned,
        bottleneck=bottleneck(_stage_shares(stats, pool)),
        throughput_series=throughput_series(stats.timings, stats.progress.audio_s),
        shards=len(writer.committed),
    )


def _collect_metrics(stats: PipelineStats, writer: ShardWriter, pool: DecodePool, in_flight: int) -> dict[str, float]:
    """Collect counts, speed, its spread, and where the time went; ``in_flight`` are calls of a session at a time."""
    return {
        **steady_metrics(stats),
        "attempt_clips": float(stats.progress.clips),
        **totals(writer.committed).metrics,
        **{f"{stage}_busy_share": share for stage, share in _stage_shares(stats, pool).items()},
        **input_wait_shares(stats, in_flight),
        **window_spread(stats.timings, stats.progress.audio_s),
    }


def _stage_shares(stats: PipelineStats, pool: DecodePool) -> dict[str, float]:
    return stage_shares(stats, sum(pool.busy_s.values()), len(pool))


def _memory_metrics(placement: Placement, pool: DecodePool) -> dict[str, float]:
    return {
        "rss_peak_mib": peak_rss_mib(),
        "decode_rss_peak_mib": sum(pool.rss_peak_mib.values()),
        "decode_cpu_s": sum(pool.cpu_s.values()),
        **gpu_memory_metrics(placement.device),
    }
