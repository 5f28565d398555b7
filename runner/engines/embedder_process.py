"""One of several processes of a run, a GPU each: it embeds the shards that the worker sends it; see ``Embedder``.

``EmbedderProcess`` is the worker's side, ``embed_main`` the process itself.

The worker's messages are ``(name, *arguments)``: ``shard`` (None: there are no more), ``stop`` and ``close`` are taken
at once; ``open``, ``embed`` and the names of ``Embedder``'s questions are answered one after the other.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import queue
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from runner.contract.events import Events, WarningEvent
from runner.contract.result import Startup
from runner.core.errors import EngineError
from runner.core.failures import failure_of
from runner.core.printable import LOG_FORMAT, PrintableFormatter
from runner.core.stop_signals import die_with, held_back, ignore
from runner.devices.host import take_share_of_cores
from runner.engines.common import queued_clips, remote_committer
from runner.engines.embedder import Embedder
from runner.engines.reports import Work
from runner.pipeline.decode_process import CONTEXT

if TYPE_CHECKING:
    from runner.config.schema import MemoryConfig
    from runner.contract.events import Event, ProgressEvent
    from runner.contract.spec import RunSpec
    from runner.core.failures import Failure
    from runner.engines.reports import EmbedReport
    from runner.output.rows import ClipRow
    from runner.output.state.journal import ShardEntry

log = logging.getLogger(__name__)

_LEAST_HOST_MIB = 1024
"""The least ``memory.host_limit_mib``."""


@dataclass(frozen=True)
class Loaded:
    """A process that has loaded the model or, as the answer to ``open``, is ready to embed; see ``Embedder``."""

    startup: Startup
    metrics: Mapping[str, float]
    identity: Mapping[str, str]
    file_metadata: Mapping[str, str]
    gpus: Sequence[int] = ()


@dataclass(frozen=True)
class Begun:
    """A shard whose clips the process has begun to decode."""

    shard: int


@dataclass(frozen=True)
class Answer:
    """The answer to the question before; of one that is not ``embed`` it may be ``Failed``."""

    value: Any


@dataclass(frozen=True)
class Failed:
    """The failure of a question, or as a message the end of this process.

    ``replica_failed`` says that its device did; ``startup`` and ``metrics`` are as far as they have come.
    """

    failure: Failure
    replica_failed: bool = False
    startup: Startup = field(default_factory=Startup)
    metrics: Mapping[str, float] = field(default_factory=dict)


class EmbedderProcess:
    """A process as the worker knows it; it starts when this is made.

    Args:
        spec: the run's.
        gpu: the index of its GPU.
        place: of this process among all, from 0.
        count: of processes, of which each has its share of cores and of the memory policy's limits.

    Attributes:
        gpu: the index of its GPU.
        handle: multiprocessing's.
        connection: to it.
        loaded: its first message, once it has come.
        shards: those that it has, since it was last asked to ``embed``.
        waiting: those of them that it has not begun.
        entries: those that it has committed, since then.
        skipped: clips of the others that it has skipped, since then.
        progress: its counts since then.
        report: that of its last ``embed``.
        is_asked: whether it owes an answer.
        answer: the last one.
    """

    def __init__(self, spec: RunSpec, gpu: int, place: int, count: int) -> None:
        self.gpu = gpu
        self.loaded: Loaded | None = None
        self.shards: set[int] = set()
        self.waiting: set[int] = set()
        self.entries: list[ShardEntry] = []
        self.skipped = 0
        self.progress: ProgressEvent | None = None
        self.report: EmbedReport | None = None
        self.is_asked = False
        self.answer: Any = None
        config = spec.config
        device = replace(config.device, name="gpu", index=gpu, strict=True)
        own = replace(spec, config=replace(config, device=device, memory=_share_of(config.memory, count)))
        self.connection, child_connection = CONTEXT.Pipe()
        self.handle = CONTEXT.Process(
            target=embed_main, args=(child_connection, os.getpid(), own, (place, count)), name=f"gpu{gpu}"
        )
        if os.name == "posix":
            resource_tracker.ensure_running()  # which lets signals in again
        with held_back():  # one that comes while the process is starting is ignored as well
            self.handle.start()
        child_connection.close()

    def send(self, *message: object) -> None:
        """Send a message; a process that is dead is noticed later."""
        with contextlib.suppress(OSError):
            self.connection.send(message)

    def end(self) -> None:
        """Wait a moment for the process's end, and kill it otherwise."""
        self.handle.join(1.0)
        self.handle.kill()
        self.handle.join()
        self.connection.close()


def _share_of(memory: MemoryConfig, count: int) -> MemoryConfig:
    """Return the part of the run's limits that one of ``count`` processes has; defaults are those of each GPU."""

    def share(value: Any, least: int) -> Any:
        return max(least, value // count) if isinstance(value, int) and value else value

    return replace(
        memory,
        embeddings_mib=memory.embeddings_mib // count,
        decode_workers=share(memory.decode_workers, 1),
        writer_processes=share(memory.writer_processes, 1),
        host_limit_mib=share(memory.host_limit_mib, _LEAST_HOST_MIB),
    )


class _SentEvents(Events):
    """Sends events to the worker, which passes them on."""

    def __init__(self, send: Callable[[object], None]) -> None:
        super().__init__(io.StringIO())
        self._send_message = send

    def send(self, event: Event) -> None:
        self._send_message(event)

    def warn(self, message: str) -> None:
        self.send(WarningEvent(message))  # the worker logs it


class _Child:
    """The process's own state.

    Args:
        connection: to the worker.
        spec: the run's, with this process's share of the machine.
    """

    def __init__(self, connection: Connection, spec: RunSpec) -> None:
        self._connection, self._spec = connection, spec
        self._lock = threading.Lock()
        self._questions: queue.SimpleQueue[tuple[Any, ...] | None] = queue.SimpleQueue()
        self._shards: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._embedder = Embedder(spec, _SentEvents(self._send))

    def run(self) -> None:
        """Load the model, and answer questions until the worker says ``close``."""
        threading.Thread(target=self._receive, name="worker", daemon=True).start()
        own = self._embedder
        try:
            own.load()
            self._send(self._loaded())
            while (question := self._questions.get()) is not None:
                name, *arguments = question
                if name == "open":
                    own.open(*arguments)
                    self._send(Answer(self._loaded()))
                elif name == "embed":
                    self._send(Answer(self._embed(*arguments)))
                else:
                    self._send(Answer(self._answer(name, arguments)))
        except Exception as error:
            log.exception("the process of GPU %s can't go on", self._spec.config.device.index)
            self._send(Failed(failure_of(error), own.replica_failed, own.startup, own.metrics))
        own.close()

    def _loaded(self) -> Loaded:
        own = self._embedder
        return Loaded(own.startup, own.metrics, own.identity, own.file_metadata, own.gpus)

    def _embed(self, clips: int) -> Any:
        work = Work(
            shards=(),
            clips=queued_clips(self._shards, self._spec, lambda shard: self._send(Begun(shard))),
            count=clips,
            commit_log=self,
            on_skip=self._report_skipped,
            remote=remote_committer(self._spec),
        )
        return self._embedder.embed(work)[0]

    def _answer(self, name: str, arguments: Sequence[object]) -> Any:
        try:
            return self._embedder.call(name, *arguments)[0]
        except Exception as error:
            log.exception("%s failed", name)
            return Failed(failure_of(error))

    def append(self, entry: ShardEntry) -> None:
        """Report a committed shard: the worker keeps the journal."""
        self._send(entry)

    def _report_skipped(self, row: ClipRow) -> None:
        self._send(row._replace(embeddings=()))

    def _receive(self) -> None:
        """Take the worker's messages; without it this process ends."""
        try:
            while True:
                message = self._connection.recv()
                name, *arguments = message
                if name == "shard":
                    self._shards.put(*arguments)
                elif name == "stop":
                    self._embedder.stop()
                elif name == "close":
                    self._embedder.abort(EngineError("the run has ended"))
                    self._questions.put(None)
                else:
                    self._questions.put(message)
        except (EOFError, OSError):
            os._exit(1)

    def _send(self, message: object) -> None:
        try:
            with self._lock:
                self._connection.send(message)
        except OSError:  # the worker is gone
            os._exit(1)


def embed_main(connection: Connection, parent: int, spec: RunSpec, share: tuple[int, int]) -> None:
    """Embed clips of a run on one GPU, with a share of the cores: see ``take_share_of_cores``."""
    ignore()
    die_with(parent)
    take_share_of_cores(*share)
    handler = logging.StreamHandler()
    named = f"GPU {spec.config.device.index}: %(message)s"
    handler.setFormatter(PrintableFormatter(LOG_FORMAT.replace("%(message)s", named)))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    _Child(connection, spec).run()
    logging.shutdown()
    sys.stderr.flush()
    os._exit(0)  # as the worker does
