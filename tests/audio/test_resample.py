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


def resample(signal: np.ndarray, rate: int, pieces: int = 1, method: str = "kaiser_best") -> np.ndarray:
    stream = StreamResampler(rate, method)
    cuts = np.sort(np.random.default_rng(pieces).integers(0, len(signal), pieces - 1))
    return np.concatenate([*(stream.push(block) for block in np.split(signal, cuts)), stream.finish()])


@pytest.mark.parametrize("rate", COMMON + ODD)
def test_equals_resampys_kaiser_best(rate: int) -> None:
    resampy = pytest.importorskip("resampy", reason="resampy is a development dependency")
    signal = noise(rate)
    expected = resampy.resample(signal.astype(np.float64), rate, 16_000, filter="kaiser_best")
    resampled = resample(signal, rate)
    assert resampled.dtype == np.float32
    assert len(resampled) == len(expected)
    assert np.abs(resampled - expected).max() < 2e-7


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
@pytest.mark.parametrize("method", ["kaiser_best", "soxr"])
def test_does_not_depend_on_the_blocks(rate: int, method: str) -> None:
    signal = noise(rate)
    whole = resample(signal, rate, 1, method)
    for pieces in (2, 9):
        resampled = resample(signal, rate, pieces, method)
        assert len(resampled) == len(whole)
        assert np.abs(resampled - whole).max() < (2e-7 if method == "kaiser_best" else 2e-6)


def test_16_khz_passes_unchanged() -> None:
    signal = noise(16_000)
    assert np.array_equal(resample(signal, 16_000, 3), signal)


@pytest.mark.parametrize("samples", [0, 1, 2, 10])
def test_next_to_nothing_is_no_error(samples: int) -> None:
    assert len(resample(np.ones(samples, np.float32), 44_100)) == int(samples * 16_000 / 44_100)


@pytest.mark.parametrize("rate", [1, 999, 768_001, 4_294_967_295])
def test_an_absurd_rate_is_refused(rate: int) -> None:
    with pytest.raises(ClipError, match="unsupported_rate"):
        StreamResampler(rate)


@pytest.mark.parametrize("rate", [1_001, 44_101, 384_001, 767_999])
def test_an_odd_rate_costs_little_memory(rate: int) -> None:
    signal = noise(rate, 2.0)
    tracemalloc.start()
    resample(signal, rate)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 << 20
