"""The numbers: log-mel and network against float64 NumPy written from the published formulas alone."""

import numpy as np
import pytest

from runner.devices import DeviceInfo, DeviceType, choose_device
from runner.precision import choose_precision
from runner.vggish.checkpoint import random_weights
from runner.vggish.session import SessionMetadata, VGGishSession

CPU = DeviceInfo(DeviceType.CPU, True, "CPU", "")


def reference_log_mel(window: np.ndarray) -> np.ndarray:
    """[15600] float64 → [96, 64]."""
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    frames = np.stack([window[start : start + 400] * hann for start in range(0, 96 * 160, 160)])
    magnitude = np.abs(np.fft.rfft(frames, 512))
    mel = lambda hz: 1127 * np.log(1 + np.asarray(hz) / 700)  # noqa: E731
    edges = np.linspace(mel(125), mel(7500), 66)
    bins = mel(np.arange(257) * 16_000 / 512)
    filters = np.zeros((257, 64))
    for band in range(64):
        low, centre, high = edges[band : band + 3]
        filters[:, band] = np.maximum(0, np.minimum((bins - low) / (centre - low), (high - bins) / (high - centre)))
    filters[0] = 0
    return np.log(magnitude @ filters + 0.01)


def reference_network(weights: dict[str, np.ndarray], examples: np.ndarray) -> np.ndarray:
    """[n, 96, 64] float64 → [n, 128]."""
    relu = lambda x: np.maximum(x, 0)  # noqa: E731

    def conv(x: np.ndarray, layer: str) -> np.ndarray:
        kernel = weights[f"vggish/{layer}/weights"].astype(np.float64)
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        out = sum(padded[:, i : i + x.shape[1], j : j + x.shape[2]] @ kernel[i, j] for i in range(3) for j in range(3))
        return relu(out + weights[f"vggish/{layer}/biases"])

    def pool(x: np.ndarray) -> np.ndarray:
        n, h, w, c = x.shape
        return x.reshape(n, h // 2, 2, w // 2, 2, c).max(axis=(2, 4))

    x = pool(conv(examples[..., None], "conv1"))
    x = pool(conv(x, "conv2"))
    x = pool(conv(conv(x, "conv3/conv3_1"), "conv3/conv3_2"))
    x = pool(conv(conv(x, "conv4/conv4_1"), "conv4/conv4_2")).reshape(len(examples), -1)
    for layer in ("fc1/fc1_1", "fc1/fc1_2"):
        x = relu(x @ weights[f"vggish/{layer}/weights"].astype(np.float64) + weights[f"vggish/{layer}/biases"])
    return x @ weights["vggish/fc2/weights"].astype(np.float64) + weights["vggish/fc2/biases"]


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


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
    arrays = random_weights(7)
    rng = np.random.default_rng(8)  # biases that are not zero, so that a dropped one is seen
    return {
        name: rng.normal(0, 0.1, array.shape).astype(np.float32) if name.endswith("biases") else array
        for name, array in arrays.items()
    }


def make_session(weights: dict[str, np.ndarray], precision: str = "float32", batch_size: int = 64) -> VGGishSession:
    choice = choose_device("cpu", [CPU])
    metadata = SessionMetadata(choice.to_dict(), {}, {}, {})
    return VGGishSession(dict(weights), choice, choose_precision(precision, CPU), batch_size, metadata)


@pytest.fixture(scope="module")
def session(weights: dict[str, np.ndarray]) -> VGGishSession:
    return make_session(weights)


def test_log_mel_equals_the_formulas(signals: np.ndarray) -> None:
    from runner.vggish.frontend import log_mel

    expected = np.stack([reference_log_mel(signal.astype(np.float64)) for signal in signals])
    found = log_mel(signals).numpy()
    assert found.shape == (7, 96, 64)
    assert np.abs(found - expected).max() < 1e-5


def test_silence_is_minus_4_605() -> None:
    from runner.vggish.frontend import log_mel

    assert np.allclose(log_mel(np.zeros((1, 15_600), np.float32)).numpy(), np.log(0.01), atol=1e-6)


@pytest.mark.slow
def test_float32_embeddings_equal_a_float64_forward_pass(
    session: VGGishSession, weights: dict[str, np.ndarray], signals: np.ndarray
) -> None:
    examples = np.stack([reference_log_mel(signal.astype(np.float64)) for signal in signals])
    expected = reference_network(weights, examples)
    found = session.embed_examples(examples.astype(np.float32))
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
    assert (found < 0).any()  # no ReLU after fc2
    from_waveform = session.embed_windows(signals)
    assert np.abs(from_waveform - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.slow
def test_an_embedding_does_not_depend_on_its_batch(session: VGGishSession, signals: np.ndarray) -> None:
    together = session.embed_windows(signals)
    alone = np.concatenate([session.embed_windows(signals[row : row + 1]) for row in range(len(signals))])
    assert np.abs(together - alone).max() < 1e-5 * np.abs(together).max()
    session.batch_size = 3
    assert np.abs(session.embed_windows(signals) - together).max() < 1e-5 * np.abs(together).max()
    session.batch_size = 64
    assert session.embed_windows(signals[:0]).shape == (0, 128)


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "max_error", "min_cosine"), [("bfloat16", 0.03, 0.999), ("tf32", 1e-4, 0.99999)])
def test_other_precisions_stay_close(
    session: VGGishSession,
    weights: dict[str, np.ndarray],
    signals: np.ndarray,
    precision: str,
    max_error: float,
    min_cosine: float,
) -> None:
    expected = session.embed_windows(signals)
    found = make_session(weights, precision).embed_windows(signals)
    assert np.abs(found - expected).max() < max_error * np.abs(expected).max()
    cosine = (found * expected).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosine.min() > min_cosine


@pytest.mark.slow
def test_waveforms_of_any_rate_shape_and_type_are_taken(session: VGGishSession) -> None:
    t = np.arange(3 * 44_100) / 44_100
    tone = np.sin(2 * np.pi * 440 * t)
    mono = session.embed_waveform(tone.astype(np.float32), 44_100)
    stereo = session.embed_waveform(np.stack([tone, tone], 1), 44_100)
    integers = session.embed_waveform((tone * 32_767).astype(np.int16), 44_100)
    assert mono.shape == (3, 128)
    assert np.abs(stereo - mono).max() < 1e-5 * np.abs(mono).max()
    assert np.abs(integers - mono).max() < 1e-2 * np.abs(mono).max()
    assert session.embed_waveform(tone[:4000], 44_100).shape == (1, 128)
    with pytest.raises(ValueError, match="shape"):
        session.embed_waveform(np.zeros((2, 2, 2)), 16_000)
