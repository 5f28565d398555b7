"""Messages between the stages of the pipeline, and the pipeline's statistics."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from runner.audio.source_windows import WindowKind

if TYPE_CHECKING:
    from runner.audio.framing import Framing, Windows
    from runner.audio.preparation import Preparation
    from runner.audio.source_windows import SourceWindows
    from runner.inference.canary import Canary
    from runner.inference.session import EmbeddingSession

Array = NDArray[np.float32]


class ClipTask(NamedTuple):
    """One clip to decode; ``job`` is unique to this try, and ``crashes`` counts the processes that died on it."""

    job: int
    path: bytes
    start: float | None
    end: float | None
    crashes: int = 0


class Segment(NamedTuple):
    """The next rows of a slot: ``windows`` windows of a job, from its example ``first``."""

    job: int
    first: int
    windows: int


class ClipResult(NamedTuple):
    """How a clip's decoding ended.

    ``reason`` and ``detail`` say why a clip is skipped (not ``embedded``), or warn of an embedded one; ``seconds`` is
    the decoded length.
    """

    job: int
    embedded: bool
    reason: str | None
    detail: str | None
    examples: int
    seconds: float
    sample_rate: int | None
    channels: int | None
    padded: bool

    @classmethod
    def skipped(
        cls, job: int, reason: str, detail: str, sample_rate: int | None = None, channels: int | None = None
    ) -> ClipResult:
        """Return the result of a clip that has no embeddings."""
        return cls(job, False, reason, detail, 0, 0.0, sample_rate, channels, False)


class SlotGrant(NamedTuple):
    """To a decode process: this slot may be filled."""

    slot: int


class Decode(NamedTuple):
    """To a decode process: clips to decode, in order; ``last`` if the parent has no more at present."""

    tasks: list[ClipTask]
    last: bool


class DecodeReport(NamedTuple):
    """From a decode process: a slot (None: no windows) with its segments, and the clips that are finished.

    A clip is finished once all its windows are in submitted slots.  ``decoded`` counts the ``Decode`` messages that
    were completed since the last report.  ``rss_peak_mib`` (without the slots), ``cpu_s`` and ``busy_s`` (decoding, not
    waiting) are the process's own, since it started.
    """

    slot: int | None
    kind: WindowKind
    segments: list[Segment]
    finished: list[ClipResult]
    decoded: int
    rss_peak_mib: float
    cpu_s: float
    busy_s: float


def encode(message: SlotGrant | Decode | DecodeReport | None) -> bytes:
    """Pickle a message between worker and decode process as plain tuples, which is far faster than named ones.

    None asks a decode process to end.
    """
    if isinstance(message, Decode):
        return pickle.dumps(("D", list(map(tuple, message.tasks)), message.last), pickle.HIGHEST_PROTOCOL)
    if isinstance(message, DecodeReport):
        lists = list(map(tuple, message.segments)), list(map(tuple, message.finished))
        return pickle.dumps(("R", message.slot, tuple(message.kind), *lists, *message[4:]), pickle.HIGHEST_PROTOCOL)
    return pickle.dumps(message and ("S", message.slot), pickle.HIGHEST_PROTOCOL)


def decode_message(data: bytes) -> SlotGrant | Decode | DecodeReport | None:
    """Return the message that ``encode`` pickled, in a process of our own."""
    pickled = pickle.loads(data)
    if pickled is None:
        return None
    kind, *values = pickled
    if kind == "D":
        tasks, last = values
        return Decode(list(map(ClipTask._make, tasks)), last)
    if kind == "R":
        slot, kind, segments, finished, *counters = values
        lists = list(map(Segment._make, segments)), list(map(ClipResult._make, finished))
        return DecodeReport(slot, WindowKind._make(kind), *lists, *counters)
    return SlotGrant(*values)


@dataclass(frozen=True)
class DecodeOptions:
    """The configuration that decode processes need; see the groups ``model``, ``frontend`` and ``dataset``."""

    preparation: Preparation
    framing: Framing
    on_truncated: str = "keep"
    max_duration_s: float = float("inf")
    prefetch: int = 1
    download_timeout_s: float = 60.0


@dataclass(frozen=True)
class Replica:
    """A model on one device.

    ``embed`` turns a batch of windows into float32 [n, width]; it may call its second argument once
    they are on the device.  ``threads`` batches are in flight at a time, so that copies and compute overlap.
    ``canary`` runs a last check at the end, and knows which shards to trust after a ``ParityError``.
    """

    name: str
    embed: Callable[[Windows | SourceWindows, Callable[[], None]], Array]
    threads: int = 1
    canary: Canary | None = None

    @classmethod
    def watched(cls, session: EmbeddingSession, canary: Canary) -> Replica:
        """Return a session's replica, with canaries among its batches."""
        return cls(session.device_name[1:], canary.embed, session.in_flight, canary)


@dataclass(frozen=True)
class BatchTiming:
    """One batch in a replica: start, end of the copy, and result on the host, in seconds since the pipeline's start.

    ``copied_s`` is None where the device reads host memory.
    """

    replica: int
    started_s: float
    copied_s: float | None
    finished_s: float
    examples: int

    @property
    def duration_s(self) -> float:
        """Seconds from start to result."""
        return self.finished_s - self.started_s


@dataclass
class Progress:
    """Counts of finished clips and shards; ``skipped`` and ``noted`` are by reason."""

    clips: int = 0
    embedded: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    noted: dict[str, int] = field(default_factory=dict)
    examples: int = 0
    audio_s: float = 0.0
    padded: int = 0
    shards: int = 0


@dataclass
class PipelineStats:
    """Counts and times of a pipeline; written by its threads, read from any.

    Attributes:
        progress: counts of finished clips and shards.
        timings: of each batch, by end.
        started_at: ``time.perf_counter`` of the start.
        results_at: ``time.perf_counter`` when the last result was on the host.
        cpu_s: this process's processor time while the pipeline ran.
        input_wait_s: seconds that the threads of a replica, by its number, waited for a batch, all together.
        examples_done: examples embedded, those of unfinished clips included.
        replica_failures: a message for each retired replica.
        writers: threads that write shards.
        write_s: seconds in which they wrote, all together.
    """

    progress: Progress = field(default_factory=Progress)
    timings: list[BatchTiming] = field(default_factory=list)
    started_at: float = 0.0
    results_at: float = 0.0
    cpu_s: float = 0.0
    input_wait_s: dict[int, float] = field(default_factory=dict)
    examples_done: int = 0
    replica_failures: list[str] = field(default_factory=list)
    writers: int = 1
    write_s: float = 0.0

    @property
    def steady_s(self) -> float:
        """Seconds from the start to the last result on the host."""
        return self.results_at - self.started_at


class FilledSlot(NamedTuple):
    """A batch: a slot of the pool's memory with ``rows`` windows of one kind in it."""

    slot: int
    kind: WindowKind
    rows: int
    segments: list[Segment]


class Decoded(NamedTuple):
    """From the decode pool: a filled slot (return it by ``release``), and the clips that are finished."""

    filled: FilledSlot | None
    finished: Sequence[ClipResult]


class EmbeddedBatch(NamedTuple):
    """From a replica: embeddings, float32 [n, width], of a batch's segments in their order."""

    segments: list[Segment]
    embeddings: Array
