"""One recording in several encodings: how far its embeddings are apart (random weights, biases not zero).

The bounds are about twice what was found when this was written; the measured figures are beside them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from runner.inference.session import EmbeddingSession

pytestmark = pytest.mark.slow


def apart(actual: np.ndarray, expected: np.ndarray) -> tuple[float, float]:
    """The largest difference over the largest value, and the least cosine."""
    assert actual.shape == expected.shape
    actual, expected = actual.astype(np.float64), expected.astype(np.float64)
    cosine = (actual * expected).sum(1) / np.linalg.norm(actual, axis=1) / np.linalg.norm(expected, axis=1)
    return float(np.abs(actual - expected).max() / np.abs(expected).max()), float(cosine.min())


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24"])
def test_flac_and_wav_of_the_same_samples_are_equal_bit_for_bit(
    vggish: EmbeddingSession, tmp_path: Path, audio: Path, subtype: str
) -> None:
    samples, rate = soundfile.read(audio / "equivalence/perch_21100/21100_36_48.wav")
    # Whole numbers, since from floats each format rounds in its own way.
    samples = (samples * 32_767).astype(np.int16) if subtype == "PCM_16" else (samples * 2**23).astype(np.int32) * 256
    assert np.unique(samples).size > 1000
    for name in ("a.wav", "a.flac", "a.aiff"):
        soundfile.write(tmp_path / name, samples, rate, subtype=subtype)
    wav, flac, aiff = (vggish.embed_file(tmp_path / name) for name in ("a.wav", "a.flac", "a.aiff"))
    assert wav.shape == (10, 128)
    assert np.array_equal(wav, flac)
    assert np.array_equal(wav, aiff)


@pytest.mark.parametrize(
    ("encoding", "max_error", "min_cosine"),
    [
        ("flac", 1e-5, 0.9999999),  # 4.9e-6: the WAV holds doubles, the FLAC their first 24 bits
        ("opus", 0.05, 0.9995),  # 0.026, 0.99978
        ("ogg", 0.14, 0.996),  # 0.067, 0.9981
        ("mp3", 0.5, 0.93),  # 0.25, 0.968: its encoder cut the high bands off
    ],
)
def test_a_birds_call_in_other_encodings(
    vggish: EmbeddingSession, audio: Path, encoding: str, max_error: float, min_cosine: float
) -> None:
    folder = audio / "equivalence/perch_21100"
    error, cosine = apart(
        vggish.embed_file(folder / f"21100_36_48.{encoding}"), vggish.embed_file(folder / "21100_36_48.wav")
    )
    assert error < max_error
    assert cosine > min_cosine
    if encoding != "flac":
        assert error > max_error / 10  # a lossy file is another sound: if this is small, it is the WAV that was read


@pytest.mark.parametrize(
    ("encoding", "max_error", "min_cosine"),
    [
        ("pcm24.wav", 5e-4, 0.999999),  # 2.0e-4: 16 bits against 24
        ("pcm32.au", 5e-4, 0.999999),
        ("pcm16.aiff", 1e-3, 0.999999),  # 3.6e-4: dithered otherwise
        ("ulaw.au", 0.03, 0.9998),  # 0.012
        ("pcm8.wav", 0.09, 0.998),  # 0.041
    ],
)
def test_a_pluck_at_other_depths(
    vggish: EmbeddingSession, audio: Path, encoding: str, max_error: float, min_cosine: float
) -> None:
    folder = audio / "equivalence/cpython_pluck"
    error, cosine = apart(
        vggish.embed_file(folder / f"pluck-{encoding}"), vggish.embed_file(folder / "pluck-pcm16.wav")
    )
    assert error < max_error
    assert cosine > min_cosine
