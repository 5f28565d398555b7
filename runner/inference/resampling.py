"""Resampling on the device: windows at their file's rate to windows at the model's, in float64 like the host's."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from runner.audio.framing import scaled
from runner.audio.preparation import Preparation
from runner.audio.resample import StreamResampler
from runner.core.samples import INT16_SCALE
from runner.devices.detection import DeviceType

if TYPE_CHECKING:
    from runner.audio.source_windows import SourceWindows, WindowFilter

log = logging.getLogger(__name__)

_TOLERANCE = 1e-6
"""Largest difference from the host's samples, of full scale: float32 rounds by 6e-8."""

_CHECKED_ROWS = 4


def resamples_on_device(requested: str, device: DeviceType) -> bool:
    """Return whether a device resamples; ``requested`` is ``device.resampling``.

    ``auto`` is CUDA alone: a CPU would do it on the cores that decode, and Metal has no float64.
    """
    if device is DeviceType.METAL:
        return False
    return requested == "device" or (requested == "auto" and device is DeviceType.GPU)


class DeviceResampler:
    """Resamples batches on one device, by a program for each kind of windows; from any thread.

    A program is compared with the host's resampler before its first batch.  Where it can't be compiled or differs, the
    host resamples windows of that kind, and ``faults`` says so.

    Args:
        device_name: TensorFlow's name of the device.
        use_xla: whether XLA compiles the programs.

    Attributes:
        faults: a message for each kind that the host resamples.
    """

    def __init__(self, device_name: str, *, use_xla: bool) -> None:
        self._device_name = device_name
        self._use_xla = use_xla
        self._programs: dict[tuple[Any, ...], Any] = {}
        self._lock = threading.Lock()
        self.faults: list[str] = []

    def resample(self, source: SourceWindows, on_device: Any) -> Any:
        """Resample a batch to float32 [count, window_samples], a tensor on the device or an array of the host.

        Args:
            source: the batch.
            on_device: its windows as a tensor on the device; all of them, or the first ``count``.
        """
        key = (source.filter.rate, source.filter.method, on_device.dtype.name, *on_device.shape[1:])
        with self._lock:
            if key not in self._programs:
                self._programs[key] = self._checked(source.filter, on_device)
            program = self._programs[key]
        if program is None:
            return source.filter.apply(source.windows[: source.count])
        return program(on_device)[: source.count]

    def _checked(self, window_filter: WindowFilter, like: Any) -> Any:
        """Return the program for batches like a tensor; None where it fails or differs from the host's resampler."""
        import tensorflow as tf

        windows, expected = _example(window_filter, like.dtype.as_numpy_dtype, like.shape[2])
        batch = np.zeros(like.shape, windows.dtype)
        rows = min(len(batch), len(windows))
        batch[:rows] = windows[:rows]
        try:
            with tf.device(self._device_name):
                program = self._compile(window_filter, like)
                resampled = program(tf.constant(batch)).numpy()[:rows]
            error = float(np.abs(resampled - expected[:rows]).max())
        except Exception as failure:
            fault = f"{type(failure).__name__}: {str(failure).splitlines()[0][:200]}"
        else:
            if error <= _TOLERANCE:
                return program
            fault = f"it is {error:.1g} off the host's"
        self.faults.append(f"{self._device_name[1:]} resamples {window_filter.rate} Hz on the host, slowly: {fault}")
        log.warning("%s", self.faults[-1])
        return None

    def _compile(self, window_filter: WindowFilter, like: Any) -> Any:
        import tensorflow as tf

        weights = tf.Variable(window_filter.weights, trainable=False)
        inputs, blocks = window_filter.inputs, window_filter.blocks
        scale = np.float32(INT16_SCALE if like.dtype == tf.int16 else 1)

        def resample(windows: Any) -> Any:
            samples = tf.cast(windows, tf.float32)
            if windows.shape[2] == 2:
                mono = (samples[:, :, 0] + samples[:, :, 1]) * (scale * np.float32(0.5))
            else:
                mono = samples[:, :, 0] * scale
            cut = tf.reshape(tf.cast(mono, tf.float64), [-1, blocks + 1, inputs])
            first, second = (tf.reshape(part, [-1, inputs]) for part in (cut[:, :-1], cut[:, 1:]))
            resampled = tf.matmul(first, weights[:inputs]) + tf.matmul(second, weights[inputs:])
            rows = tf.reshape(resampled, [-1, blocks * window_filter.outputs])
            return tf.cast(rows[:, : window_filter.window_samples], tf.float32)

        signature = tf.TensorSpec([None, *like.shape[1:]], like.dtype)
        return tf.function(resample, input_signature=[signature], jit_compile=self._use_xla or None, autograph=False)


def _example(window_filter: WindowFilter, dtype: Any, channels: int) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """Return windows of noise that begin a clip, [rows, frames, channels], and what the host makes of them."""
    shape = (_CHECKED_ROWS, window_filter.frames, channels)
    noise = np.random.default_rng(0).integers(-(1 << 15), 1 << 15, shape).astype(np.int16)
    noise[:, : window_filter.half_width] = 0
    windows = noise if dtype == np.int16 else scaled(noise)
    expected = []
    for window in windows[:, window_filter.half_width :]:
        resampler = StreamResampler(window_filter.rate, window_filter.target_rate, window_filter.method)
        mono = scaled(Preparation(window_filter.target_rate).apply(window))
        resampled = np.concatenate([resampler.push(mono), resampler.finish()])
        expected.append(resampled[: window_filter.window_samples])
    return windows, np.stack(expected)
