"""The climb for a batch size: pure decisions on a device that is a table; and what a session gives it."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from runner.batch_size import Climb, Step, climb, is_climb, measure_on
from tests.reference import make_session


def on(speeds: dict[int, float], seconds: float = 0.1, compile_s: float = 0.0, compiled: Collection[int] = ()):
    """A device with these speeds, out of memory above the largest, and its clock."""
    now = [0.0]

    def measure(size: int) -> Step | None:
        compiling = 0.0 if size in compiled else compile_s
        now[0] += seconds + compiling
        return Step(size, speeds[size], None, compiling) if size in speeds else None

    return measure, lambda: now[0]


def climbed(speeds: dict[int, float], sizes: list[int], compiled: Collection[int] = (), **device: float) -> Climb:
    measure, clock = on(speeds, compiled=compiled, **device)
    return climb(measure, sizes, compiled, 5.0, clock)


def test_it_stops_where_throughput_no_longer_improves() -> None:
    found = climbed({64: 100, 128: 180, 256: 200, 512: 201, 1024: 202, 2048: 999}, [64, 128, 256, 512, 1024, 2048])
    assert found.batch_size == 256
    assert [step.batch_size for step in found.steps] == [64, 128, 256, 512, 1024]
    assert "neither 512 nor 1024 is faster than 256" in found.reason


def test_one_slow_size_does_not_end_the_climb() -> None:
    assert climbed({64: 100, 128: 99, 256: 200}, [64, 128, 256]).batch_size == 256


def test_memory_ends_it() -> None:
    found = climbed({64: 100, 128: 180}, [64, 128, 256, 512])
    assert found.batch_size == 128
    assert "256 does not fit" in found.reason


def test_no_memory_for_the_first_leaves_the_first() -> None:
    assert climbed({}, [64, 128]).batch_size == 64


def test_time_ends_it() -> None:
    found = climbed({64: 100, 128: 180, 256: 300}, [64, 128, 256], seconds=1.5)
    assert found.batch_size == 128
    assert found.reason == "3.0 s are over, and 256 would take too long (3.0 s)"


def test_compiling_counts() -> None:
    found = climbed({512: 265, 1024: 275, 2048: 280}, [512, 1024, 2048], seconds=0.2, compile_s=3.1)
    assert [step.batch_size for step in found.steps] == [512]
    assert found.reason == "3.3 s are over, and 1024 would take too long (3.5 s)"


def test_a_size_that_is_compiled_already_is_measured() -> None:
    found = climbed({512: 265, 1024: 275, 2048: 280}, [512, 1024, 2048], (1024,), seconds=0.2, compile_s=3.1)
    assert [step.batch_size for step in found.steps] == [512, 1024]
    assert found.batch_size == 1024
    assert "2048 would take too long" in found.reason


def test_the_largest_allowed_ends_it() -> None:
    found = climbed({64: 100, 128: 180}, [64, 128])
    assert (found.batch_size, found.reason) == (128, "the largest that the policy allows")
    assert is_climb(found.to_dict())


def test_a_session_is_measured_and_resized(weights: dict[str, np.ndarray]) -> None:
    session = make_session(weights, batch_size=64)
    step = measure_on(session, "int16")(4)
    assert step is not None
    assert (step.batch_size, session.rows_at_once) == (4, 4)
    assert step.examples_per_s > 1
