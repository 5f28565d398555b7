"""Decoding apart from embedding, under ``engine=ray``: actors that decode shards, and actors that embed windows.

Between them go packets through Ray's object store: some tens of MB of windows, whose they are, and the ends of clips.
A packet is a row of a table of two columns, ``payload`` (windows, then embeddings) and ``note`` (all else).
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import pickle
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from runner.batching import Merger
from runner.cold_start import ColdStart
from runner.decode import ClipResult, Segment
from runner.engine import BatchTiming
from runner.errors import ParityError
from runner.feeding import Feeder
from runner.gathering import Clip
from runner.measure import LaneClock, lane_seconds
from runner.parts import decode_options, decoders_for, favour_lanes, read_clips
from runner.pool import DecodePool, FilledSlot
from runner.ray_actor import Actor, described
from runner.ray_registry import Brief
from runner.slots import WINDOW_BYTES, Windows
from runner.vggish.constants import EMBEDDING_SIZE, EXAMPLE_SAMPLES

log = logging.getLogger("runner.worker")

_PACKET_BYTES = 32 << 20
"""Windows of a packet, in bytes if they are float32; as many whole batches as that holds, and at least one."""
_SPARE_SLOTS = 4
EMBED_CALLS = 4
"""Packets that an embedding actor has at a time: one is on its way to the device while another is computed."""
_POLL_S = 0.1


class Note(NamedTuple):
    """What goes with a packet's windows, and then with its embeddings.

    ``attempt`` is unique to one decoding of a group of shards, ``number`` counts its packets: jobs of different
    attempts have nothing to do with each other.  ``clips`` gives the clip of every job that is mentioned, without its
    path.  ``reports`` are for the driver.
    """

    attempt: str
    number: int
    dtype: str
    clips: dict[int, Clip]
    segments: list[Segment]
    results: list[ClipResult]
    reports: list[dict[str, Any]]


def to_table(payload: NDArray[Any] | None, note: Note) -> pa.Table:
    """A packet as Ray Data takes it; the payload is not copied."""
    flat = b"" if payload is None else np.ascontiguousarray(payload).reshape(-1).view(np.uint8)
    clips: Any = {job: tuple(clip) for job, clip in note.clips.items()}  # pickled far faster than named ones
    told = pickle.dumps(tuple(note._replace(clips=clips)), pickle.HIGHEST_PROTOCOL)
    return pa.table({"payload": _binary(flat), "note": _binary(told)})


def from_table(table: pa.Table) -> Iterator[tuple[memoryview, Note]]:
    """The packets of a table: the payload's bytes, not copied, and the note.  They come from processes of our own."""
    for row in range(table.num_rows):
        note = Note._make(pickle.loads(table["note"][row].as_buffer()))
        clips = {job: Clip._make(clip) for job, clip in note.clips.items()}
        yield memoryview(table["payload"][row].as_buffer()), note._replace(clips=clips)


def _binary(data: Any) -> pa.Array:
    buffer = pa.py_buffer(data)
    offsets = pa.py_buffer(np.array([0, buffer.size], np.int64))
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, buffer])


class Packing:
    """Fills packets with the windows that a decode pool gives.

    Args:
        rows: windows of a full packet.
    """

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._attempt = uuid.uuid4().hex
        self._packets = 0
        self._clips: dict[int, Clip] = {}
        self._given: dict[int, int] = {}
        self._examples: dict[int, int] = {}
        """Of every job under way: windows that packets had so far, and of those with a result, how many there are."""
        self._filled: dict[str, tuple[Windows, int, list[Segment]]] = {}
        self._results: list[ClipResult] = []

    def register(self, job: int, clip: Clip) -> None:
        """A clip is decoded as this job."""
        self._clips[job] = clip

    def forget(self, job: int) -> Clip | None:
        """A job will not be finished; its clip."""
        return self._clips.pop(job, None)

    def take_results(self, results: Sequence[ClipResult]) -> None:
        """Take how clips ended."""
        self._results.extend(results)

    def add(self, windows: Windows, segments: list[Segment]) -> Iterator[tuple[Windows, Note]]:
        """Take windows, which are copied; give the packet that is full with them."""
        dtype = str(windows.dtype)
        array, used, before = self._filled.pop(dtype, (None, 0, []))
        if array is not None and used + len(windows) > self._rows:
            yield self._packet(array[:used], before)
            array, used, before = None, 0, []
        if array is None:
            array = np.empty((self._rows, EXAMPLE_SAMPLES), dtype)
        end = used + len(windows)
        array[used:end] = windows
        if end == self._rows:
            yield self._packet(array, before + segments)
        else:
            self._filled[dtype] = (array, end, before + segments)

    def rest(self) -> Iterator[tuple[Windows, Note]]:
        """Give all that is held."""
        while self._filled:
            array, used, segments = self._filled.popitem()[1]
            yield self._packet(array[:used], segments)
        if self._results:
            yield self._packet(np.empty((0, EXAMPLE_SAMPLES), np.int16), [])

    def _packet(self, windows: Windows, segments: list[Segment]) -> tuple[Windows, Note]:
        results, self._results = self._results, []
        jobs = {job for job, _, _ in segments} | {result.job for result in results}
        clips = {job: self._clips[job]._replace(path=b"") for job in jobs if job in self._clips}
        for job, _, count in segments:
            self._given[job] = self._given.get(job, 0) + count
        self._examples |= {result.job: result.examples if result.embedded else 0 for result in results}
        for job in jobs:
            if self._given.get(job, 0) >= self._examples.get(job, math.inf):  # nothing of it will come any more
                for known in (self._clips, self._given, self._examples):
                    known.pop(job, None)
        self._packets += 1
        return windows, Note(self._attempt, self._packets, str(windows.dtype), clips, segments, results, [])


class DecodeShards(Actor):
    """For ``map_batches``: rows with ``shards`` (a JSON list of numbers) to packets of windows.

    It owns decode processes, and no session.

    Args:
        brief: what it is made from.
        processes: how many decode, at most.
        batch: windows that the embedding actors take at once.
    """

    role = "decode"

    def __init__(self, brief: Brief, processes: int, batch: int) -> None:
        self._processes, self._batch = processes, batch
        self._rows = batch * max(1, _PACKET_BYTES // (batch * WINDOW_BYTES))
        # One thread for all of the actor's life: Linux ends decode processes with the thread that started them.
        self._thread = ThreadPoolExecutor(1)
        super().__init__(brief)

    def make(self) -> None:
        """The decode pool."""
        self._thread.submit(self._make).result()

    def _make(self) -> None:
        processes = decoders_for(self._processes, self.shards[-1][1])
        self._pool = DecodePool(decode_options(self.config), processes, self.config.dataset.clip_timeout_s)
        self._pool.open(processes, _SPARE_SLOTS, self._batch)

    def __call__(self, batch: Mapping[str, Any]) -> Iterator[pa.Table]:
        """Decode the shards of one row."""
        for numbers in batch["shards"]:
            packets = self._packets(json.loads(numbers))
            while (packet := self._thread.submit(next, packets, None).result()) is not None:
                yield packet

    def _packets(self, numbers: list[int]) -> Iterator[pa.Table]:
        if self.error is not None:
            yield to_table(None, Note("", 0, "int16", {}, [], [], [self.report()]))
            return
        began, decoded = time.time(), sum(self._pool.busy_s.values())
        try:
            for windows, note in self._decode([self.shards[number] for number in numbers]):
                before, decoded = decoded, sum(self._pool.busy_s.values())
                began, since = time.time(), began
                stages = {"decode": (decoded - before) / len(self._pool)}
                report = self.report(began=since, ended=began, stages=stages)
                yield to_table(windows, note._replace(reports=[report]))
        except Exception as error:
            log.exception("shards %s failed", numbers)
            self.error = described(error)
            yield to_table(None, Note("", 0, "int16", {}, [], [], [self.report()]))

    def _decode(self, spans: list[tuple[int, int]]) -> Iterator[tuple[Windows, Note]]:
        pool, packing = self._pool, Packing(self._rows)
        merger = Merger(pool.memory.rows, pool.windows, pool.release)

        def packed(filled: FilledSlot) -> Iterator[tuple[Windows, Note]]:
            yield from packing.add(pool.windows(filled), filled.segments)
            pool.release(filled.slot)

        clips = sum(end - first for first, end in spans)
        feeder = Feeder(read_clips(self.manifest, spans), pool, clips, packing.register, packing.forget)
        while feeder.feed():
            for decoded in pool.receive(_POLL_S):
                packing.take_results(decoded.finished)
                if decoded.filled is not None:
                    for full in merger.add(decoded.filled):
                        yield from packed(full)
        for filled in merger.rest():
            yield from packed(filled)
        yield from packing.rest()


class EmbedWindows(Actor):
    """For ``map_batches``: packets of windows to packets of embeddings.  It owns a session, and decodes nothing.

    Args:
        brief: what it is made from.
    """

    role = "embed"

    def make(self) -> None:
        """Sessions, and as many threads as keep them busy."""
        cold = ColdStart(self.spec["spawned_at"])
        ready = self.make_session(cold)
        self._sessions = ready.sessions
        self._canaries = [self.canary_of(session, ready) for session in ready.sessions]
        self._threads = ThreadPoolExecutor(sum(session.in_flight for session in self._sessions))
        self._at_work, self._free_since, self._lock = 0, float("inf"), threading.Lock()
        self._busy, self._turns = LaneClock(), itertools.count()
        self.about["metrics"] |= cold.metrics(time.time())
        favour_lanes()

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        """Embed packets."""
        for payload, note in from_table(table):
            if self.error is not None or any(report["error"] for report in note.reports):
                yield to_table(None, note._replace(reports=[*note.reports, self.report()]))
                continue
            try:
                embeddings, report = self._embed(np.frombuffer(payload, note.dtype).reshape(-1, EXAMPLE_SAMPLES))
            except Exception as error:
                log.exception("a packet failed")
                if isinstance(error, ParityError):
                    self.error = described(error)
                embeddings, report = None, self.report(error=described(error))
            yield to_table(embeddings, note._replace(reports=[*note.reports, report]))

    def _embed(self, windows: Windows) -> tuple[NDArray[np.float32], dict[str, Any]]:
        began, start = time.time(), time.perf_counter()
        with self._lock:
            starved = max(0.0, start - self._free_since) if self._at_work == 0 else 0.0
            self._at_work += 1
        timings: list[BatchTiming] = []

        def embed(batch: Windows) -> NDArray[np.float32]:
            lane = next(self._turns) % len(self._sessions)
            copied: list[float] = []
            since = time.perf_counter()
            found = self._canaries[lane].embed(batch, lambda: copied.append(time.perf_counter()))
            timings.append(BatchTiming(lane, since, copied[0] if copied else None, time.perf_counter(), len(batch)))
            return found

        rows = self._sessions[0].rows_at_once
        try:
            found = list(self._threads.map(embed, [windows[at : at + rows] for at in range(0, len(windows), rows)]))
        finally:
            with self._lock:
                self._at_work -= 1
                self._free_since = time.perf_counter()
                stages = lane_seconds(timings, self._busy)
        report = self.report(began=began, ended=time.time(), stages=stages, starved_s=starved)
        return np.concatenate([np.empty((0, EMBEDDING_SIZE), np.float32), *found]), report
