"""``engine=local``: all devices of this machine, in this process or in one process each, and the run's files.

The session of one device, or of devices that can't be counted without TensorFlow, is in this process
(``engines.embedder``); of several GPUs each has a process of its own (``engines.embedder_processes``).
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

from runner.contract.result import RunStats
from runner.core.errors import DeviceError
from runner.core.layout import RunLayout
from runner.dataset.clips import read_clips
from runner.devices.load import BackgroundLoad
from runner.devices.nvml import usable_gpus
from runner.devices.selection import ALL
from runner.engines.common import Engine, remote_committer
from runner.engines.embedder import Embedder
from runner.engines.embedder_processes import EmbedderProcesses
from runner.engines.reports import Work, combined
from runner.output.state.identity import check_identity
from runner.output.state.journal import Journal
from runner.output.state.locks import worker_lock
from runner.output.verify import load_committed_shards
from runner.output.writer import check_complete, clips_table, totals
from runner.pipeline.skip_limit import SkipLimit
from runner.profiling.device_speed import speed_metrics
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
    from runner.contract.events import Events
    from runner.contract.result import Status
    from runner.contract.spec import RunSpec
    from runner.engines.reports import EmbedReport
    from runner.output.remote.committer import RemoteCommitter
    from runner.output.state.journal import ShardEntry

log = logging.getLogger(__name__)


class Commits:
    """The committed shards of a run, and the journal in which they are recorded.

    Args:
        journal: of the run.
        committed: the shards that it has already.

    Attributes:
        committed: the committed shards by number.
    """

    def __init__(self, journal: Journal, committed: Mapping[int, ShardEntry]) -> None:
        self.committed = dict(committed)
        self._journal = journal

    def append(self, entry: ShardEntry) -> None:
        """Record a committed shard, or a revoked one, durably."""
        self._journal.append(entry)
        if entry.revoked:
            self.committed.pop(entry.shard, None)
        else:
            self.committed[entry.shard] = entry


class LocalEngine(Engine):
    """Embeds a run on this machine; see ``Engine``."""

    def run(self) -> Status:
        """Embed what is left, and measure what ``profile`` asks for."""
        spec, config = self._spec, self._spec.config
        with contextlib.ExitStack() as stack:
            sampler = Sampler(config.profile.sample_every_s)
            sampler.start()
            stack.callback(sampler.stop)
            self._events.phase("lock")
            remote = remote_committer(spec)
            lock = remote.worker_lock if remote else None
            stack.enter_context(worker_lock(spec.run_dir, config.engine.shutdown_timeout_s, lock))
            embedder = _open_embedder(spec, self._events)
            stack.callback(lambda: embedder.close())
            verify = (
                remote.load_committed_shards
                if remote
                else functools.partial(load_committed_shards, spec.run_dir, config.output.formats, spec.row_digests)
            )
            committed = ThreadPoolExecutor(1).submit(verify)  # while TensorFlow is imported
            try:
                self._load(embedder)
            except DeviceError as error:
                if config.device.strict or isinstance(embedder, Embedder):
                    raise
                log.warning("one process embeds instead of one for each GPU: %s", error)
                embedder.close()
                embedder = Embedder(spec, self._events)
                self._load(embedder)
            check_identity(spec.run_dir, embedder.identity)
            sampler.gpus, sampler.pids = embedder.gpus, (os.getpid(), *embedder.pids)
            journal = Journal(RunLayout(spec.run_dir).journal)
            stack.callback(journal.close)
            commits = Commits(journal, committed.result())
            report = self._embed(embedder, commits, remote, sampler)
            status: Status = "interrupted" if len(commits.committed) < len(spec.shards) else "finished"
            if status == "finished" and report.stats.timings:
                self._profile(embedder)
            if status == "finished":
                self._measure_devices(embedder)
        write_batches(RunLayout(spec.run_dir).batches, report.stats.timings)
        return status

    def close(self) -> None:
        """Nothing is left."""

    def _load(self, embedder: Embedder | EmbedderProcesses) -> None:
        """Load the model.

        Raises:
            RunnerError: device, weights or parity.
        """
        try:
            embedder.load()
        finally:
            self.startup = embedder.startup
            self.metrics |= embedder.metrics

    def _embed(
        self,
        embedder: Embedder | EmbedderProcesses,
        commits: Commits,
        remote: RemoteCommitter | None,
        sampler: Sampler,
    ) -> EmbedReport:
        """Embed the shards that are left, and collect metrics and statistics.

        Raises:
            RunnerError: too many clips were skipped, a canary missed, or shards have no end.
        """
        spec, config, committed = self._spec, self._spec.config, commits.committed
        shards = [number for number in range(len(spec.shards)) if number not in committed]
        spans = [spec.shards[number] for number in shards]
        clips = sum(end - first for first, end in spans)
        skip_limit = SkipLimit(config.dataset, spec.dataset, sum(totals(committed).skipped.values()))
        work = Work(
            shards=shards,
            clips=read_clips(spec.manifest, spans),
            count=clips,
            commit_log=commits,
            on_skip=skip_limit,
            forget_skipped=skip_limit.forget,
            remote=remote,
            clips_before=spec.dataset.clips - clips,
        )
        embedder.open(clips)
        self.startup, self.metrics = embedder.startup, {**self.metrics, **embedder.metrics}
        self._stop.begin(embedder.stop)
        self._events.phase("embed")
        background = BackgroundLoad()
        with clips_table(spec.run_dir, committed, embedder.file_metadata):
            report = combined(embedder.embed(work))
        sampler.stop()
        if not self._stop.is_set():
            check_complete(spec.shards, committed)
        self.startup = replace(self.startup, resolved={**self.startup.resolved, **report.resolved})
        self.stats = _collect_stats(report, committed)
        self.stats = replace(self.stats, memory_series=sampler.series(report.stats.started_at))
        self.metrics |= _collect_metrics(report, committed)
        self.metrics["background_cpu_share"] = background.share(report.cpu_s)
        return report

    def _profile(self, embedder: Embedder | EmbedderProcesses) -> None:
        """Measure what ``profile`` asks for after the run."""
        profiler = Profiler(self._spec, embedder, self._events, self._stop.is_set)
        curve = self.startup.batch_size_curve
        profile = profiler.run(self.metrics, has_curve=curve is not None)
        self.metrics |= profile.metrics
        self.repeats = profile.repeats
        self.startup = replace(self.startup, batch_size_curve=curve or profile.batch_size_curve)

    def _measure_devices(self, embedder: Embedder | EmbedderProcesses) -> None:
        """Measure the devices by themselves; those that are out of memory for that have no such metrics."""
        config, device = self._spec.config, self.startup.device
        seconds = config.profile.device_benchmark_s[device.effective] if device else 0.0
        if seconds <= 0:
            return
        try:
            alone, peak = map(sum, zip(*embedder.call("device_speed", seconds), strict=True))
        except Exception as error:
            log.warning("skipped the device benchmark: %s", error)
            return
        hop_s, flop = config.frontend.file_hop_s, config.model.spec.flop
        self.metrics |= speed_metrics(self.metrics.get("examples_per_s"), alone, peak, hop_s, flop)


def _open_embedder(spec: RunSpec, events: Events) -> Embedder | EmbedderProcesses:
    """Return this process's own embedder, or a process for each of several GPUs."""
    device = spec.config.device
    if device.index == ALL and device.name in ("auto", "gpu"):
        gpus = usable_gpus()[: len(spec.shards)]
        if len(gpus) > 1:
            return EmbedderProcesses(spec, gpus, events)
    return Embedder(spec, events)


def _collect_stats(report: EmbedReport, committed: Mapping[int, ShardEntry]) -> RunStats:
    sums = totals(committed)
    return RunStats(
        skipped=sums.skipped,
        warnings_by_reason=sums.warned,
        bottleneck=bottleneck(_stage_shares(report)),
        throughput_series=throughput_series(report.stats.timings, report.stats.progress.audio_s),
        shards=len(committed),
    )


def _collect_metrics(report: EmbedReport, committed: Mapping[int, ShardEntry]) -> dict[str, float]:
    """Collect counts, speed, its spread, where the time went, and memory."""
    stats = report.stats
    return {
        **steady_metrics(stats),
        "attempt_clips": float(stats.progress.clips),
        **totals(committed).metrics,
        **{f"{stage}_busy_share": share for stage, share in _stage_shares(report).items()},
        **input_wait_shares(stats, report.in_flight),
        **window_spread(stats.timings, stats.progress.audio_s),
        **report.sums,
        **report.most,
    }


def _stage_shares(report: EmbedReport) -> dict[str, float]:
    return stage_shares(report.stats, report.decode_s, report.decode_processes)
