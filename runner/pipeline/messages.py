"""What the stages of the pipeline hand to each other."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from runner.inference.canary import Canary
    from runner.inference.session import VGGishSession
    from runner.vggish.framing import Windows


class ClipTask(NamedTuple):
    """One clip to decode; ``job`` is unique to this attempt at it."""

    job: int
    path: bytes
    start: float | None
    end: float | None
    attempt: int = 0


class Segment(NamedTuple):
    """So many ``windows`` of a job, from its example ``first``, at the next rows of a slot."""

    job: int
    first: int
    windows: int


class ClipResult(NamedTuple):
    """How a clip's decoding ended; ``reason`` is None where nothing is to be told, ``seconds`` is what was decoded."""

    job: int
    embedded: bool
    reason: str | None
    detail: str | None
    examples: int
    seconds: float
    sample_rate: int | None
    channels: int | None
    padded: bool


class SlotGrant(NamedTuple):
    """To a decode process: this slot may be filled."""

    slot: int


class Decode(NamedTuple):
    """To a decode process: clips, in order; ``last`` if the parent has no more at present."""

    tasks: list[ClipTask]
    last: bool


class DecodeReport(NamedTuple):
    """What a decode process sends: a slot (None: no windows) and what it holds, and the clips that are finished.

    A clip is finished once all its windows are handed over.  ``decoded`` counts the ``Decode`` messages done with
    since the last handover.  ``rss_peak_mib`` (without the slots), ``cpu_s`` and ``busy_s`` (decoding, not waiting) are
    the process's own, since it started.
    """

    slot: int | None
    dtype: str
    segments: list[Segment]
    finished: list[ClipResult]
    decoded: int
    rss_peak_mib: float
    cpu_s: float
    busy_s: float


def packed(message: SlotGrant | Decode | DecodeReport | None) -> bytes:
    """A message between worker and decode process as bytes: plain tuples, which pickle far faster than named ones."""
    if isinstance(message, Decode):
        return pickle.dumps(("D", list(map(tuple, message.tasks)), message.last), pickle.HIGHEST_PROTOCOL)
    if isinstance(message, DecodeReport):
        lists = list(map(tuple, message.segments)), list(map(tuple, message.finished))
        whole = ("H", message.slot, message.dtype, *lists, *message[4:])
        return pickle.dumps(whole, pickle.HIGHEST_PROTOCOL)
    return pickle.dumps(message and ("S", message.slot), pickle.HIGHEST_PROTOCOL)


def decode_message(data: bytes) -> SlotGrant | Decode | DecodeReport | None:
    """The message that ``packed`` gave; it comes from a process of our own."""
    plain = pickle.loads(data)
    if plain is None:
        return None
    kind, *rest = plain
    if kind == "D":
        return Decode(list(map(ClipTask._make, rest[0])), rest[1])
    if kind == "H":
        slot, dtype, segments, finished, *figures = rest
        return DecodeReport(
            slot, dtype, list(map(Segment._make, segments)), list(map(ClipResult._make, finished)), *figures
        )
    return SlotGrant(rest[0])


@dataclass(frozen=True)
class DecodeOptions:
    """The front end's choices that decoding needs."""

    hop_s: float
    short_clips: str
    tail: str
    resampler: str
    on_truncated: str = "keep"
    max_duration_s: float = float("inf")
    prefetch: int = 1
    download_timeout_s: float = 60.0


Array = NDArray[np.float32]


@dataclass(frozen=True)
class Replica:
    """One compute device at work.

    ``embed`` takes windows, int16 or float32 [n, 15600], and a function that it may call once they are on the device;
    it gives float32 [n, 128].  ``threads`` batches are in flight at a time, so that copies and compute overlap.
    ``canary`` is told of the end, and knows which shards are to be trusted after a ``ParityError``.
    """

    name: str
    embed: Callable[[Windows, Callable[[], None]], Array]
    threads: int = 1
    canary: Canary | None = None

    @classmethod
    def watched(cls, session: VGGishSession, canary: Canary) -> Replica:
        """A session's replica, with canaries among its batches."""
        return cls(session.device_name[1:], canary.embed, session.in_flight, canary)


@dataclass(frozen=True)
class BatchTiming:
    """One batch in a replica: when it was taken, on the device and its result on the host, in seconds since the start.

    ``copied_s`` is None where the device reads host memory.
    """

    replica: int
    started_s: float
    copied_s: float | None
    at_s: float
    examples: int

    @property
    def duration_s(self) -> float:
        """Seconds from the batch's taking to its result on the host."""
        return self.at_s - self.started_s


@dataclass
class Progress:
    """Counts so far; written by the collector, read by anyone."""

    clips: int = 0
    embedded: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    noted: dict[str, int] = field(default_factory=dict)
    examples: int = 0
    audio_s: float = 0.0
    padded: int = 0
    shards: int = 0


class FilledSlot(NamedTuple):
    """A slot of the pool's memory with ``rows`` windows of ``dtype`` in it."""

    slot: int
    dtype: str
    rows: int
    segments: list[Segment]


class Decoded(NamedTuple):
    """What came from the pool: a filled slot (to be given back by ``release``), and the clips that are finished."""

    filled: FilledSlot | None
    finished: Sequence[ClipResult]
