"""Windows at their file's rate: resampled one by one, they are the windows that the host cuts from the whole clip."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.audio.framing import Framing, WindowCutter, cut, scaled
from runner.audio.preparation import Preparation
from runner.audio.resample import StreamResampler
from runner.audio.source_windows import METHODS, RATES, SourceWindowCutter, WindowKind, window_filter
from runner.core.model_spec import ModelSpec
from runner.vggish.spec import VGGISH
from tests.vggish_clips import FRAMING, PREPARATION

HOPS = {
    VGGISH: (0.48, 0.96, 3.0),
    ModelSpec("birds", 32_000, 160_000, 80_000, ()): (2.5, 5.0),
    ModelSpec("music", 48_000, 144_000, 144_000, (), takes_int16=False): (1.5, 3.0),
    ModelSpec("speech", 22_050, 22_050, 22_050, ()): (0.5, 1.0),
}
"""Seconds from window to window of each model."""


def windows_of_the_host(
    clip: np.ndarray, rate: int, preparation: Preparation, framing: Framing
) -> tuple[np.ndarray, WindowCutter]:
    """The windows of a clip [n, channels] as decode processes cut them that resample."""
    resampler, cutter = StreamResampler(rate, preparation.rate, preparation.resampler), WindowCutter(framing)
    mono = scaled(preparation.apply(clip))
    return np.concatenate(list(cut(iter([resampler.push(mono), resampler.finish()]), cutter))), cutter


def clip_of(frames: int, channels: int, dtype: str, seed: int) -> np.ndarray:
    samples = np.random.default_rng(seed).integers(-(1 << 15), 1 << 15, (frames, channels)).astype(np.int16)
    return samples if dtype == "int16" else scaled(samples)


@pytest.mark.slow
@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from([(spec, hop_s) for spec, hops in HOPS.items() for hop_s in hops]),
    st.sampled_from(sorted(RATES)),
    st.sampled_from(METHODS),
    st.floats(0.0, 6.0),
    st.sampled_from([(1, "int16"), (2, "int16"), (2, "float32"), (3, "int16")]),
    st.sampled_from(["mean", "first"]),
    st.randoms(use_true_random=False),
)
def test_windows_at_another_rate_resample_to_the_samples_that_the_whole_clip_gives(
    model: tuple[ModelSpec, float],
    rate: int,
    method: str,
    seconds: float,
    sort: tuple[int, str],
    channels: str,
    random,
) -> None:
    spec, hop_s = model
    preparation, framing = Preparation(spec.sample_rate, method, channels), Framing.of(spec, hop_s)
    at_rate = window_filter(rate, preparation, framing)
    period = spec.sample_rate // math.gcd(rate, spec.sample_rate)
    if rate == spec.sample_rate or framing.hop_samples % period:
        assert at_rate is None
        return
    assert at_rate is not None
    frames = 1 + int(seconds * rate)
    clip = clip_of(frames, *sort, random.getrandbits(32))
    cutter = SourceWindowCutter(at_rate, preparation, framing)
    blocks = np.split(clip, sorted(random.randrange(frames + 1) for _ in range(3)))
    pieces = [piece if piece.ndim == 2 else at_rate.apply(piece) for piece in cut(iter(blocks), cutter) if len(piece)]
    expected, reference = windows_of_the_host(clip, rate, preparation, framing)
    actual = np.concatenate([np.empty((0, spec.window_samples), np.float32), *pieces])
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-7)  # sums of float64 in another order
    assert (cutter.samples, cutter.examples, cutter.padded) == (
        reference.samples,
        reference.examples,
        reference.padded,
    )


def test_two_channels_of_int16_stay_so_and_others_are_averaged_to_one() -> None:
    at_rate = window_filter(44_100, PREPARATION, FRAMING)
    assert at_rate is not None
    kinds = []
    for channels, dtype in [(1, "int16"), (2, "int16"), (3, "int16"), (2, "float32")]:
        cutter = SourceWindowCutter(at_rate, PREPARATION, FRAMING)
        windows = cutter.push(clip_of(50_000, channels, dtype, 0))
        kinds.append(WindowKind.of(windows, 44_100))
    shapes = [("int16", (43_659, 1)), ("int16", (43_659, 2)), ("float32", (43_659, 1)), ("float32", (43_659, 1))]
    assert kinds == [WindowKind(dtype, shape, 44_100) for dtype, shape in shapes]
    assert kinds[1].bytes == 43_659 * 2 * 2


@pytest.mark.parametrize(
    ("rate", "target", "method", "hop_s"),
    [
        (44_056, 16_000, "kaiser_best", 0.96),  # no common rate
        (16_000, 16_000, "kaiser_best", 0.96),
        (48_000, 16_000, "soxr", 0.96),  # libsoxr's own filter
        (11_025, 16_000, "kaiser_best", 1.5),  # the hop is no whole number of periods
        (48_000, 16_000, "kaiser_best", 0.23),  # copies take longer than resampling
        (32_000, 32_000, "kaiser_best", 2.5),
        (44_100, 32_000, "kaiser_best", 2.50003125),
        (44_100, 32_000, "kaiser_best", 1.2),
    ],
)
def test_other_clips_are_resampled_on_the_host(rate: int, target: int, method: str, hop_s: float) -> None:
    spec = next(spec for spec in HOPS if spec.sample_rate == target)
    preparation = Preparation(target, method)
    assert window_filter(rate, preparation, Framing.of(spec, hop_s)) is None
    assert window_filter(48_000, Preparation(target), Framing.of(spec, 0.24 if spec is VGGISH else 1.25)) is not None
