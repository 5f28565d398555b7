"""The part of a run that one process does: its devices, its decode and writer processes, and what it measured."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from runner.contract.result import Startup
from runner.core.span import Span
from runner.core.startup_timer import StartupTimer
from runner.dataset.clips import read_clips
from runner.dataset.window_types import window_types
from runner.devices.cuda import pinned
from runner.devices.detection import DeviceType
from runner.devices.host import peak_rss_mib
from runner.engines.common import file_metadata, identity_of, make_writer, shard_files, tune_interpreter
from runner.engines.progress import report_progress
from runner.engines.reports import EmbedReport, joined
from runner.inference.canary import Canary
from runner.inference.gpu_memory import gpu_memory_metrics
from runner.inference.memory import ceiling_mib
from runner.inference.resampling import resamples_on_device
from runner.inference.startup import SessionStartup
from runner.output.writer import make_spill
from runner.pipeline.decode_pool import DecodePool, decode_options, decoders_for, initial_decode_processes
from runner.pipeline.messages import PipelineStats, Replica
from runner.pipeline.pipeline import EmbeddingPipeline, ShardedClips
from runner.pipeline.writer_processes import WriterProcesses
from runner.profiling.device_speed import matmul_peak, model_only
from runner.profiling.passes import NullWriter, PassReport, batch_size_curve, evenly, trace

if TYPE_CHECKING:
    from pathlib import Path

    from runner.contract.events import Events
    from runner.contract.result import BatchSizeCurve, Scalar
    from runner.contract.spec import RunSpec
    from runner.dataset.clips import Clip
    from runner.engines.reports import Work
    from runner.inference.startup import LoadedModel
    from runner.output.writer import Files

log = logging.getLogger(__name__)


class Embedder:
    """Embeds shards of a run with all devices of this process; decode processes start when this is made.

    Args:
        spec: the run's.
        events: gets progress and warnings.

    Attributes:
        startup: what was decided before the first clip, as far as it has come, also where it fails.
        metrics: of the startup, likewise.
        identity: the weights and precision in effect, once loaded.
        file_metadata: that of the run's files, likewise.
        gpus: indices of the CUDA devices in use, likewise.
        replica_failed: whether ``embed`` failed because the last replica did.
    """

    def __init__(self, spec: RunSpec, events: Events) -> None:
        self._spec, self._events, config = spec, events, spec.config
        self._timer = StartupTimer(spec.spawned_at)
        self._stack = contextlib.ExitStack()
        self._pool = DecodePool(
            decode_options(config),
            initial_decode_processes(config, spec.dataset.clips),
            config.dataset.decode_timeout_s,
        )
        self._stack.callback(self._pool.close)
        self._stop_requested = False
        self._pipeline: EmbeddingPipeline | None = None
        self._replicas: list[Replica] = []
        self._canaries: list[Canary] = []
        self._stats: list[PipelineStats] = []
        self._shards: set[int] = set()
        self._cpu_s = 0.0  # while pipelines ran, without the writer processes'
        self._clips_of_pass: list[Clip] = []
        self.startup = Startup()
        self.metrics: dict[str, float] = {}
        self.identity: dict[str, str] = {}
        self.file_metadata: dict[str, str] = {}
        self.gpus: Sequence[int] = ()
        self.replica_failed = False

    @property
    def pids(self) -> list[int]:
        """The other processes that have sessions: none."""
        return []

    def load(self) -> None:
        """Load the model and take it through the parity gate.

        Raises:
            RunnerError: device, weights or parity.
        """
        spec = self._spec
        dtypes = window_types(spec.manifest, spec.config.preparation)
        startup = SessionStartup(spec, dtypes, self._timer, self._events)
        try:
            self._model: LoadedModel = startup.prepare()
        finally:
            self.startup = startup.report
            self.metrics |= startup.metrics
        session, device = self._model.sessions[0], self._model.placement.device
        self.identity = identity_of(session, self._model.postprocess)
        self.file_metadata = file_metadata(spec.config, session, self._model.placement)
        if device.effective is DeviceType.GPU:
            self.gpus = device.indices

    def open(self, clips: int) -> None:
        """Bring the decode pool to the size that the memory policy plans for so many clips, and start the writers."""
        spec, model, pool = self._spec, self._model, self._pool
        session, plan, device = model.sessions[0], model.placement.memory, model.placement.device.effective
        on_device = resamples_on_device(spec.config.device.resampling, device)
        self._resolve("device.resampling", "device" if on_device else "host")
        decoders = decoders_for(plan.decode_workers, clips)
        pool.open(decoders, plan.spare_slots, session.effective_batch_size, resample=not on_device)
        if device is DeviceType.GPU:
            self._pin()
        make_files = shard_files(spec, session.spec, self.file_metadata, model.postprocess)
        self._writers: WriterProcesses | None = None
        if plan.writer_processes:
            self._writers = WriterProcesses(make_files, plan.writer_processes)
            self._stack.callback(self._writers.close)
        self._files: Files = self._writers or make_files()
        self.metrics |= self._timer.metrics(time.time())
        tune_interpreter()

    def _pin(self) -> None:
        """Lock the slots' pages for copies to the GPU."""
        with self._timer.step("pin"):
            refused = self._stack.enter_context(pinned(self._pool.memory.bytes))
        self._resolve("memory.pinned", refused is None)
        if refused:
            self._events.warn(f"batches are copied to the GPU from pageable memory, which is slow: {refused}")

    def embed(self, work: Work) -> list[EmbedReport]:
        """Embed shards; return one report, of all that this process has embedded so far.

        Raises:
            RunnerError: too many clips were skipped, a canary missed, or clips were lost.
            Exception: the first error of any thread.
        """
        spec, config, model, pool = self._spec, self._spec.config, self._model, self._pool
        writer = make_writer(spec, self._files, work.commit_log, remote=work.remote)
        self._pipeline = pipeline = EmbeddingPipeline(
            ShardedClips(spec.shards, work.clips, work.count),
            pool,
            writer,
            shutdown_timeout_s=config.engine.shutdown_timeout_s,
            on_skip=work.on_skip,
            spill=make_spill(spec.run_dir, config),
        )
        if self._stop_requested:
            pipeline.stop()
        canaries = [
            Canary(session, model.answers, config.parity, model.dtypes, lambda: len(writer.committed))
            for session in model.sessions
        ]
        self._canaries += canaries
        self._replicas = [Replica.watched(*pair) for pair in zip(model.sessions, canaries, strict=True)]
        before_s = sum(pool.cpu_s.values())
        try:
            with report_progress(pipeline.stats, self._events, work.clips_before, config.frontend.file_hop_s, pool):
                pipeline.run(self._replicas)
        finally:
            self.replica_failed = len(pipeline.stats.replica_failures) == len(self._replicas)
            self._shards |= writer.committed.keys()
        self._cpu_s += pipeline.stats.cpu_s + sum(pool.cpu_s.values()) - before_s
        self._stats.append(pipeline.stats)
        self._warn_of_sessions(pipeline.stats.replica_failures)
        return [self._report()]

    def stop(self) -> None:
        """Ask for an early end, from any thread: see ``EmbeddingPipeline.stop``."""
        self._stop_requested = True
        if self._pipeline:
            self._pipeline.stop()

    def abort(self, error: Exception) -> None:
        """End ``embed`` with an error, from any thread."""
        if self._pipeline:
            self._pipeline.abort(error)

    def close(self) -> None:
        """End decode and writer processes."""
        self._stack.close()

    def call(self, name: str, *arguments: object) -> list[Any]:
        """Return the answer of one of the methods below, in a list: see ``EmbedderProcesses.call``."""
        return [getattr(self, name)(*arguments)]

    call_first = call

    def examples_at_once(self) -> int:
        """Return the examples of a full batch of every replica."""
        return len(self._replicas) * self._model.sessions[0].effective_batch_size

    def cpu_s(self) -> float:
        """Return the processor time of this process and its decode processes."""
        return time.process_time() + sum(self._pool.cpu_s.values())

    def choose_clips(self, count: int) -> None:
        """Choose about so many of the clips that were embedded, for passes."""
        spans = [self._spec.shards[shard] for shard in sorted(self._shards)]
        embedded = sum(end - first for first, end in spans)
        clips = evenly(read_clips(self._spec.manifest, spans), count, embedded)
        self._clips_of_pass = [clip._replace(number=number) for number, clip in enumerate(clips)]

    def run_pass(self) -> PassReport:
        """Embed the chosen clips once more, and write nothing."""
        clips = self._clips_of_pass
        pipeline = EmbeddingPipeline(
            ShardedClips([Span(0, len(clips))], iter(clips)), self._pool, NullWriter(), shutdown_timeout_s=0.0
        )
        pipeline.run(self._replicas)
        stats, progress = pipeline.stats, pipeline.stats.progress
        return PassReport(stats.started_at, stats.results_at, len(stats.timings), progress.examples, progress.audio_s)

    def batch_size_curve(self) -> BatchSizeCurve:
        """Measure the model alone over batch sizes that the memory policy allows."""
        return batch_size_curve(self._model, self._spec.config)

    def trace(self, folder: Path) -> None:
        """Write TensorFlow's profile of a few batches."""
        trace(self._model.sessions[0], folder, self._model.dtypes[0])

    def device_speed(self, seconds: float) -> tuple[float, float]:
        """Measure examples per second of the model alone, and TFLOP/s of matrix products, of all devices together."""
        model = self._model
        alone = model_only(model.sessions, seconds, model.dtypes[0])
        kind, precision = model.placement.device.effective.value, model.placement.precision.effective
        return alone, matmul_peak(model.sessions[0], kind, precision, seconds) * len(model.sessions)

    def _report(self) -> EmbedReport:
        pool, session, placement = self._pool, self._model.sessions[0], self._model.placement
        sums = {
            "rss_peak_mib": peak_rss_mib(),
            "decode_rss_peak_mib": sum(pool.rss_peak_mib.values()),
            "decode_cpu_s": sum(pool.cpu_s.values()),
            "decode_process_restarts": float(pool.deaths),
            "parity_canaries": float(sum(canary.count for canary in self._canaries)),
        }
        if self._writers:
            sums["writer_rss_peak_mib"] = self._writers.rss_peak_mib
        self._warn_of_ceiling(sums["rss_peak_mib"])
        stats = joined(self._stats, [0] * len(self._stats))
        stats.writers = self._stats[-1].writers
        return EmbedReport(
            stats=stats,
            resolved={"memory.batch_size": session.effective_batch_size},
            cpu_s=self._cpu_s + (self._writers.cpu_s if self._writers else 0.0),
            decode_s=sum(pool.busy_s.values()),
            decode_processes=len(pool),
            in_flight=session.in_flight,
            sums=sums,
            most=gpu_memory_metrics(placement.device),
        )

    def _warn_of_sessions(self, replica_failures: Sequence[str]) -> None:
        """Pass on failed replicas, batches that were halved, and misses of canaries."""
        model = self._model
        backoffs = [backoff for session in model.sessions for backoff in session.oom_backoffs]
        faults = [fault for session in model.sessions for fault in session.resampling_faults]
        misses = [miss for canary in self._canaries for miss in canary.misses[:1]]
        if not (faults or misses):
            model.programs.commit()  # with those that were compiled in the course of the run
        for problem in (*replica_failures, *backoffs, *faults, *misses):
            self._events.warn(problem)

    def _warn_of_ceiling(self, used_mib: float) -> None:
        placement = self._model.placement
        allowed = ceiling_mib(self._spec.config.memory, placement.device.effective)
        if allowed is not None and used_mib > allowed:
            limit = placement.memory.host_limit_mib
            self._events.warn(f"the worker took {used_mib:.0f} MiB, above memory.host_limit_mib={limit}")

    def _resolve(self, name: str, value: Scalar) -> None:
        self.startup = replace(self.startup, resolved={**self.startup.resolved, name: value})
