"""Metrics from timings: made-up statistics whose answers are known."""

from __future__ import annotations

import pytest

from runner.pipeline.messages import BatchTiming, PipelineStats
from runner.profiling.metrics import bottleneck, input_wait_shares, replica_seconds, stage_shares, union_length
from runner.profiling.passes import clips_for_a_pass, evenly


def stats(*timings: BatchTiming, write_s: float = 0.0) -> PipelineStats:
    return PipelineStats(started_at=100.0, results_at=110.0, timings=list(timings), write_s=write_s)


def test_the_length_of_a_union_counts_overlaps_once() -> None:
    assert union_length([(3, 5), (0, 1), (4, 8), (4, 5)]) == 6
    assert union_length([]) == 0


def test_shares_count_overlapping_batches_once_and_average_over_replicas() -> None:
    first = (BatchTiming(0, 0.0, 1.0, 6.0, 8), BatchTiming(0, 1.0, 2.0, 8.0, 8))
    second = BatchTiming(1, 5.0, 6.0, 10.0, 8)
    shares = stage_shares(stats(*first, second, write_s=3.0), decode_s=15.0, workers=2)
    assert shares["decode"] == pytest.approx(0.75)
    assert shares["copy"] == pytest.approx((0.2 + 0.1) / 2)
    assert shares["compute"] == pytest.approx((0.7 + 0.4) / 2)
    assert shares["replica"] == pytest.approx((0.8 + 0.5) / 2)
    assert shares["write"] == pytest.approx(0.3)
    assert bottleneck(shares) == "decode"


def test_no_share_is_above_one_nor_below_nothing() -> None:
    late = stats(BatchTiming(0, 0.0, None, 9.0, 8), write_s=30.0)
    shares = stage_shares(late, decode_s=50.0, workers=2)
    assert (shares["write"], shares["decode"], shares["compute"]) == (1, 1, pytest.approx(0.9))
    assert stage_shares(late, decode_s=-1e-9, workers=2)["decode"] == 0
    at_once = PipelineStats(started_at=100.0, results_at=100.0, input_wait_s={0: 0.1})
    assert input_wait_shares(at_once, threads=1) == {"replica0_input_wait_share": 0}


def test_a_device_that_reads_host_memory_copies_nothing() -> None:
    shares = stage_shares(stats(BatchTiming(0, 0.0, None, 9.0, 8)), decode_s=1.0, workers=1)
    assert (shares["copy"], shares["compute"]) == (0.0, pytest.approx(0.9))
    assert bottleneck(shares) == "compute"


def test_a_run_without_batches_has_no_bottleneck() -> None:
    assert bottleneck(stage_shares(stats(), 1.0, 1)) is None


def test_input_wait_is_the_share_of_a_replicas_average_thread() -> None:
    waited = PipelineStats(started_at=100.0, results_at=110.0, input_wait_s={0: 4.0, 1: 20.0})
    assert input_wait_shares(waited, threads=4) == {"replica0_input_wait_share": 0.1, "replica1_input_wait_share": 0.5}


def test_batches_that_overlap_are_counted_once() -> None:
    timings = [BatchTiming(0, 0.0, 1.0, 4.0, 8), BatchTiming(0, 1.0, 2.0, 5.0, 8), BatchTiming(1, 2.0, None, 9.0, 8)]
    assert replica_seconds(timings) == {"copy": 1.0, "compute": (4 + 7) / 2, "replica": (5 + 7) / 2}


def test_a_repeated_pass_is_some_batches_long_and_of_clips_from_all_over() -> None:
    metrics = {"clips_per_s": 30.0, "examples": 1000.0, "clips_embedded": 100.0}
    assert clips_for_a_pass(metrics, 30.0, 64) == 301  # a third of the time
    assert clips_for_a_pass(metrics, 3.0, 512) == 103  # two batches, of ten examples a clip
    assert list(evenly(iter(range(1000)), 5, 1000)) == [0, 64, 128, 192, 256]
    assert list(evenly(iter(range(100)), 5, 100)) == [0, 20, 40, 60, 80]
    assert list(evenly(iter(range(10)), 40, 10)) == list(range(10))
