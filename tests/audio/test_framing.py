"""Framing: counts and windows are the reference's for VGGish, and a clip's blocks change neither."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.audio.framing import Framing, WindowCutter, cut, hop_samples
from runner.core.model_spec import ModelSpec
from runner.vggish.spec import VGGISH
from tests.reference import count_examples
from tests.vggish_clips import FRAMING

EDGE_LENGTHS = dict.fromkeys((0, 1, 239, 240, 399, 400, 15_359, 15_360, 15_599), 0)
EDGE_LENGTHS |= {15_600: 1, 30_959: 1, 30_960: 2, 160_000: 10}


@pytest.mark.parametrize(("samples", "examples"), EDGE_LENGTHS.items())
def test_examples_at_the_edges(samples: int, examples: int) -> None:
    cutter = WindowCutter(replace(FRAMING, short_clips="skip"))
    assert sum(map(len, cut(iter([np.zeros(samples, np.float32)]), cutter))) == cutter.examples == examples


@given(st.lists(st.integers(0, 40_000), max_size=6), st.sampled_from([0.96, 0.48, 0.1, 1.92]))
def test_windows_do_not_depend_on_the_blocks(lengths: list[int], hop_s: float) -> None:
    clip = np.arange(sum(lengths), dtype=np.float32)
    blocks = np.split(clip, np.cumsum(lengths)[:-1]) if lengths else []
    cutter = WindowCutter(Framing.of(VGGISH, hop_s, short_clips="skip"))
    windows = np.concatenate([np.empty((0, 15_600), np.float32), *cut(iter(blocks), cutter)])
    assert len(windows) == cutter.examples == count_examples(len(clip), hop_s)
    starts = np.arange(len(windows)) * round(hop_s * 100) * 160
    assert np.array_equal(windows[:, 0], starts)
    assert np.array_equal(windows[:, -1], starts + 15_599)


def test_a_short_clip_is_padded_to_one_example_and_says_so() -> None:
    cutter = WindowCutter(FRAMING)
    windows = np.concatenate(list(cut(iter([np.ones(100, np.float32)]), cutter)))
    assert windows.shape == (1, 15_600)
    assert windows.sum() == 100
    assert cutter.padded


def test_an_empty_clip_has_no_example() -> None:
    cutter = WindowCutter(FRAMING)
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
    cutter = WindowCutter(replace(FRAMING, tail="pad"))
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
    cutter = WindowCutter(Framing.of(VGGISH, hop / 100, tail="pad"))
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


@pytest.mark.slow
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
        hop_samples(hop_s, VGGISH)


def test_every_hop_of_whole_frames_is_taken() -> None:
    assert [hop_samples(frames / 100, VGGISH) for frames in range(1, 6001)] == [
        160 * frames for frames in range(1, 6001)
    ]


BIRDS = ModelSpec("birds", 32_000, 160_000, 80_000, ())
"""Five seconds every 2.5 at 32 kHz."""
MUSIC = ModelSpec("music", 48_000, 144_000, 144_000, (), takes_int16=False)
SPEECH = ModelSpec("speech", 22_050, 22_050, 11_025, ())
MODELS = (BIRDS, MUSIC, SPEECH)


def padded_starts(samples: int, window: int, hop: int) -> list[int]:
    """The windows of YAMNet's rule (pad_waveform in features.py): as many hops after the first as cover the clip."""
    return [hop * number for number in range(1 + max(0, -(-(samples - window) // hop)))]


@settings(deadline=None)
@given(
    st.sampled_from(MODELS), st.lists(st.integers(0, 300_000), min_size=1, max_size=4), st.sampled_from(["drop", "pad"])
)
def test_windows_of_a_model_without_frames_cover_the_clip(spec: ModelSpec, lengths: list[int], tail: str) -> None:
    samples, window, hop = sum(lengths), spec.window_samples, spec.hop_samples
    clip = np.arange(1, samples + 1, dtype=np.float32)
    cutter = WindowCutter(Framing.of(spec, tail=tail))
    windows = np.concatenate(list(cut(iter(np.split(clip, np.cumsum(lengths)[:-1])), cutter)))
    starts = padded_starts(samples, window, hop) if samples else []
    if tail == "drop" and samples >= window:
        starts = [start for start in starts if start + window <= samples]
    assert windows.shape == (cutter.examples, window) == (len(starts), window)
    for row, start in zip(windows, starts, strict=True):
        real = clip[start : start + window]
        assert np.array_equal(row[: len(real)], real)
        assert not row[len(real) :].any()
    assert cutter.padded == any(start + window > samples for start in starts)


def test_one_sample_more_than_a_window_has_a_padded_one() -> None:
    for samples, examples in {160_000: 1, 160_001: 2, 240_000: 2, 240_001: 3}.items():
        cutter = WindowCutter(Framing.of(BIRDS, tail="pad"))
        assert sum(map(len, cut(iter([np.ones(samples, np.float32)]), cutter))) == examples


def test_seconds_of_the_front_end_are_those_of_the_models_rate() -> None:
    framing = Framing.of(MUSIC, 1.5, window_s=4.0, min_duration_s=5.0)
    assert (framing.window_samples, framing.hop_samples) == (144_000, 72_000)
    assert (framing.needed_samples, framing.min_samples, framing.is_plain) == (192_000, 240_000, False)
    assert Framing.of(MUSIC).is_plain


@pytest.mark.parametrize("hop_s", [2.5, 5.0, 1 / 32_000, 60.0])
def test_a_model_without_frames_has_any_hop_of_whole_samples(hop_s: float) -> None:
    assert hop_samples(hop_s, BIRDS) == round(hop_s * 32_000)


@pytest.mark.parametrize("hop_s", [0, 1 / 64_000, 0.33333, 60.1, float("nan")])
def test_a_hop_between_samples_is_refused(hop_s: float) -> None:
    with pytest.raises(
        ValueError,
        match=r"not a whole number of samples at 32000 Hz, of a minute at most: use for example 2\.5 or 1\.25",
    ):
        hop_samples(hop_s, BIRDS)


def test_a_hop_may_be_as_long_as_a_window_of_more_than_a_minute() -> None:
    spec = ModelSpec("hours", 8_000, 8_000 * 90, 8_000 * 90, ())
    assert hop_samples(90.0, spec) == spec.hop_samples
    with pytest.raises(ValueError, match="of 90 s at most: use for example 90"):
        hop_samples(91.0, spec)
