"""What the tests hold the model to: float64 NumPy written from the published formulas alone; and a session to test."""

import numpy as np

from runner.contract.result import Decision, DeviceReport, WeightsReport
from runner.devices.detection import DeviceInfo, DeviceType
from runner.devices.selection import DeviceChoice, choose_device
from runner.inference.precision import PrecisionChoice, choose_precision
from runner.inference.session import EmbeddingSession, SessionMetadata
from runner.models.base import Target
from runner.models.vggish.program import VGGishProgram
from runner.vggish.spec import VGGISH

CPU = DeviceInfo(DeviceType.CPU, True, "CPU", "")


def reference_log_mel(window: np.ndarray, offset: float = 0.01) -> np.ndarray:
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
    return np.log(magnitude @ filters + offset)


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


def count_samples(frames: int, sample_rate: int) -> int:
    """Samples at 16 kHz of ``frames`` at ``sample_rate``, as resampy counts them."""
    return frames if sample_rate == 16_000 else int(frames * 16_000.0 / sample_rate)


def count_examples(samples: int, hop_s: float = 0.96) -> int:
    """Unpadded examples of ``samples`` at 16 kHz by the release's two framings: into frames, then into examples."""
    frames = 0 if samples < 400 else 1 + (samples - 400) // 160
    return 0 if frames < 96 else 1 + (frames - 96) // round(hop_s * 100)


def metadata_of(device: DeviceChoice, precision: PrecisionChoice) -> SessionMetadata:
    """The description of a session with weights of no source."""
    weights = WeightsReport("random", "random", None, 0, "for tests", is_random=True)
    return SessionMetadata(DeviceReport.of(device), precision.decision, weights, algorithm("direct"))


def algorithm(conv: str) -> Decision:
    """The choice of an algorithm of the deep convolutions."""
    return Decision(conv, conv, "for tests")


def make_program(
    weights: dict[str, np.ndarray], device: DeviceType, precision: PrecisionChoice, conv: str = "direct"
) -> VGGishProgram:
    """VGGish on a device; the weights stay as they are."""
    return VGGishProgram(VGGISH, dict(weights), Target(device, precision.effective), algorithm(conv))


def make_session(
    weights: dict[str, np.ndarray], precision: str = "float32", batch_size: int = 64, conv: str = "direct"
) -> EmbeddingSession:
    choice = choose_device("cpu", [CPU])
    chosen = choose_precision(precision, CPU)
    program = make_program(weights, DeviceType.CPU, chosen, conv)
    return EmbeddingSession(program, batch_size, metadata_of(choice, chosen))
