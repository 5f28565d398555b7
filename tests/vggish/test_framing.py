"""Framing: counts and windows are the reference's, however the clip is cut into blocks."""

from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.vggish.framing import WindowCutter, cut, hop_samples
from tests.reference import count_examples

EDGE_LENGTHS = dict.fromkeys((0, 1, 239, 240, 399, 400, 15_359, 15_360, 15_599), 0)
EDGE_LENGTHS |= {15_600: 1, 30_959: 1, 30_960: 2, 160_000: 10}


@pytest.mark.parametrize(("samples", "examples"), EDGE_LENGTHS.items())
def test_examples_at_the_edges(samples: int, examples: int) -> None:
    cutter = WindowCutter(pad_short=False)
    assert sum(map(len, cut(iter([np.zeros(samples, np.float32)]), cutter))) == cutter.examples == examples


@given(st.lists(st.integers(0, 40_000), max_size=6), st.sampled_from([0.96, 0.48, 0.1, 1.92]))
def test_windows_do_not_depend_on_the_blocks(lengths: list[int], hop_s: float) -> None:
    clip = np.arange(sum(lengths), dtype=np.float32)
    blocks = np.split(clip, np.cumsum(lengths)[:-1]) if lengths else []
    cutter = WindowCutter(hop_s, pad_short=False)
    windows = np.concatenate([np.empty((0, 15_600), np.float32), *cut(iter(blocks), cutter)])
    assert len(windows) == cutter.examples == count_examples(len(clip), hop_s)
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
    [
        (15_600, 1, False),
        (15_759, 1, False),
        (15_760, 2, True),
        (15_999, 2, True),
        (16_000, 2, True),
        (30_959, 2, True),
        (30_960, 2, False),
        (31_119, 2, False),
        (31_120, 3, True),
    ],
)
def test_a_tail_is_kept_where_that_is_asked_for(samples: int, examples: int, padded: bool) -> None:
    cutter = WindowCutter(pad_tail=True)
    windows = np.concatenate(list(cut(iter([np.ones(samples, np.float32)]), cutter)))
    assert (len(windows), cutter.padded) == (examples, padded)
    if padded:
        assert windows[-1].sum() == samples - 15_360 * (examples - 1)


@cache
def counted(frames: int, hop: int) -> tuple[int, bool]:
    """Examples of a clip of so many whole frames, and whether a padded one follows: every frame is looked at."""
    held: set[int] = set()
    whole = 0
    while all(frame < frames for frame in range(whole * hop, whole * hop + 96)):
        held.update(range(whole * hop, whole * hop + 96))
        whole += 1
    following = range(whole * hop, whole * hop + 96)
    return whole, any(frame < frames and frame not in held for frame in following)


def frames_in(samples: int) -> int:
    return sum(1 for _ in range(0, samples - 399, 160))


CLIP = np.arange(1, 300_001, dtype=np.float32)
"""A clip whose samples say where they lie."""


def cut_in(blocks: int | None, samples: int, hop: int) -> tuple[np.ndarray, bool]:
    """The first sample of every window, the padded one included, and how many samples the last one has of the clip."""
    cutter = WindowCutter(hop / 100, pad_tail=True)
    step = blocks or samples
    windows = [cutter.push(CLIP[at : min(at + step, samples)]) for at in range(0, samples, step)]
    last = cutter.finish()
    firsts = [*(window[0] for part in windows for window in part), *last[:, 0]]
    assert cutter.examples == len(firsts)
    assert cutter.padded == bool(len(last))
    if len(last):
        real = np.count_nonzero(last[0])
        assert np.array_equal(last[0, :real], CLIP[samples - real : samples])
    return np.array(firsts), cutter.padded


def assert_rule(samples: int, hop: int, blocks: int | None = None) -> None:
    whole, tail = counted(frames_in(samples), hop)
    firsts, padded = cut_in(blocks, samples, hop)
    if not whole:  # a clip too short for one example: pad_short
        assert (len(firsts), padded) == (1, True)
        return
    assert (len(firsts), padded) == (whole + tail, tail), (samples, hop, blocks)
    assert np.array_equal(firsts, 1 + 160 * hop * np.arange(whole + tail))


HOPS = (1, 2, 3, 10, 31, 48, 94, 95, 96, 97, 98, 99, 100, 117, 192, 300, 511)
"""In frames: 10 ms to 5.11 s."""


@pytest.mark.parametrize("hop", HOPS)
def test_a_tail_is_kept_where_it_has_a_frame_that_no_example_has(hop: int) -> None:
    borders = np.arange(400, 400 + 160 * (96 + 2 * hop + 4), 160)
    for samples in np.unique(borders[:, None] + [-1, 0, 1, 80]):
        assert_rule(int(samples), hop)


@pytest.mark.parametrize("hop", [95, 96, 97, 98, 130])
def test_a_tail_is_kept_by_that_rule_at_every_length(hop: int) -> None:
    for samples in range(15_300, 15_600 + 160 * hop + 1000):
        assert_rule(samples, hop)


@pytest.mark.parametrize("blocks", [1, 159, 163, 399, 4099, 15_599, 15_601, 20_011])
def test_tails_do_not_depend_on_the_blocks(blocks: int) -> None:
    lengths = (15_759, 15_760) if blocks == 1 else (15_759, 15_760, 15_999, 30_959, 31_119, 31_120, 64_400, 64_399)
    for hop in (1, 48, 96, 97, 98, 192, 400):
        for samples in lengths:
            assert_rule(samples, hop, blocks)


@pytest.mark.parametrize("hop_s", [-1, 0, 0.001, 0.014, 0.965, 61, float("nan"), float("inf")])
def test_a_hop_that_is_no_whole_number_of_frames_is_refused(hop_s: float) -> None:
    with pytest.raises(ValueError, match=r"hop_s=.* is not a whole number of 10 ms frames.*use for example 0\.96"):
        WindowCutter(hop_s)


def test_every_hop_of_whole_frames_is_taken() -> None:
    assert [hop_samples(frames / 100) for frames in range(1, 6001)] == [160 * frames for frames in range(1, 6001)]
