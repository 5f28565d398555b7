"""YAMNet from windows of waveform to embeddings and scores, in TensorFlow: front end and network on one device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runner.vggish.frontend import are_samples
from runner.vggish.network import in_chunks
from runner.yamnet import frontend, network
from runner.yamnet.constants import WIDTH

CPU_CHUNK = 128
"""Rows that a CPU computes at a time: larger batches are no faster, and take about 0.8 MB a row."""


def outputs_of_windows(weights: Mapping[str, Any], windows: Any, precision: str, *, is_cpu: bool) -> Any:
    """Embed and classify windows of waveform.

    Args:
        weights: from ``network.variables``.
        windows: tensor [n, 15600], mono 16 kHz: int16, or float32 in -1..1.
        precision: float32, tf32, float16 or bfloat16, as that of the weights.
        is_cpu: whether the device is a CPU.

    Returns:
        float32 tensor [n, 1545]: embedding and scores, NaN for a row that holds NaN, infinity or numbers of another
        scale.
    """
    import tensorflow as tf

    def compute(windows: Any) -> Any:
        sane = None if windows.dtype == tf.int16 else are_samples(windows)
        return network.embed(weights, log_mel(windows, precision, is_cpu=is_cpu), network.dtype_of(precision), sane)

    return in_chunks(compute, windows, CPU_CHUNK, WIDTH, tf.float32) if is_cpu else compute(windows)


def log_mel(windows: Any, precision: str, *, is_cpu: bool) -> Any:
    """Compute the log-mel of windows, tensor [n, 15600] to float32 [n, 96, 64].

    It is exact, and on a CPU with coarser precisions than float32 the fastest whose error is below theirs.  A float32
    FFT is not: YAMNet's offset is a tenth of VGGish's, and it errs by up to 1e-2 in nearly silent bands.
    """
    if is_cpu and precision != "float32":
        return frontend.folded_log_mel(windows)
    mel_dtype = "float64" if precision == "tf32" else "float32"  # the mel filters' product must not be a TF32 one
    return frontend.log_mel(windows, mel_dtype=mel_dtype)
