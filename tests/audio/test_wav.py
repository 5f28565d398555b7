"""Plain WAV files read by our own few lines: what libsndfile reads, or left to it."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from runner.audio.wav import Pcm16Wav

SAMPLES = np.random.default_rng(3).integers(-32768, 32768, 50_001).astype(np.int16)


def canonical(path: Path, samples: np.ndarray = SAMPLES) -> Path:
    soundfile.write(path, samples, 16_000, subtype="PCM_16")
    return path


def test_samples_are_those_of_libsndfile(tmp_path: Path) -> None:
    path = canonical(tmp_path / "x.wav")
    file = Pcm16Wav.open(path, 16_000)
    assert file is not None
    assert file.frames == len(SAMPLES)
    assert np.array_equal(file.read(0, 1 << 20), soundfile.read(path, dtype="int16")[0])
    assert np.array_equal(file.read(1_000, 500), SAMPLES[1_000:1_500])
    assert len(file.read(len(SAMPLES), 10)) == 0
    file.close()


def test_chunks_before_the_samples_are_passed_over(tmp_path: Path) -> None:
    data = canonical(tmp_path / "x.wav").read_bytes()
    extra = b"LIST" + struct.pack("<I", 5) + b"abcde\0"
    (tmp_path / "y.wav").write_bytes(data[:12] + extra + data[12:])
    file = Pcm16Wav.open(str(tmp_path / "y.wav"), 16_000)
    assert file is not None
    assert np.array_equal(file.read(0, 1 << 20), SAMPLES)
    file.close()


@pytest.mark.parametrize(
    ("rate", "channels", "subtype"),
    [(44_100, 1, "PCM_16"), (16_000, 2, "PCM_16"), (16_000, 1, "PCM_24"), (16_000, 1, "FLOAT"), (16_000, 1, "PCM_U8")],
)
def test_other_wavs_are_left_to_libsndfile(tmp_path: Path, rate: int, channels: int, subtype: str) -> None:
    soundfile.write(tmp_path / "x.wav", np.zeros((100, channels)), rate, subtype=subtype)
    assert Pcm16Wav.open(tmp_path / "x.wav", 16_000) is None


def test_what_is_no_whole_file_is_left_to_libsndfile(tmp_path: Path) -> None:
    data = canonical(tmp_path / "x.wav").read_bytes()
    (tmp_path / "cut.wav").write_bytes(data[:-2])
    (tmp_path / "empty.wav").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe.wav")
    (tmp_path / "folder.wav").mkdir()
    for name in ("cut.wav", "empty.wav", "pipe.wav", "folder.wav", "missing.wav", "nul\0.wav"):
        assert Pcm16Wav.open(str(tmp_path / name), 16_000) is None


@given(st.binary(max_size=200), st.integers(0, 60), st.integers(0, 255))
def test_no_bytes_break_it(tmp_path_factory: pytest.TempPathFactory, tail: bytes, place: int, value: int) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "x.wav"
    data = bytearray(canonical(path, SAMPLES[:20]).read_bytes() + tail)
    data[place % len(data)] = value
    path.write_bytes(bytes(data))
    if (file := Pcm16Wav.open(path, 16_000)) is not None:
        assert len(file.read(0, 1 << 20)) == file.frames
        file.close()
