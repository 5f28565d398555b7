"""The answers that a device is held to: log-mel in NumPy float64, the network on the CPU in float32, op by op.

Nothing of what makes a session fast is used here: no compiled program, no other precision, no device but the CPU.  The
dense layers are NumPy's, which unlike TensorFlow makes no copies of their 270 MB.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from runner.vggish import network
from runner.vggish.constants import EXAMPLE_FRAMES, FFT_LENGTH, LOG_OFFSET, STFT_HOP, STFT_WINDOW
from runner.vggish.frontend import hann_window, mel_matrix

Array = NDArray[np.float32]


def reference_log_mel(windows: Array) -> NDArray[np.float64]:
    """Log-mel of windows of waveform, [n, 15600] to float64 [n, 96, 64]."""
    starts = STFT_HOP * np.arange(EXAMPLE_FRAMES)
    frames = windows.astype(np.float64)[:, starts[:, None] + np.arange(STFT_WINDOW)] * hann_window()
    log_mel: NDArray[np.float64] = np.log(np.abs(np.fft.rfft(frames, FFT_LENGTH)) @ mel_matrix() + LOG_OFFSET)
    return log_mel


def reference_embeddings(arrays: Mapping[str, Array], windows: Array) -> Array:
    """Embeddings of windows of waveform, float32 [n, 15600] to float32 [n, 128].

    Args:
        arrays: float32 weights by checkpoint name; left as they are.
        windows: mono 16 kHz in -1..1; at least 2, since for one alone TensorFlow takes other kernels.
    """
    import tensorflow as tf

    with tf.device("/CPU:0"):
        log_mel = tf.constant(reference_log_mel(windows).astype(np.float32))
        x: Array = network.deep_layers(arrays, network.first_layers(arrays, log_mel, tf.float32)).numpy()
    for layer in ("fc1/fc1_1", "fc1/fc1_2"):
        x = np.maximum(x @ arrays[f"vggish/{layer}/weights"] + arrays[f"vggish/{layer}/biases"], np.float32(0))
    return x @ arrays["vggish/fc2/weights"] + arrays["vggish/fc2/biases"]
