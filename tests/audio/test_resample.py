"""The resampler against resampy itself, and its independence of how the stream is cut."""

import tracemalloc

import numpy as np
import pytest

from runner.audio.resample import StreamResampler
from runner.core.errors import ClipError

COMMON = [8_000, 11_025, 22_050, 24_000, 32_000, 44_100, 48_000, 96_000]
ODD = [4_000, 12_000, 22_254, 37_800, 44_101, 192_000, 384_001]


def noise(rate: int, seconds: float = 0.7) -> np.ndarray:
    return np.random.default_rng(rate).uniform(-1, 1, int(rate * seconds)).astype(np.float32)


def resample(
    signal: np.ndarray, rate: int, pieces: int = 1, method: str = "kaiser_best", target: int = 16_000
) -> np.ndarray:
    stream = StreamResampler(rate, target, method)
    cuts = np.sort(np.random.default_rng(pieces).integers(0, len(signal), pieces - 1))
    return np.concatenate([*(stream.push(block) for block in np.split(signal, cuts)), stream.finish()])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rate", "target"),
    [(rate, 16_000) for rate in COMMON + ODD]
    + [(rate, target) for target in (22_050, 32_000, 48_000) for rate in (8_000, 16_000, 44_100, 48_000, 22_254)],
)
def test_equals_resampys_kaiser_best(rate: int, target: int) -> None:
    resampy = pytest.importorskip("resampy", reason="resampy is a development dependency")
    signal = noise(rate)
    expected = resampy.resample(signal.astype(np.float64), rate, target, filter="kaiser_best")
    resampled = resample(signal, rate, target=target)
    assert resampled.dtype == np.float32
    assert len(resampled) == len(expected)
    assert np.abs(resampled - expected).max() < 2e-7


@pytest.mark.slow
@pytest.mark.parametrize("rate", COMMON)
def test_log_mel_after_it_equals_that_after_resampy(rate: int) -> None:
    resampy = pytest.importorskip("resampy", reason="resampy is a development dependency")
    from runner.vggish.frontend import log_mel

    t = np.arange(int(1.2 * rate)) / rate
    tones = 0.5 * np.sin(2 * np.pi * 440 * t) + 0.005 * np.sin(2 * np.pi * 3000 * t)
    chirp = np.sin(2 * np.pi * (50 + 1300 * t) * t)
    for signal in (noise(rate, 1.2), tones.astype(np.float32), chirp.astype(np.float32)):
        expected = resampy.resample(signal.astype(np.float64), rate, 16_000, filter="kaiser_best").astype(np.float32)
        resampled = resample(signal, rate)
        difference = log_mel(resampled[None, :15_600]).numpy() - log_mel(expected[None, :15_600]).numpy()
        assert np.abs(difference).max() < 5e-4


@pytest.mark.parametrize("rate", [8_000, 22_254, 44_100, 48_000])
@pytest.mark.parametrize("target", [16_000, 32_000])
@pytest.mark.parametrize("method", ["kaiser_best", "soxr"])
def test_does_not_depend_on_the_blocks(rate: int, target: int, method: str) -> None:
    signal = noise(rate)
    whole = resample(signal, rate, 1, method, target)
    for pieces in (2, 9):
        resampled = resample(signal, rate, pieces, method, target)
        assert len(resampled) == len(whole)
        assert np.abs(resampled - whole).max() < (2e-7 if method == "kaiser_best" else 2e-6)


@pytest.mark.parametrize("rate", [16_000, 32_000])
def test_the_models_own_rate_passes_unchanged(rate: int) -> None:
    signal = noise(rate)
    assert np.array_equal(resample(signal, rate, 3, target=rate), signal)


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100, 48_000])
@pytest.mark.parametrize("target", [22_050, 32_000, 48_000])
@pytest.mark.parametrize("method", ["kaiser_best", "soxr", "sinc_hann"])
def test_a_tone_keeps_its_frequency_level_and_place(rate: int, target: int, method: str) -> None:
    seconds = 0.5
    time = np.arange(int(rate * seconds)) / rate
    resampled = resample((0.5 * np.sin(2 * np.pi * 1000 * time)).astype(np.float32), rate, 1, method, target)
    expected = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(int(target * seconds)) / target)
    assert len(resampled) == len(expected)
    inner = slice(target // 20, -target // 20)  # the ends lack what the filter would reach
    assert np.abs(resampled[inner] - expected[inner]).max() < (0.01 if method == "sinc_hann" else 1e-3)


@pytest.mark.parametrize("samples", [0, 1, 2, 10])
def test_next_to_nothing_is_no_error(samples: int) -> None:
    assert len(resample(np.ones(samples, np.float32), 44_100)) == int(samples * 16_000 / 44_100)


@pytest.mark.parametrize("rate", [1, 999, 768_001, 4_294_967_295])
def test_an_absurd_rate_is_refused(rate: int) -> None:
    with pytest.raises(ClipError, match="unsupported_rate"):
        StreamResampler(rate, 16_000)


@pytest.mark.parametrize("rate", [1_001, 44_101, 384_001, 767_999])
def test_an_odd_rate_costs_little_memory(rate: int) -> None:
    signal = noise(rate, 2.0)
    tracemalloc.start()
    resample(signal, rate)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 << 20
