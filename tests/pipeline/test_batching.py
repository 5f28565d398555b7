"""Slots, how they are filled and merged, and the queue that replicas take batches from."""

from __future__ import annotations

import threading
from typing import cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.audio.framing import scaled
from runner.audio.source_windows import WindowKind
from runner.pipeline.batching import BatchFiller, BatchQueue
from runner.pipeline.decode_worker import SlotWriter
from runner.pipeline.messages import (
    ClipResult,
    ClipTask,
    Decode,
    DecodeReport,
    FilledSlot,
    Segment,
    SlotGrant,
    decode_message,
    encode,
)
from runner.pipeline.slots import SlotMemory

ROWS = 10

INT16, FLOAT32 = WindowKind("int16", (15_600,)), WindowKind("float32", (15_600,))

STEREO = WindowKind("int16", (43_659, 2), 44_100)


def numbered(first: int, count: int, dtype: str) -> np.ndarray:
    """Windows that say which they are."""
    values = np.arange(first, first + count, dtype=np.int16)
    windows = np.repeat(values[:, None], 15_600, axis=1)
    return windows if dtype == "int16" else scaled(windows)


@pytest.fixture
def memory():
    memory = SlotMemory(slots=4, rows=130, window_samples=15_600, processes=2)
    yield memory
    memory.close()


def test_a_slot_of_long_windows_has_room_for_as_many_as_it_says() -> None:
    memory = SlotMemory(slots=2, rows=3, window_samples=160_000, processes=1)
    kinds = {
        WindowKind("int16", (160_000,)): 3,
        WindowKind("float32", (160_000,)): 3,
        WindowKind("int16", (221_000, 2), 44_100): 2,
        WindowKind("float32", (221_000, 1), 44_100): 2,
        WindowKind("float32", (961_000, 1), 192_000): 0,  # decode processes resample it
    }
    assert {kind: memory.rows_of(kind) for kind in kinds} == kinds
    assert [memory.windows(1, kind).shape for kind in kinds] == [(rows, *kind.shape) for kind, rows in kinds.items()]
    memory.close()


def test_a_slot_of_int16_becomes_float32_when_it_must(memory: SlotMemory) -> None:
    writer = SlotWriter(memory)
    writer.open(1)
    assert writer.put(7, 0, numbered(0, 100, "int16"), INT16) == 100
    assert writer.kind == INT16
    assert writer.put(8, 0, numbered(100, 20, "float32"), FLOAT32) == 20
    assert writer.kind == FLOAT32
    assert writer.put(9, 0, numbered(120, 20, "int16"), INT16) == 10  # as many as fit
    assert writer.is_full
    assert writer.segments == [Segment(7, 0, 100), Segment(8, 0, 20), Segment(9, 0, 10)]
    assert np.array_equal(memory.windows(1, FLOAT32), numbered(0, 130, "float32"))


def test_a_slot_holds_as_many_windows_at_another_rate_as_fit_and_none_of_another_kind(memory: SlotMemory) -> None:
    writer = SlotWriter(memory)
    writer.open(1)
    assert writer.takes(STEREO)  # as it is empty
    windows = np.arange(60, dtype=np.int16)[:, None, None] + np.zeros(STEREO.shape, np.int16)
    assert writer.put(7, 0, windows, STEREO) == 130 * 15_600 * 4 // (43_659 * 2 * 2) == 46
    assert writer.is_full
    assert not writer.takes(INT16)
    assert writer.takes(STEREO)
    assert np.array_equal(memory.windows(1, STEREO), windows[:46])


def test_slots_do_not_overlap_and_are_aligned(memory: SlotMemory) -> None:
    for slot in range(memory.slots):
        memory.windows(slot, FLOAT32)[:] = slot
        assert memory.windows(slot, INT16).ctypes.data % 64 == 0
    memory.set_current_job(0, 5)
    memory.set_current_job(1, 6)
    assert (memory.current_job(0), memory.current_job(1)) == (5, 6)
    assert all((memory.windows(slot, FLOAT32) == slot).all() for slot in range(memory.slots))


class NumberedSlots:
    """Slots of one number a row, of which those at another rate are half as long."""

    def __init__(self, slots: int) -> None:
        self.slots = [np.zeros((ROWS, 1), np.int64) for _ in range(slots)]

    def rows_of(self, kind: WindowKind) -> int:
        return ROWS // 2 if kind == STEREO else ROWS

    def windows(self, slot: int, kind: WindowKind) -> np.ndarray:
        return self.slots[slot][: self.rows_of(kind)]


@given(st.lists(st.tuples(st.integers(1, ROWS), st.sampled_from([INT16, FLOAT32, STEREO])), max_size=30))
def test_merging_keeps_every_row_with_its_job_and_wastes_few_batches(parts: list[tuple[int, WindowKind]]) -> None:
    memory = NumberedSlots(len(parts))
    released: list[int] = []
    filler = BatchFiller(cast("SlotMemory", memory), released.append)
    given_rows: list[tuple[WindowKind, int]] = []
    batches: list[FilledSlot] = []
    seen: list[tuple[WindowKind, int]] = []
    for slot, (most, kind) in enumerate(parts):
        rows = min(most, memory.rows_of(kind))
        memory.slots[slot][:rows, 0] = np.arange(rows) + 100 * slot
        given_rows += [(kind, 100 * slot + row) for row in range(rows)]
        batches += filler.add(FilledSlot(slot, kind, rows, [Segment(slot, 0, rows)]))
    held = list(filler.flush())
    batches += held
    for batch in batches:
        row = 0
        for job, first, windows in batch.segments:
            values = memory.slots[batch.slot][row : row + windows, 0].tolist()
            assert values == [100 * job + first + place for place in range(windows)]
            seen += [(batch.kind, value) for value in values]
            row += windows
        assert row == batch.rows
    assert sorted(seen) == sorted(given_rows)
    assert len(held) <= 2  # kinds of which a slot waits
    if len({kind for _, kind in parts}) <= 2:
        assert all(batch.rows == memory.rows_of(batch.kind) for batch in batches[: -len(held) or None])
    assert len(released) + len(batches) == len(parts)


def filled(slot: int) -> FilledSlot:
    return FilledSlot(slot, INT16, 1, [])


def test_a_batch_handed_back_goes_to_another_replica_even_after_the_end() -> None:
    batches = BatchQueue()
    batches.put(filled(3))
    batches.close()
    first = batches.get()
    assert first is not None
    taken: list[FilledSlot | None] = []
    other = threading.Thread(target=lambda: taken.append(batches.get()))
    other.start()
    other.join(0.1)
    assert other.is_alive()  # the first replica may yet fail
    batches.requeue(first)
    other.join(5)
    assert taken == [first]
    batches.done()
    assert batches.get() is None


def test_starving_is_a_replica_that_waits_for_nothing() -> None:
    batches = BatchQueue()
    assert not batches.has_idle_replica
    replica = threading.Thread(target=batches.get)
    replica.start()
    while not batches.has_idle_replica:
        pass
    batches.abort()
    replica.join(5)
    assert not replica.is_alive()


def test_messages_come_out_of_their_bytes_as_they_went_in() -> None:
    result = ClipResult(4, True, None, None, 3, 2.9, 16_000, 1, False)
    messages = [
        Decode([ClipTask(4, b"/data/\xff.wav", None, 2.5, 1)], last=True),
        DecodeReport(None, STEREO, [Segment(4, 0, 3)], [result], 1, 70.0, 1.5, 0.5),
        SlotGrant(0),
        None,
    ]
    for message in messages:
        again = decode_message(encode(message))
        assert again == message
        assert type(again) is type(message)
    report = decode_message(encode(messages[1]))
    assert isinstance(report, DecodeReport)
    assert (report.segments[0].windows, report.finished[0].seconds) == (3, 2.9)
