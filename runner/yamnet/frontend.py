"""Log-mel spectrogram of windows of waveform: VGGish's with YAMNet's offset, in TensorFlow.

Formulas and constants: the AudioSet YAMNet release (``features.py``, ``params.py``).
"""

from __future__ import annotations

from typing import Any

from runner.core.samples import INT16_SCALE
from runner.vggish import frontend
from runner.yamnet.constants import LOG_OFFSET


def log_mel(windows: Any, mel_dtype: str = "float32") -> Any:
    """Compute the log-mel of windows, [n, 15600] mono 16 kHz to float32 [n, 96, 64].

    Args:
        windows: tensor of float32 in -1..1, or of int16.
        mel_dtype: of magnitudes and their product with the mel filters, as in ``runner.vggish.frontend.log_mel``.
    """
    return frontend.log_mel(scaled(windows), mel_dtype, offset=LOG_OFFSET)


def folded_log_mel(windows: Any) -> Any:
    """Compute the log-mel in float32 by matrix products, for coarse precisions on a CPU; see ``log_mel``."""
    return frontend.folded_log_mel(scaled(windows), LOG_OFFSET)


def scaled(windows: Any) -> Any:
    """Return windows as a float32 tensor; 16-bit samples are divided by 32768."""
    import tensorflow as tf

    return tf.cast(windows, tf.float32) * INT16_SCALE if windows.dtype == tf.int16 else windows
