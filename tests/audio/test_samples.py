"""Arrays of any type as samples: scaled as a WAV file of them would be read, or refused in one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from runner.audio.framing import scaled
from runner.audio.reader import read_clip
from runner.audio.samples import as_mono, as_rate, fault_of
from runner.core.errors import ClipError
from tests.vggish_clips import PREPARATION

RNG = np.random.default_rng(5)
UNIT = RNG.uniform(-0.9, 0.9, 4000)
STORED: dict[str, np.ndarray] = {
    "PCM_16": (UNIT * 32767).astype(np.int16),
    "PCM_32": (UNIT * 2147483647).astype(np.int32),
    "PCM_24": (UNIT * 8388607).astype(np.int32) << 8,
    "PCM_U8": (128 + UNIT * 127).astype(np.uint8),
    "FLOAT": UNIT.astype(np.float32),
    "DOUBLE": UNIT,
}
"""The samples of a file, by its subtype, as ``scipy.io.wavfile`` gives them."""


def written(path: Path, samples: np.ndarray, subtype: str) -> Path:
    array = ((samples.astype(np.int16) - 128) << 8) if subtype == "PCM_U8" else samples
    soundfile.write(path, array, 16_000, subtype=subtype)
    return path


@pytest.mark.parametrize("shape", [(4000,), (2000, 2), (4000, 1), (1000, 4)])
@pytest.mark.parametrize("subtype", STORED)
def test_an_array_is_what_its_file_is_read_as(tmp_path: Path, subtype: str, shape: tuple[int, ...]) -> None:
    samples = STORED[subtype].reshape(shape)
    with read_clip(str(written(tmp_path / "a.wav", samples, subtype)), preparation=PREPARATION) as clip:
        expected = scaled(np.concatenate(list(clip)))
    for array in (samples, np.asfortranarray(samples), samples.astype(samples.dtype.newbyteorder(">"))):
        mono = as_mono(array)
        assert mono.dtype in (np.float32, np.int16)
        assert mono.dtype.isnative
        assert np.array_equal(scaled(mono), expected)


def test_mono_int16_is_not_copied() -> None:
    samples = STORED["PCM_16"]
    assert np.shares_memory(as_mono(samples), samples)
    assert np.shares_memory(as_mono(samples[:, None]), samples)


@pytest.mark.parametrize(
    "array", [[0.5, -0.5], (0.5, -0.5), np.array([0.5, -0.5], np.float16), np.longdouble([0.5, -0.5])]
)
def test_floats_of_any_kind_are_taken(array: Any) -> None:
    assert as_mono(array).tolist() == [0.5, -0.5]


NO_SAMPLES = (np.int64, np.uint64, np.uint16, np.uint32, np.int8, np.complex64, np.bool_, object, "U3")


@pytest.mark.parametrize(
    ("waveform", "words"),
    [
        *[
            (np.zeros(9, dtype), f"type {np.dtype(dtype)}, which says no full scale: give int16")
            for dtype in NO_SAMPLES
        ],
        ([1, 2, 3], "type int64"),
        ([[0.1], [0.2, 0.3]], "no array of numbers"),
        (None, "type object"),
        (0.5, r"shape \(\): give \[samples\]"),
        (np.zeros((2, 2, 2)), r"shape \(2, 2, 2\): give \[samples\]"),
        (np.zeros((2, 16_000)), r"shape \(2, 16000\), more channels than samples.*waveform\.T"),
        (np.zeros((1, 16_000), np.int16), r"more channels than samples"),
        (np.empty(0), r"no samples"),
        (np.empty((0, 2), np.int16), r"no samples"),
        (np.empty((9, 0)), r"no samples"),
        ([], r"no samples"),
        ([0.5, np.nan], "NaN or infinite"),
        (np.array([[0.5, -np.inf]] * 3), "NaN or infinite"),
        (np.full(9, 1e300), "NaN or infinite"),
        (np.full(9, 1e18, np.float32), r"up to 1e\+18, where full scale is 1.*divide 16-bit ones by 32768"),
        (np.array([0.0, -1000.5], np.float32), "up to 1000"),
        (np.array([0.0, 12_345.0]), "up to 1.234e"),
    ],
)
def test_what_is_no_waveform_is_refused_in_a_sentence(waveform: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words) as refused:
        as_mono(waveform)
    assert "\n" not in str(refused.value)
    assert str(refused.value).startswith("waveform ")


def test_headroom_is_no_fault() -> None:
    assert fault_of(np.array([-1000.0, 0.0, 31.0], np.float32)) is None
    assert fault_of(np.array([32_767, -32_768], np.int16)) is None
    assert fault_of(np.empty(0, np.float32)) is None


@pytest.mark.parametrize("rate", [16_000, 16_000.0, np.int32(44_100), np.float64(8000), np.array(22_050)])
def test_whole_rates_are_taken(rate: Any) -> None:
    assert as_rate(rate) == int(rate)


@pytest.mark.parametrize(
    "rate", [0, -16_000, 999, 768_001, 44_100.5, float("nan"), float("inf"), "16000", None, True, 1j]
)
def test_other_rates_are_refused(rate: Any) -> None:
    with pytest.raises(ValueError, match="no whole number of Hz from 1000 to 768000"):
        as_rate(rate)


@pytest.mark.parametrize(("value", "reason"), [(np.nan, "non_finite"), (np.inf, "non_finite"), (3e38, "out_of_range")])
@pytest.mark.parametrize(("rate", "channels"), [(16_000, 1), (44_100, 2)])
def test_a_clips_blocks_are_checked(tmp_path: Path, value: float, reason: str, rate: int, channels: int) -> None:
    """As the file has them: channels' mean and the resampler may overflow with what is no number yet."""
    samples = np.ones((11 * rate, channels), np.float32)
    samples[-5] = value
    soundfile.write(tmp_path / "x.wav", samples, rate, subtype="FLOAT")
    with read_clip(str(tmp_path / "x.wav"), preparation=PREPARATION) as clip:
        blocks = iter(clip)
        assert len(next(blocks)) > 0
        with pytest.raises(ClipError) as refused:
            list(blocks)
    assert refused.value.reason == reason
    assert "near 10.0 s" in refused.value.detail
