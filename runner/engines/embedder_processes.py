"""Several GPUs of this machine, a process each, behind the interface of one ``Embedder``.

One Python interpreter feeds one fast GPU; so each has a process with its share of the cores and of the memory limits.
The worker hands shards out, a few ahead, and keeps the journal, the counts of skipped clips and the progress.  A
process that dies, or whose GPU fails, is not replaced: its shards go to the others.
"""

from __future__ import annotations

import logging
import signal
import time
from collections import deque
from collections.abc import Sequence
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any

from runner.config.schema import AUTO
from runner.contract.events import DeviceEvent, PhaseEvent, ProgressEvent, WarningEvent
from runner.contract.result import Startup
from runner.core.errors import EngineError, OutOfMemoryError, RunnerError
from runner.core.failures import Failure, error_of
from runner.devices.host import peak_rss_mib
from runner.engines.embedder_process import Answer, Begun, EmbedderProcess, Failed, Loaded
from runner.engines.reports import EmbedReport, joined_startups, progress_of
from runner.output.rows import ClipRow
from runner.output.state.identity import diff_identity
from runner.output.state.journal import ShardEntry
from runner.pipeline.messages import PipelineStats
from runner.pipeline.shutdown import POLL_S

if TYPE_CHECKING:
    from runner.contract.events import Events
    from runner.contract.spec import RunSpec
    from runner.engines.reports import Work

log = logging.getLogger(__name__)

_CLIPS_AHEAD = 2048
"""Clips of the shards that wait in a process: a fast GPU embeds them in 80 ms, in which more have come."""

_EXIT_S = 10.0
"""Seconds that a process may take to end what it does when the run ends."""


class EmbedderProcesses:
    """Embeds shards of a run in one process for each GPU; see ``Embedder`` for methods and attributes.

    Args:
        spec: the run's.
        gpus: their indices.
        events: gets progress and warnings.
    """

    def __init__(self, spec: RunSpec, gpus: Sequence[int], events: Events) -> None:
        self._spec, self._events = spec, events
        self._count = len(gpus)
        self._processes: list[EmbedderProcess] = []
        self._lost: list[EmbedReport] = []
        self._ended: list[ProgressEvent] = []
        self._remaining: deque[int] = deque()
        self._work: Work | None = None
        self._stop_requested = False
        self._began = 0.0
        self.startup = Startup()
        self.metrics: dict[str, float] = {}
        self.identity: dict[str, str] = {}
        self.file_metadata: dict[str, str] = {}
        self.gpus: Sequence[int] = ()
        self._waiting: Sequence[int] = ()
        if spec.config.memory.batch_size == AUTO:  # the others find what the first one measures, and don't disturb it
            gpus, self._waiting = gpus[:1], gpus[1:]
        self._start(gpus)

    @property
    def pids(self) -> list[int]:
        """The processes that have sessions."""
        return [process.handle.pid or 0 for process in self._processes]

    def load(self) -> None:
        """Load the model in all processes, each of which takes its GPU through the parity gate.

        Raises:
            RunnerError: device, weights or parity of any of them.
            EngineError: all died, or they embed with different numbers.
        """
        self._await_loaded()
        self._start(self._waiting)
        self._await_loaded()
        loaded = [process.loaded for process in self._processes if process.loaded]
        self._join(loaded)
        self.identity, self.file_metadata = dict(loaded[0].identity), dict(loaded[0].file_metadata)
        for own in loaded[1:]:
            if others := diff_identity(self.identity, own.identity):
                raise EngineError(f"the GPUs embed with different numbers: {others}; give a precision that all have")

    def open(self, clips: int) -> None:
        """Have each process open its decode pool for its share of the clips, and start its writers.

        Raises:
            RunnerError: one failed with it.
            EngineError: all processes died.
        """
        self._join(self.call("open", -(-clips // len(self._processes))))

    def embed(self, work: Work) -> list[EmbedReport]:
        """Embed shards; return the reports of all processes, of this one and of those that are lost.

        Raises:
            RunnerError: too many clips were skipped, or a process failed with it.
            EngineError: all processes died.
        """
        self._work, self._remaining, self._began = work, deque(work.shards), time.perf_counter()
        while self._remaining and not self._stop_requested:
            self._round(-(-work.count // len(self._processes)))
        reports = [process.report for process in self._processes if process.report]
        own = EmbedReport(PipelineStats(writers=0), sums={"rss_peak_mib": peak_rss_mib()})
        return [*reports, *self._lost, own]

    def stop(self) -> None:
        """Ask for an early end, from any thread: the shards that processes have begun are finished."""
        self._stop_requested = True

    def close(self) -> None:
        """End the processes; one that takes long is killed."""
        for process in self._processes:
            process.send("close")
            if process.loaded is None:
                process.handle.kill()
        until, connections = time.monotonic() + _EXIT_S, [process.connection for process in self._processes]
        while connections and time.monotonic() < until:
            for connection in [own for own in connections if own in wait(connections, POLL_S)]:
                try:
                    connection.recv()  # a shard that is not recorded is done again
                except (EOFError, OSError):
                    connections.remove(connection)
        for process in self._processes:
            process.end()
        self._processes.clear()

    def call(self, name: str, *arguments: object) -> list[Any]:
        """Return the answers of all processes to a question of ``Embedder``, which they work on at the same time.

        Raises:
            RunnerError: one failed with it.
        """
        for process in self._processes:
            self._ask(process, name, *arguments)
        while any(process.is_asked for process in self._processes):
            self._receive()
        return _checked([process.answer for process in self._processes])

    def call_first(self, name: str, *arguments: object) -> list[Any]:
        """Return the answer of the first process, in a list."""
        first = self._processes[0]
        self._ask(first, name, *arguments)
        while first.is_asked:
            self._receive()
        return _checked([first.answer])

    def _round(self, clips: int) -> None:
        """Have all processes embed until no shard is left; those of one that is lost at the end need another round."""
        for process in self._processes:
            self._ask(process, "embed", clips)
        is_ending = stop_sent = False
        while any(process.is_asked for process in self._processes):
            if self._stop_requested and not stop_sent:
                stop_sent = True
                self._remaining.clear()
                self._send_all("stop")
            if not is_ending:
                self._hand_out()
                is_ending = not self._remaining
                if is_ending:
                    self._send_all("shard", None)
            self._receive()

    def _start(self, gpus: Sequence[int]) -> None:
        for gpu in gpus:
            self._processes.append(EmbedderProcess(self._spec, gpu, len(self._processes), self._count))

    def _join(self, loaded: Sequence[Loaded]) -> None:
        """Join what the processes say of their startup."""
        worst = max(range(len(loaded)), key=lambda number: loaded[number].metrics.get("parity_rel_err", 0.0))
        slowest = max(loaded, key=lambda own: own.metrics.get("startup_s", 0.0))
        self.metrics = {**slowest.metrics, **_only_parity(loaded[worst].metrics)}
        self.startup = joined_startups([own.startup for own in loaded], self._spec.config.device.name, worst)
        self.gpus = [gpu for own in loaded for gpu in own.gpus]

    def _await_loaded(self) -> None:
        while any(process.loaded is None for process in self._processes):
            self._receive()

    def _ask(self, process: EmbedderProcess, *question: object) -> None:
        process.is_asked = True
        process.send(*question)

    def _send_all(self, *message: object) -> None:
        for process in self._processes:
            process.send(*message)

    def _hand_out(self) -> None:
        """Hand out shards, so that in each process enough wait to be begun, and fewer towards the end of the run.

        Those that it has begun don't count: several are decoded, embedded and written at the same time.
        """
        assert self._work is not None
        clips_per_shard = max(self._work.count / len(self._work.shards), 1.0)
        for process in sorted(self._processes, key=lambda process: len(process.waiting)):
            while self._remaining:
                share = len(self._remaining) // (2 * len(self._processes))
                if len(process.waiting) >= max(1, min(1 + int(_CLIPS_AHEAD / clips_per_shard), share)):
                    break
                shard = self._remaining.popleft()
                process.shards.add(shard)
                process.waiting.add(shard)
                process.send("shard", shard)

    def _receive(self) -> None:
        """Wait for a moment, and take the messages that have come."""
        ready = wait([process.connection for process in self._processes], POLL_S)
        for process in [own for own in self._processes if own.connection in ready]:
            try:
                message = process.connection.recv()
            except (EOFError, OSError):
                self._lose_dead(process)
                continue
            if isinstance(message, Failed):
                self._handle_failure(process, message)
            elif isinstance(message, ShardEntry | ClipRow):
                self._handle_clips(process, message)
            elif isinstance(message, Begun):
                process.waiting.discard(message.shard)
            elif isinstance(message, Loaded):
                process.loaded = message
            elif isinstance(message, Answer):
                self._handle_answer(process, message.value)
            elif isinstance(message, ProgressEvent):
                process.progress = message
                self._send_progress()
            elif isinstance(message, WarningEvent):
                self._events.warn(message.message)
            elif isinstance(message, PhaseEvent | DeviceEvent) and process is self._processes[0]:
                self._events.send(message)

    def _handle_clips(self, process: EmbedderProcess, message: ShardEntry | ClipRow) -> None:
        assert self._work is not None
        if isinstance(message, ClipRow):
            process.skipped += 1
            self._work.on_skip(message)
            return
        self._work.commit_log.append(message)
        if not message.revoked:
            process.shards.discard(message.shard)
            process.entries.append(message)
            process.skipped -= sum(message.counts.skipped.values())

    def _handle_answer(self, process: EmbedderProcess, answer: Any) -> None:
        process.is_asked, process.answer = False, answer
        if isinstance(answer, EmbedReport):
            process.report = answer
            self._end_round(process, process.progress)

    def _handle_failure(self, process: EmbedderProcess, failed: Failed) -> None:
        """Go on without a GPU that failed, where there are others; any other failure is the run's."""
        if failed.replica_failed and len(self._processes) > 1:
            self._lose(process, failed.failure.message)
            return
        if process.loaded is None:
            self.startup, self.metrics = failed.startup, dict(failed.metrics)
        process.is_asked = False
        raise error_of(failed.failure)

    def _lose_dead(self, process: EmbedderProcess) -> None:
        process.handle.join(_EXIT_S)
        error: type[RunnerError] = EngineError
        reason = f"its process died (exit status {process.handle.exitcode})"
        if process.handle.exitcode == -signal.SIGKILL:
            reason, error = "the system killed its process, probably for lack of memory", OutOfMemoryError
        self._lose(process, reason)
        if not self._processes:
            raise error(
                f"GPU {process.gpu} was the last one, and {reason}: see runner.log, choose memory=conservative, and "
                "rerun the same command to resume"
            )

    def _lose(self, process: EmbedderProcess, reason: str) -> None:
        """Drop a process, whose shards go to the others; those that it has committed count."""
        self._events.warn(f"GPU {process.gpu} is no longer used: {reason}")
        self._processes.remove(process)
        process.end()
        process.is_asked, process.answer = False, Failed(Failure("engine", reason))
        self._remaining.extendleft(sorted(process.shards, reverse=True))
        if self._work is not None:
            self._work.forget_skipped(process.skipped)
        own = PipelineStats(progress_of(process.entries), writers=0)
        self._lost += [EmbedReport(own)] if process.report is None else [process.report, EmbedReport(own)]
        counts = own.progress
        skipped = sum(counts.skipped.values())
        event = ProgressEvent(counts.clips, counts.clips, skipped, counts.examples, counts.audio_s, 0.0)
        self._end_round(process, event)

    def _end_round(self, process: EmbedderProcess, progress: ProgressEvent | None) -> None:
        if progress:
            self._ended.append(progress)
        process.progress, process.skipped = None, 0
        process.entries.clear()
        process.shards.clear()
        process.waiting.clear()

    def _send_progress(self) -> None:
        """Send the counts of all processes together."""
        if self._work is None:
            return
        counts = [*self._ended, *(process.progress for process in self._processes if process.progress)]
        clips = sum(own.attempt_clips for own in counts)
        self._events.send(
            ProgressEvent(
                clips=self._work.clips_before + clips,
                attempt_clips=clips,
                skipped=sum(own.skipped for own in counts),
                examples=sum(own.examples for own in counts),
                audio_s=sum(own.audio_s for own in counts),
                elapsed_s=time.perf_counter() - self._began,
                clips_under_way=sum(own.clips_under_way for own in counts),
            )
        )


def _checked(answers: list[Any]) -> list[Any]:
    """Return answers; raise the failure that is among them."""
    for answer in answers:
        if isinstance(answer, Failed):
            raise error_of(answer.failure)
    return answers


def _only_parity(metrics: Any) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name.startswith("parity_")}
