"""Windows at their file's rate: resampled one by one, they are the windows that the host cuts from the whole clip."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.audio.preparation import Preparation
from runner.audio.resample import StreamResampler
from runner.audio.source_windows import METHODS, RATES, SourceWindowCutter, WindowKind, window_filter
from runner.vggish.framing import Cutter, Framing, cut, scaled


def windows_at_16_khz(clip: np.ndarray, rate: int, preparation: Preparation, cutter: Cutter) -> np.ndarray:
    """The windows of a clip [n, channels] as decode processes cut them that resample."""
    resampler = StreamResampler(rate, preparation.resampler)
    mono = scaled(preparation.apply(clip))
    return np.concatenate(list(cut(iter([resampler.push(mono), resampler.finish()]), cutter)))


def clip_of(frames: int, channels: int, dtype: str, seed: int) -> np.ndarray:
    samples = np.random.default_rng(seed).integers(-(1 << 15), 1 << 15, (frames, channels)).astype(np.int16)
    return samples if dtype == "int16" else scaled(samples)


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from(sorted(RATES)),
    st.sampled_from(METHODS),
    st.sampled_from([0.48, 0.96, 3.0]),
    st.integers(1, 120_000),
    st.sampled_from([(1, "int16"), (2, "int16"), (2, "float32"), (3, "int16")]),
    st.sampled_from(["mean", "first"]),
    st.randoms(use_true_random=False),
)
def test_windows_at_another_rate_resample_to_the_samples_that_the_whole_clip_gives(
    rate: int, method: str, hop_s: float, frames: int, sort: tuple[int, str], channels: str, random
) -> None:
    clip = clip_of(frames, *sort, random.getrandbits(32))
    preparation, framing = Preparation(method, channels), Framing(hop_s)
    at_rate = window_filter(rate, method, hop_s)
    assert at_rate is not None
    cutter, reference = SourceWindowCutter(at_rate, preparation, framing), framing.cutter()
    blocks = np.split(clip, sorted(random.randrange(frames + 1) for _ in range(3)))
    pieces = [piece if piece.ndim == 2 else at_rate.apply(piece) for piece in cut(iter(blocks), cutter) if len(piece)]
    expected = windows_at_16_khz(clip, rate, preparation, reference)
    actual = np.concatenate([np.empty((0, 15_600), np.float32), *pieces])
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-7)  # sums of float64 in another order
    assert (cutter.samples, cutter.examples, cutter.padded) == (
        reference.samples,
        reference.examples,
        reference.padded,
    )


def test_two_channels_of_int16_stay_so_and_others_are_averaged_to_one() -> None:
    at_rate = window_filter(44_100, "kaiser_best", 0.96)
    assert at_rate is not None
    kinds = []
    for channels, dtype in [(1, "int16"), (2, "int16"), (3, "int16"), (2, "float32")]:
        cutter = SourceWindowCutter(at_rate, Preparation(), Framing())
        windows = cutter.push(clip_of(50_000, channels, dtype, 0))
        kinds.append(WindowKind.of(windows, 44_100))
    expected = [("int16", 1), ("int16", 2), ("float32", 1), ("float32", 1)]
    assert [(kind.dtype, kind.channels) for kind in kinds] == expected
    assert {(kind.rate, kind.frames) for kind in kinds} == {(44_100, 43_659)}
    assert kinds[1].bytes == 43_659 * 2 * 2


@pytest.mark.parametrize(
    ("rate", "method", "hop_s"),
    [
        (44_056, "kaiser_best", 0.96),  # no common rate
        (16_000, "kaiser_best", 0.96),
        (48_000, "soxr", 0.96),  # libsoxr's own filter
        (11_025, "kaiser_best", 1.5),  # the hop is no whole number of periods
        (48_000, "kaiser_best", 0.1),  # copies take longer than resampling
    ],
)
def test_other_clips_are_resampled_on_the_host(rate: int, method: str, hop_s: float) -> None:
    assert window_filter(rate, method, hop_s) is None
