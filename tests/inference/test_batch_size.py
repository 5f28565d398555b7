"""The search for a batch size: pure decisions on a device that is a table; and a session's measurement."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from runner.contract.result import BatchSizeCurve, BatchSizePoint
from runner.inference import batch_size
from runner.inference.batch_size import (
    measure_on,
    remembered_search,
    search_batch_size,
    search_undisturbed,
    sizes_from,
)
from tests.reference import make_session


def on(speeds: dict[int, float], seconds: float = 0.1, compile_s: float = 0.0, compiled: Collection[int] = ()):
    """A device with these speeds, out of memory above the largest, and its clock."""
    now = [0.0]

    def measure(size: int) -> BatchSizePoint | None:
        compiling = 0.0 if size in compiled else compile_s
        now[0] += seconds + compiling
        return BatchSizePoint(size, speeds[size], None, compiling) if size in speeds else None

    return measure, lambda: now[0]


def searched(
    speeds: dict[int, float], sizes: list[int], compiled: Collection[int] = (), **device: float
) -> BatchSizeCurve:
    measure, clock = on(speeds, compiled=compiled, **device)
    return search_batch_size(measure, sizes, compiled, 5.0, clock)


def test_it_stops_where_throughput_no_longer_improves() -> None:
    search = searched({64: 100, 128: 180, 256: 200, 512: 201, 1024: 202, 2048: 999}, [64, 128, 256, 512, 1024, 2048])
    assert search.batch_size == 256
    assert [step.batch_size for step in search.steps] == [64, 128, 256, 512, 1024]
    assert "neither 512 nor 1024 is faster than 256" in search.reason


def test_one_slow_size_does_not_end_the_search() -> None:
    assert searched({64: 100, 128: 99, 256: 200}, [64, 128, 256]).batch_size == 256


def test_memory_ends_it() -> None:
    search = searched({64: 100, 128: 180}, [64, 128, 256, 512])
    assert search.batch_size == 128
    assert "256 does not fit" in search.reason


def test_no_memory_for_the_first_leaves_the_first() -> None:
    assert searched({}, [64, 128]).batch_size == 64


def test_time_ends_it() -> None:
    search = searched({64: 100, 128: 180, 256: 300}, [64, 128, 256], seconds=1.5)
    assert search.batch_size == 128
    assert search.reason == "3.0 s are over, and 256 would take too long (3.0 s)"


def test_compiling_counts() -> None:
    search = searched({512: 265, 1024: 275, 2048: 280}, [512, 1024, 2048], seconds=0.2, compile_s=3.1)
    assert [step.batch_size for step in search.steps] == [512]
    assert search.reason == "3.3 s are over, and 1024 would take too long (3.5 s)"


def test_a_size_that_is_compiled_already_is_measured() -> None:
    search = searched({512: 265, 1024: 275, 2048: 280}, [512, 1024, 2048], (1024,), seconds=0.2, compile_s=3.1)
    assert [step.batch_size for step in search.steps] == [512, 1024]
    assert search.batch_size == 1024
    assert "2048 would take too long" in search.reason


def test_the_largest_allowed_ends_it() -> None:
    search = searched({64: 100, 128: 180}, [64, 128])
    assert (search.batch_size, search.reason) == (128, "the largest that the policy allows")


@pytest.mark.slow
def test_a_session_is_measured_and_resized(weights: dict[str, np.ndarray]) -> None:
    session = make_session(weights, batch_size=64)
    step = measure_on(session, "int16")(4)
    assert step is not None
    assert (step.batch_size, session.effective_batch_size) == (4, 4)
    assert step.examples_per_s > 1


def test_the_search_begins_at_the_policys_own_size() -> None:
    assert sizes_from(256, lambda size: size <= 1024) == [256, 512, 1024]
    assert sizes_from(256, lambda size: False) == [256]


@pytest.mark.parametrize("speeds", [{256: 100, 512: 90, 1024: 80}, {256: 100, 512: 101}, {256: 100}, {}])
def test_it_never_ends_below_that(speeds: dict[int, float]) -> None:
    assert searched(speeds, sizes_from(256, lambda size: size <= 1024)).batch_size == 256


@pytest.mark.parametrize(("share", "size"), [(0.1, 512), (0.6, 256)])
def test_measurements_on_a_busy_machine_are_discarded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float, size: int
) -> None:
    monkeypatch.setattr(batch_size.BackgroundLoad, "share", lambda self, own_cpu_s: share)
    measure, _ = on({256: 100, 512: 200})
    search = remembered_search(tmp_path, "key", lambda: search_undisturbed(measure, [256, 512]))
    assert search.batch_size == size
    assert (tmp_path / "batch_size.json").exists() == (share < 0.5)
    assert ("other programs took 60%" in search.reason) == (share > 0.5)


def test_a_recent_measurement_is_reused_and_an_old_one_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_size.BackgroundLoad, "share", lambda self, own_cpu_s: 0.0)
    path = tmp_path / "batch_size.json"
    first = remembered_search(tmp_path, "key", lambda: search_undisturbed(on({256: 100})[0], [256]))
    again = replace(first, batch_size=512)
    assert remembered_search(tmp_path, "key", lambda: again) == first
    cached = json.loads(path.read_text())["key"]
    for old in (
        {**cached, "measured_at": cached["measured_at"] - 8 * 86400},
        {**cached, "steps": []},
        {key: value for key, value in cached.items() if key != "reason"},
        {"batch_size": 256, "reason": "of an older release"},
    ):
        path.write_text(json.dumps({"key": old}))
        assert remembered_search(tmp_path, "key", lambda: again) == again
