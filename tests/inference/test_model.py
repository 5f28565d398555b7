"""The numbers: log-mel and network against float64 NumPy written from the published formulas alone."""

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from runner.core.errors import ClipError
from runner.inference.session import EmbeddingSession
from runner.models.signals import fixed_signals
from tests.reference import make_session, reference_log_mel


@pytest.fixture(scope="module")
def signals() -> np.ndarray:
    """Tone, chirp, noise, silence, impulse, clipped sine, faint noise: float32 [7, 15600]."""
    t = np.arange(15_600) / 16_000
    rng = np.random.default_rng(0)
    impulse = np.zeros(15_600)
    impulse[8000] = 1
    return np.stack(
        [
            np.sin(2 * np.pi * 1000 * t),
            np.sin(2 * np.pi * (100 + 4000 * t) * t),
            rng.uniform(-1, 1, 15_600),
            np.zeros(15_600),
            impulse,
            np.clip(3 * np.sin(2 * np.pi * 220 * t), -1, 1),
            1e-4 * rng.standard_normal(15_600),
        ]
    ).astype(np.float32)


def test_log_mel_equals_the_formulas(signals: np.ndarray) -> None:
    from runner.vggish.frontend import log_mel

    expected = np.stack([reference_log_mel(signal.astype(np.float64)) for signal in signals])
    spectrograms = log_mel(signals).numpy()
    assert spectrograms.shape == (7, 96, 64)
    assert np.abs(spectrograms - expected).max() < 1e-5


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(
    arrays_of.arrays(np.float32, 15_600 // 40, elements=st.floats(-1, 1, width=32)),
    st.sampled_from([1, 40]),
    st.sampled_from([1.0, 1e-3, 1e-30, 1000.0]),
)
def test_log_mel_equals_the_formulas_on_any_input(pattern: np.ndarray, stretch: int, level: float) -> None:
    from runner.vggish.frontend import log_mel

    signal = (np.resize(np.repeat(pattern, stretch), 15_600) * np.float32(level)).astype(np.float32)
    spectrograms = log_mel(signal[None]).numpy()[0]
    assert np.abs(spectrograms - reference_log_mel(signal.astype(np.float64))).max() < 1e-5


def test_torchvggishs_log_mel_agrees(signals: np.ndarray) -> None:
    spec = importlib.util.find_spec("torchvggish")
    if spec is None or not spec.submodule_search_locations:
        assert not os.environ.get("CI"), "torchvggish is missing in CI: make test installs it"
        pytest.skip("torchvggish is not installed: make test does that")
    path = Path(spec.submodule_search_locations[0]) / "mel_features.py"  # not the package, which wants PyTorch
    module_spec = importlib.util.spec_from_file_location("torchvggish_mel_features", path)
    assert module_spec
    assert module_spec.loader
    theirs = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(theirs)
    from runner.vggish.frontend import log_mel

    for signal, actual in zip(signals, log_mel(signals).numpy(), strict=True):
        expected = theirs.log_mel_spectrogram(
            signal.astype(np.float64),
            audio_sample_rate=16_000,
            log_offset=0.01,
            window_length_secs=0.025,
            hop_length_secs=0.010,
            num_mel_bins=64,
            lower_edge_hertz=125,
            upper_edge_hertz=7500,
        )
        assert np.abs(actual - expected[:96]).max() < 1e-5


def test_the_folded_log_mel_stays_close_to_the_formulas(signals: np.ndarray) -> None:
    from runner.vggish.frontend import folded_log_mel

    expected = np.stack([reference_log_mel(signal.astype(np.float64)) for signal in signals])
    assert np.abs(folded_log_mel(signals).numpy() - expected).max() < 5e-4


def test_silence_is_minus_4_605() -> None:
    from runner.vggish.frontend import log_mel

    assert np.allclose(log_mel(np.zeros((1, 15_600), np.float32)).numpy(), np.log(0.01), atol=1e-6)


@pytest.mark.slow
def test_float32_embeddings_equal_a_float64_forward_pass(
    vggish: EmbeddingSession, log_mels: np.ndarray, forward_pass: np.ndarray
) -> None:
    embeddings = vggish.embed_examples(log_mels.astype(np.float32))
    assert embeddings.dtype == np.float32
    assert np.abs(embeddings - forward_pass).max() < 1e-5 * np.abs(forward_pass).max()
    assert (embeddings < 0).any()  # no ReLU after fc2
    from_waveform = vggish.embed_windows(fixed_signals())
    assert np.abs(from_waveform - forward_pass).max() < 1e-5 * np.abs(forward_pass).max()


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "max_error", "min_cosine"), [("bfloat16", 0.03, 0.999), ("tf32", 1e-4, 0.99999)])
def test_other_precisions_stay_close(
    vggish: EmbeddingSession,
    weights: dict[str, np.ndarray],
    signals: np.ndarray,
    precision: str,
    max_error: float,
    min_cosine: float,
) -> None:
    expected = vggish.embed_windows(signals)
    embeddings = make_session(weights, precision).embed_windows(signals)
    assert np.abs(embeddings - expected).max() < max_error * np.abs(expected).max()
    cosine = (embeddings * expected).sum(1) / np.linalg.norm(embeddings, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosine.min() > min_cosine


@pytest.mark.slow
def test_waveforms_of_any_rate_shape_and_type_are_taken(vggish: EmbeddingSession) -> None:
    t = np.arange(3 * 44_100) / 44_100
    tone = np.sin(2 * np.pi * 440 * t)
    mono = vggish.embed_waveform(tone.astype(np.float32), 44_100)
    stereo = vggish.embed_waveform(np.stack([tone, tone], 1), 44_100)
    integers = vggish.embed_waveform((tone * 32_767).astype(np.int16), 44_100)
    assert mono.shape == (3, 128)
    assert np.abs(stereo - mono).max() < 1e-5 * np.abs(mono).max()
    assert np.abs(integers - mono).max() < 1e-2 * np.abs(mono).max()
    assert vggish.embed_waveform(tone[:4000], 44_100).shape == (1, 128)
    with pytest.raises(ValueError, match="shape"):
        vggish.embed_waveform(np.zeros((2, 2, 2)), 16_000)


HARMFUL = [np.nan, np.inf, -np.inf, 1e18, -1e38, 1001.0]


@pytest.fixture(scope="module")
def unharmed(vggish: EmbeddingSession, signals: np.ndarray) -> np.ndarray:
    """Embeddings of the signals."""
    return vggish.embed_windows(signals)


@pytest.mark.slow
@pytest.mark.parametrize("value", HARMFUL)
def test_a_window_that_is_no_waveform_gives_a_row_of_nan_and_changes_no_other(
    vggish: EmbeddingSession, signals: np.ndarray, unharmed: np.ndarray, value: float
) -> None:
    windows = signals.copy()
    windows[2, 5000] = value
    windows[4] = value
    embeddings = vggish.embed_windows(windows)
    assert np.isnan(embeddings[[2, 4]]).all()
    others = [0, 1, 3, 5, 6]
    assert np.array_equal(embeddings[others], unharmed[others])


@pytest.fixture(scope="module")
def examples(signals: np.ndarray) -> np.ndarray:
    """Log-mel of the signals, float32 [7, 96, 64]."""
    from runner.vggish.frontend import log_mel

    return log_mel(signals).numpy()


@pytest.fixture(scope="module")
def unharmed_examples(vggish: EmbeddingSession, examples: np.ndarray) -> np.ndarray:
    """Their embeddings."""
    return vggish.embed_examples(examples)


@pytest.mark.slow
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30, -101.0])
def test_an_example_that_is_no_log_mel_gives_a_row_of_nan(
    vggish: EmbeddingSession, examples: np.ndarray, unharmed_examples: np.ndarray, value: float
) -> None:
    harmed = examples.copy()
    harmed[3, 95, 63] = value
    embeddings = vggish.embed_examples(harmed)
    assert np.isnan(embeddings[3]).all()
    others = [0, 1, 2, 4, 5, 6]
    assert np.array_equal(embeddings[others], unharmed_examples[others])


@pytest.mark.slow
def test_log_mel_that_overflows_gives_a_row_of_nan(
    weights: dict[str, np.ndarray], signals: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tensorflow as tf

    from runner.vggish import frontend

    monkeypatch.setattr(frontend, "are_samples", lambda windows: tf.ones([tf.shape(windows)[0]], tf.bool))
    embeddings = make_session(weights, "bfloat16").embed_windows(signals * np.float32(1e37))
    silent = 3
    assert np.isnan(np.delete(embeddings, silent, axis=0)).all()
    assert np.isfinite(embeddings[silent]).all()


@pytest.mark.slow
def test_embeddings_of_an_array_are_those_of_its_file(vggish: EmbeddingSession, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    for rate, subtype, samples in (
        (16_000, "PCM_16", rng.integers(-9000, 9000, 40_000).astype(np.int16)),
        (22_050, "PCM_32", rng.integers(-(2**30), 2**30, (40_000, 2)).astype(np.int32)),
        (16_000, "FLOAT", (3 * rng.standard_normal(900)).astype(np.float32)),
    ):
        soundfile.write(tmp_path / "a.wav", samples, rate, subtype=subtype)
        expected = vggish.embed_file(tmp_path / "a.wav", hop_s=0.48)
        for array in (samples, samples.astype(samples.dtype.newbyteorder(">"))):
            assert np.array_equal(vggish.embed_waveform(array, float(rate), hop_s=0.48), expected)


@pytest.mark.slow
def test_windows_of_other_types_are_scaled_or_refused(vggish: EmbeddingSession, signals: np.ndarray) -> None:
    samples = (signals[:3] * 32767).astype(np.int16)
    expected = vggish.embed_windows(samples)
    for array in (samples.astype(">i2"), samples / 32768, samples.astype(np.int32) << 16, (samples / 32768).tolist()):
        assert np.array_equal(vggish.embed_windows(array), expected)
    for bad, words in (
        (samples.astype(np.int64), "windows has type int64, which says no full scale"),
        (samples[0], r"shape \(15600,\): give \[n, 15600\]"),
        (samples[:, 1:], r"give \[n, 15600\]"),
    ):
        with pytest.raises(ValueError, match=words):
            vggish.embed_windows(bad)
    for bad in (np.zeros((1, 96, 64), np.int16), np.zeros((1, 64, 96), np.float32), np.zeros((96, 64), np.float32)):
        with pytest.raises(ValueError, match=r"examples have type|give \[n, 96, 64\]"):
            vggish.embed_examples(bad)
    assert vggish.embed_windows(samples[:0]).shape == (0, 128)


@pytest.mark.slow
def test_clips_that_are_no_waveform_are_refused(vggish: EmbeddingSession, tmp_path: Path) -> None:
    noise = np.random.default_rng(3).uniform(-1, 1, 40_000).astype(np.float32)
    for rate, hop_s, words in ((44_100.5, 0.96, "sample_rate"), (-1, 0.96, "sample_rate"), (16_000, -1, "hop_s=-1")):
        with pytest.raises(ValueError, match=words):
            vggish.embed_waveform(noise, rate, hop_s=hop_s)
    with pytest.raises(ClipError, match="too_short"):
        vggish.embed_waveform(noise[:1], 44_100)
    for value, reason in ((np.inf, "non_finite"), (1e18, "out_of_range")):
        damaged = noise.copy()
        damaged[39_000] = value  # in the tail, which no example has
        with pytest.raises(ValueError, match="waveform has"):
            vggish.embed_waveform(damaged, 16_000)
        soundfile.write(tmp_path / "a.wav", damaged, 16_000, subtype="FLOAT")
        with pytest.raises(ClipError, match=reason):
            vggish.embed_file(tmp_path / "a.wav")
