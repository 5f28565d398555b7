"""Framing: counts and windows are the reference's, however the clip is cut into blocks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.framing import WindowCutter, count_examples, cut

EDGE_LENGTHS = {
    0: 0, 1: 0, 239: 0, 240: 0, 399: 0, 400: 0, 15_359: 0, 15_360: 0, 15_599: 0, 15_600: 1, 30_959: 1, 30_960: 2,
    160_000: 10,
}  # fmt: skip


def reference_count(samples: int, hop_s: float) -> int:
    """The release's two framings: samples into frames, frames into examples."""
    frames = 0 if samples < 400 else 1 + (samples - 400) // 160
    hop = round(hop_s * 100)
    return 0 if frames < 96 else 1 + (frames - 96) // hop


@pytest.mark.parametrize(("samples", "examples"), EDGE_LENGTHS.items())
def test_examples_at_the_edges(samples: int, examples: int) -> None:
    assert count_examples(samples) == examples


@given(st.integers(0, 200_000), st.sampled_from([0.96, 0.48, 0.1, 1.92]))
def test_count_equals_the_two_framings_of_the_reference(samples: int, hop_s: float) -> None:
    assert count_examples(samples, hop_s) == reference_count(samples, hop_s)


@given(st.lists(st.integers(0, 40_000), max_size=6), st.sampled_from([0.96, 0.48, 0.1, 1.92]))
def test_windows_do_not_depend_on_the_blocks(lengths: list[int], hop_s: float) -> None:
    clip = np.arange(sum(lengths), dtype=np.float32)
    blocks = np.split(clip, np.cumsum(lengths)[:-1]) if lengths else []
    cutter = WindowCutter(hop_s, pad_short=False)
    windows = np.concatenate([np.empty((0, 15_600), np.float32), *cut(iter(blocks), cutter)])
    assert len(windows) == cutter.examples == reference_count(len(clip), hop_s)
    starts = np.arange(len(windows)) * round(hop_s * 100) * 160
    assert np.array_equal(windows[:, 0], starts)
    assert np.array_equal(windows[:, -1], starts + 15_599)


def test_a_short_clip_is_padded_to_one_example_and_says_so() -> None:
    cutter = WindowCutter()
    windows = np.concatenate(list(cut(iter([np.ones(100, np.float32)]), cutter)))
    assert windows.shape == (1, 15_600)
    assert windows.sum() == 100
    assert cutter.padded


def test_an_empty_clip_has_no_example() -> None:
    cutter = WindowCutter()
    assert sum(len(windows) for windows in cut(iter([]), cutter)) == 0
    assert not cutter.padded


@pytest.mark.parametrize(
    ("samples", "examples", "padded"),
    [(30_959, 2, True), (15_600, 1, False), (15_999, 1, False), (16_000, 2, True), (30_960, 2, False)],
)
def test_a_tail_is_kept_where_that_is_asked_for(samples: int, examples: int, padded: bool) -> None:
    cutter = WindowCutter(pad_tail=True)
    windows = np.concatenate(list(cut(iter([np.ones(samples, np.float32)]), cutter)))
    assert (len(windows), cutter.padded) == (examples, padded)
    if padded:
        assert windows[-1].sum() == samples - 15_360
