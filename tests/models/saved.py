"""A SavedModel of 32 kHz waveform in windows of five seconds, made here; and what it gives, by NumPy."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np

RATE, WINDOW_S, EMBEDDING, SCORES = 32_000, 5.0, 6, 4
SAMPLES = round(RATE * WINDOW_S)
CLASSES = ("cat", "dog", "rain", "car")


def matrices() -> tuple[np.ndarray, np.ndarray]:
    """Return the weights: of the embedding [160000, 6], and of the scores [6, 4]."""
    rng = np.random.default_rng(3)
    return (rng.standard_normal((SAMPLES, EMBEDDING)) / 100).astype(np.float32), rng.standard_normal(
        (EMBEDDING, SCORES)
    ).astype(np.float32)


def expected(windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return embeddings [n, 6] and scores [n, 4] of windows [n, 160000], float64."""
    kernel, dense = (matrix.astype(np.float64) for matrix in matrices())
    embeddings = windows.astype(np.float64) @ kernel
    return embeddings, 1 / (1 + np.exp(-embeddings @ dense))


def save(tf: ModuleType, folder: Path, batch: int | None = None, *, rank: int = 2) -> Path:
    """Save the model with a signature for ``batch`` windows (None: any number), or for one window of rank 1."""
    module = tf.Module()
    module.kernel, module.dense = map(tf.Variable, matrices())

    def serve(waveform):  # type: ignore[no-untyped-def]
        windows = waveform if rank == 2 else waveform[tf.newaxis]
        embeddings = tf.matmul(windows, module.kernel)
        outputs = {"embedding": embeddings, "scores": tf.sigmoid(tf.matmul(embeddings, module.dense))}
        outputs["frames"] = tf.signal.frame(windows, 512, 512)
        return outputs if rank == 2 else {name: value[0] for name, value in outputs.items()}

    shape = [batch, SAMPLES] if rank == 2 else [SAMPLES]
    signature = tf.function(serve, input_signature=[tf.TensorSpec(shape, tf.float32, name="waveform")])
    module.infer = signature
    tf.saved_model.save(module, str(folder), signatures={"serving_default": signature})
    return folder
