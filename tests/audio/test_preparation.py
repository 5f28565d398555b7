"""Channels, level and torchaudio's resampling of a clip, against what they are defined as."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import soundfile

from runner.audio.preparation import Preparation, channel_mean
from runner.audio.reader import leveled, read_clip
from runner.audio.resample import StreamResampler


def torchaudio_resample(signal: np.ndarray, rate: int, target: int) -> np.ndarray:
    """torchaudio.functional.resample with its defaults, term by term but for those whose window is 0."""
    common = math.gcd(rate, target)
    orig, new = rate // common, target // common
    base = min(orig, new) * 0.99
    width = math.ceil(6 * orig / base)
    length = math.ceil(new * len(signal) / orig)
    padded = np.pad(signal.astype(np.float64), (width, width + orig))
    resampled = np.zeros(length)
    for number in range(length):
        block, phase = divmod(number, new)
        places = phase * orig // new + np.arange(-width, width + 2)
        t = ((places / orig - phase / new) * base).clip(-6, 6)
        kernel = np.sinc(t) * np.cos(t * math.pi / 12) ** 2 * base / orig
        resampled[number] = padded[block * orig + width + places] @ kernel
    return resampled


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rate", "target"),
    [(rate, 16_000) for rate in (8_000, 11_025, 22_050, 32_000, 44_100, 48_000, 96_000, 44_101)]
    + [(16_000, 22_050), (44_100, 32_000), (8_000, 48_000)],
)
def test_sinc_hann_is_torchaudios_resampling(rate: int, target: int) -> None:
    signal = np.random.default_rng(rate).uniform(-1, 1, rate // 9).astype(np.float32)
    expected = torchaudio_resample(signal, rate, target)
    for pieces in (1, 7):
        stream = StreamResampler(rate, target, "sinc_hann")
        found = np.concatenate([*map(stream.push, np.array_split(signal, pieces)), stream.finish()])
        assert len(found) == len(expected)
        np.testing.assert_allclose(found, expected, atol=2e-7)


def read(path: Path, preparation: Preparation) -> np.ndarray:
    calls: list[None] = []
    with read_clip(str(path), preparation=preparation) as clip:
        preparation = leveled(clip, lambda: calls.append(None))
    assert bool(calls) is (preparation.normalize != "none")
    with read_clip(str(path), preparation=preparation) as clip:
        blocks = [np.array(block) for block in clip]
    return np.concatenate(blocks)


@pytest.mark.parametrize("channels", [2, 3, 6])
def test_the_mean_of_channels_is_numpys_to_the_bit(channels: int) -> None:
    samples = np.random.default_rng(channels).normal(0, 0.3, (10_000, channels)).astype(np.float32)
    np.testing.assert_array_equal(channel_mean(samples), samples.mean(axis=1, dtype=np.float32))


@pytest.mark.parametrize("subtype", ["PCM_16", "FLOAT"])
def test_a_peak_is_the_largest_sample_and_not_the_largest_magnitude(subtype: str, tmp_path: Path) -> None:
    signal = np.random.default_rng(0).uniform(-0.9, 0.4, 50_000)
    soundfile.write(tmp_path / "x.wav", signal, 16_000, subtype=subtype)
    written, _ = soundfile.read(tmp_path / "x.wav")
    found = read(tmp_path / "x.wav", Preparation(16_000, normalize="peak"))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, written / written.max(), atol=1e-6)


def test_silence_is_divided_by_googles_least_peak(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "x.wav", np.r_[np.zeros(20_000), -3 / 32768], 16_000, subtype="PCM_16")
    found = read(tmp_path / "x.wav", Preparation(16_000, normalize="peak"))
    assert not found[:-1].any()
    assert found[-1] == pytest.approx(-30)


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_the_first_channel_loses_its_mean_before_it_is_resampled(rate: int, tmp_path: Path) -> None:
    signal = np.random.default_rng(0).uniform(-0.2, 0.5, (rate, 2))
    soundfile.write(tmp_path / "x.wav", signal, rate, subtype="PCM_16")
    written, _ = soundfile.read(tmp_path / "x.wav")
    expected = written[:, 0] - written[:, 0].mean()
    if rate != 16_000:
        expected = torchaudio_resample(expected.astype(np.float32), rate, 16_000)
    found = read(tmp_path / "x.wav", Preparation(16_000, "sinc_hann", "first", "mean"))
    np.testing.assert_allclose(found, expected, atol=5e-7)


def test_without_a_level_samples_are_as_they_were(tmp_path: Path) -> None:
    signal = np.random.default_rng(0).integers(-9000, 9000, 30_000).astype(np.int16)
    soundfile.write(tmp_path / "x.wav", signal, 16_000, subtype="PCM_16")
    found = read(tmp_path / "x.wav", Preparation(16_000))
    assert found.dtype == np.int16
    np.testing.assert_array_equal(found, signal)


def test_samples_at_the_models_rate_are_those_of_the_file(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).integers(-(1 << 15), 1 << 15, 50_000).astype(np.int16)
    soundfile.write(tmp_path / "x.wav", samples, 32_000, subtype="PCM_16")
    soundfile.write(tmp_path / "x.flac", samples, 32_000, subtype="PCM_16")
    for name in ("x.wav", "x.flac"):
        own = read(tmp_path / name, Preparation(32_000))
        assert own.dtype == np.int16
        assert np.array_equal(own, samples)
        floats = read(tmp_path / name, Preparation(32_000, takes_int16=False))
        assert floats.dtype == np.float32
        assert np.array_equal(floats, samples / np.float32(32768))
        assert read(tmp_path / name, Preparation(48_000)).shape == (75_000,)
