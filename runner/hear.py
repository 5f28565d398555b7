"""VGGish behind the HEAR API (hearbenchmark.com/hear-api.html): for hear-eval-kit and hear-validator.

    hear-validator runner.hear                       # the released weights
    hear-validator runner.hear --model model.ckpt

Timestamps are the centers of windows of 0.975 s, every 50 ms from the beginning of the audio to its end; beyond both
ends the audio is taken as silence.  A scene embedding is the mean over windows every 0.96 s, as the runner's own clips
are cut.  Embeddings are the network's output: no PCA, no 8 bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from runner.audio.framing import hop_samples
from runner.inference.api import load_vggish_model
from runner.inference.session import EmbeddingSession
from runner.vggish.constants import EMBEDDING_SIZE, EXAMPLE_SAMPLES, SAMPLE_RATE
from runner.vggish.spec import VGGISH

TIMESTAMP_HOP_S = 0.05
"""HEAR asks for at most 50 ms, the tolerance of its onset tasks."""


class Vggish(tf.Module):  # type: ignore[misc]
    """The model that HEAR's functions take.

    Attributes:
        sample_rate: 16,000 Hz.
        scene_embedding_size: 128.
        timestamp_embedding_size: 128.
    """

    sample_rate = SAMPLE_RATE
    scene_embedding_size = EMBEDDING_SIZE
    timestamp_embedding_size = EMBEDDING_SIZE

    def __init__(self, session: EmbeddingSession) -> None:
        super().__init__(name="vggish")
        self.session = session


def load_model(model_file_path: str = "", device: str = "auto") -> Vggish:
    """Load the model.

    Args:
        model_file_path: a checkpoint; the released weights when empty; ``random`` for random ones.
        device: auto, cpu, gpu or metal.

    Raises:
        WeightsError: the weights can't be had.
    """
    return Vggish(load_vggish_model(device, weights=model_file_path or "audioset"))


def get_timestamp_embeddings(audio: Any, model: Vggish) -> tuple[Any, Any]:
    """Embed audio every 50 ms.

    Args:
        audio: float32 [sounds, samples] at 16 kHz, in -1..1.
        model: of ``load_model``.

    Returns:
        float32 [sounds, timestamps, 128], and the timestamps in milliseconds, float32 [sounds, timestamps].
    """
    samples = np.asarray(audio, np.float32)
    before = EXAMPLE_SAMPLES // 2
    padded = np.pad(samples, ((0, 0), (before, EXAMPLE_SAMPLES - before)))
    embeddings = _embed(padded[:, :-1], hop_samples(TIMESTAMP_HOP_S, VGGISH), model)
    times = 1000 * TIMESTAMP_HOP_S * np.arange(embeddings.shape[1], dtype=np.float32)
    return tf.constant(embeddings), tf.constant(np.tile(times, (len(samples), 1)))


def get_scene_embeddings(audio: Any, model: Vggish) -> Any:
    """Embed each sound as a whole: float32 [sounds, 128], of audio as ``get_timestamp_embeddings`` takes it."""
    samples = np.asarray(audio, np.float32)
    missing = max(0, EXAMPLE_SAMPLES - samples.shape[1])
    embeddings = _embed(np.pad(samples, ((0, 0), (0, missing))), VGGISH.hop_samples, model)
    return tf.constant(embeddings.mean(axis=1))


def _embed(samples: NDArray[np.float32], hop: int, model: Vggish) -> NDArray[np.float32]:
    """Embed all whole windows of each row, [rows, windows, 128]; a row at a time, so that memory stays small."""
    windows = sliding_window_view(samples, EXAMPLE_SAMPLES, axis=1)[:, ::hop]
    return np.stack([model.session.embed_windows(np.ascontiguousarray(row)) for row in windows])
