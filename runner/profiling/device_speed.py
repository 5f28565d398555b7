"""Speed of a device by itself: the model on data that is there already, and large matrix products.

Both are measured after a run, on its sessions, to compare its end-to-end speed with the device's.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from runner.audio.framing import synthetic_windows

if TYPE_CHECKING:
    from runner.inference.session import EmbeddingSession

_PRODUCT = {"cpu": 2048, "gpu": 8192, "metal": 4096}
"""Rows and columns of the square matrices by kind of device."""

_CALLS_AHEAD = 8
"""Calls that are queued on a device before waiting for the last one's result."""


def model_only(sessions: Sequence[EmbeddingSession], seconds: float, dtype: str = "int16") -> float:
    """Measure examples per second of all sessions at once, from windows on the device to embeddings on the host.

    Args:
        sessions: one for each device.
        seconds: to measure; calls in flight are finished.
        dtype: of the windows, int16 or float32.
    """
    done = [0] * len(sessions)
    barrier = threading.Barrier(len(sessions) + 1)

    def run(number: int) -> None:
        session = sessions[number]
        rows = session.effective_batch_size
        on_device = session.on_device(synthetic_windows(rows, session.spec.window_samples, dtype))
        session.run_on_device(on_device).numpy()
        barrier.wait()
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            for _ in range(_CALLS_AHEAD if session.in_flight > 1 else 1):
                last = session.run_on_device(on_device)
                done[number] += rows
            last.numpy()
        barrier.wait()

    threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(len(sessions))]
    for thread in threads:
        thread.start()
    barrier.wait()
    start = time.perf_counter()
    barrier.wait()
    return sum(done) / (time.perf_counter() - start)


def matmul_peak(session: EmbeddingSession, kind: str, precision: str, seconds: float) -> float:
    """Measure TFLOP/s of large matrix products of random numbers on the session's device, in its precision."""
    import tensorflow as tf

    size = _PRODUCT[kind]
    dtype = tf.dtypes.as_dtype("float32" if precision == "tf32" else precision)
    with tf.device(session.device_name):
        a, b = (tf.cast(tf.random.stateless_normal([size, size], [1, seed]), dtype) for seed in (1, 2))
        tf.matmul(a, b)[:1, :1].numpy()
        calls = 0
        start = time.perf_counter()
        while (elapsed_s := time.perf_counter() - start) < seconds:
            for _ in range(_CALLS_AHEAD if session.in_flight > 1 else 1):
                last = tf.matmul(a, b)
                calls += 1
            last[:1, :1].numpy()
    return 2.0 * size**3 * calls / elapsed_s / 1e12


def speed_metrics(
    examples_per_s: float | None, alone: float, peak: float, hop_s: float, flop: float | None
) -> dict[str, float]:
    """Return the speed of a run's devices as metrics.

    Args:
        examples_per_s: of the run, end to end; None if it had none.
        alone: examples per second of the model by itself, all devices together.
        peak: TFLOP/s of matrix products, all devices together.
        hop_s: seconds of audio of an example.
        flop: multiplications and additions of an example; None where they were not counted.
    """
    metrics = {
        "model_only_examples_per_s": alone,
        "model_only_realtime_factor": alone * hop_s,
        "matmul_peak_tflops": peak,
    }
    if flop is None:
        return metrics
    tera = flop / 1e12
    metrics |= {"model_only_tflops": alone * tera, "model_only_share_of_peak": alone * tera / peak}
    if examples_per_s:
        metrics["achieved_tflops"] = examples_per_s * tera
    return metrics
