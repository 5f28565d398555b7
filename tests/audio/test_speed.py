"""``frontend.speed``: audio taken as played slower or faster, in the time of its file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from runner.audio.preparation import Preparation
from runner.audio.reader import read_clip
from runner.core.errors import ClipError
from tests.vggish_clips import PREPARATION

SLOW = Preparation(16_000, speed=0.1)


def tone(path: Path, rate: int, samples: int = 57_600, channels: int = 1) -> str:
    wave = 0.5 * np.sin(2 * np.pi * 5 / 24 * np.arange(samples))  # 40 kHz at 192 kHz, 4 kHz at 19.2 kHz
    soundfile.write(path, np.stack([wave] * channels, axis=1), rate, subtype="PCM_16")
    return str(path)


def waveform(path: str, *span: float, preparation: Preparation = PREPARATION) -> np.ndarray:
    with read_clip(path, *span, preparation=preparation) as clip:
        return np.concatenate(list(clip))


@pytest.mark.parametrize("resampler", ["kaiser_best", "soxr"])
@pytest.mark.parametrize("channels", [1, 2])
def test_ultrasound_slowed_ten_times_is_the_same_recording_at_a_tenth_of_the_rate(
    tmp_path: Path, resampler: str, channels: int
) -> None:
    fast, slow = tone(tmp_path / "fast.wav", 192_000, channels=channels), tone(tmp_path / "slow.wav", 19_200)
    found = waveform(fast, preparation=Preparation(16_000, resampler, speed=0.1))
    assert np.array_equal(found, waveform(slow, preparation=Preparation(16_000, resampler)))
    peak = np.abs(np.fft.rfft(found)).argmax() * 16_000 / len(found)
    assert peak == pytest.approx(4000, abs=1)


def test_times_are_those_of_the_file(tmp_path: Path) -> None:
    path = tone(tmp_path / "a.wav", 192_000)
    with read_clip(path, 0.1, 0.25, preparation=SLOW) as clip:
        samples = np.concatenate(list(clip))
        assert (clip.seconds, clip.sample_rate) == (pytest.approx(0.15), 192_000)
    assert len(samples) == 24_000  # 1.5 s of slowed time at 16 kHz
    slow = tone(tmp_path / "slow.wav", 19_200)
    assert np.array_equal(samples, waveform(slow, 1.0, 2.5))


def test_int16_files_are_scaled_where_they_are_resampled(tmp_path: Path) -> None:
    found = waveform(tone(tmp_path / "a.wav", 16_000), preparation=SLOW)
    assert found.dtype == np.float32
    assert np.array_equal(found, waveform(tone(tmp_path / "b.wav", 1_600)))
    assert waveform(str(tmp_path / "a.wav")).dtype == np.int16


def test_a_rate_that_speed_takes_out_of_range_is_refused_and_one_that_it_brings_in_is_not(tmp_path: Path) -> None:
    slow, fast = tone(tmp_path / "a.wav", 8_000), tone(tmp_path / "b.wav", 100)
    with pytest.raises(ClipError) as refused:
        read_clip(slow, preparation=SLOW)
    assert refused.value.reason == "unsupported_rate"
    with pytest.raises(ClipError):
        read_clip(fast, preparation=PREPARATION)
    assert np.array_equal(
        waveform(fast, preparation=Preparation(16_000, speed=20)), waveform(tone(tmp_path / "c.wav", 2_000))
    )


def test_rates_are_whole(tmp_path: Path) -> None:
    assert Preparation(16_000, speed=0.1).rate_of(44_100) == 4_410
    assert Preparation(16_000, speed=0.07).rate_of(100_000) == 7_000  # the product of floats is above it
    assert Preparation(16_000, speed=0.333).rate_of(44_100) == 14_685
