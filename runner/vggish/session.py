"""The session: the built model on its device, ready to embed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runner.devices import DeviceChoice, DeviceType
from runner.precision import PrecisionChoice
from runner.vggish import frontend, network, winograd
from runner.vggish.checkpoint import aligned
from runner.vggish.constants import EMBEDDING_SIZE, EXAMPLE_FRAMES, EXAMPLE_HOP_S, EXAMPLE_SAMPLES, MEL_BANDS

Array = NDArray[np.float32]


CPU_CHUNK = 32
CPU_CHUNK_COARSE = 64
"""Examples that a CPU convolves at a time, in float32 and in coarser precisions (measured: fewer waste time between
operations, more fall out of the caches)."""
FEWEST_ON_CPU = 2
"""For one row alone oneDNN and Eigen take other kernels, whose sums differ by 3e-6; from two on the bits are the same
at every batch size."""


def _tensor(rows: Array) -> Any:
    """The rows as a tensor, without a copy where their memory is aligned (those of the engine's batches are)."""
    import tensorflow as tf

    return tf.experimental.dlpack.from_dlpack(aligned(rows).__dlpack__())


def _cpu_log_mel(dtype: Any) -> Callable[[Any], Any]:
    """Exact for float32; for coarser precisions the fast one, whose error is far below theirs."""
    import tensorflow as tf

    if dtype != tf.float32:
        return frontend.folded_log_mel
    return lambda windows: frontend.log_mel(windows, "float32")


@dataclass(frozen=True)
class SessionMetadata:
    """What a session is: device, precision, memory policy and weights, as requested and as in effect."""

    device: Mapping[str, Any]
    precision: Mapping[str, Any]
    memory: Mapping[str, Any]
    weights: Mapping[str, Any]
    model: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)


class VGGishSession:
    """Embeds waveform on one device.

    The program is one ``tf.function`` from windows to embeddings over weights held as variables.  Embeddings do not
    depend on the batch they are computed in: short input is filled up with silence to ``fewest`` rows, whose results
    are dropped (XLA compiles once per shape, so there it is the whole batch).

    Args:
        weights: float32 arrays by checkpoint name; emptied, so that they are not in memory twice.
        device: the device chosen; TensorFlow must already be told which devices it may see.
        precision: number format of the network.
        batch_size: largest batch that one call of the program takes; longer input is split.
        metadata: what to tell about the session.
        conv: algorithm of the deep convolutions, ``direct`` or (on a CPU in float32) ``winograd``.
    """

    def __init__(
        self,
        weights: dict[str, Array],
        device: DeviceChoice,
        precision: PrecisionChoice,
        batch_size: int,
        metadata: SessionMetadata,
        conv: str = "direct",
    ) -> None:
        import tensorflow as tf

        self.metadata = metadata
        self.batch_size = batch_size
        self._device_name = "/CPU:0" if device.effective is DeviceType.CPU else "/GPU:0"
        self._compiled_by_xla = device.effective is DeviceType.GPU
        self._fewest = batch_size if self._compiled_by_xla else FEWEST_ON_CPU
        self._lock = threading.Lock()
        tf.config.experimental.enable_tensor_float_32_execution(precision.effective == "tf32")
        dtype = tf.dtypes.as_dtype(precision.compute_dtype)
        if conv == "winograd":
            winograd.transform_in_place(weights)
        with self._placed():
            self._weights = network.variables(weights, dtype)
        on_cpu = device.effective is DeviceType.CPU
        log_mel = _cpu_log_mel(dtype) if on_cpu else frontend.log_mel
        chunk = CPU_CHUNK if dtype == tf.float32 else CPU_CHUNK_COARSE
        deep_layers = winograd.deep_layers if conv == "winograd" else network.deep_layers

        def features(examples: Any) -> Any:
            return deep_layers(self._weights, network.first_layers(self._weights, examples, dtype))

        def embed(rows: Any, to_features: Callable[[Any], Any]) -> Any:
            # On a CPU the convolutions go by small chunks, which stay in its caches; the dense layers, which read
            # 200 MB of weights, go by the whole batch.
            if on_cpu:
                found = network.in_chunks(to_features, rows, chunk, network.FEATURES, dtype)
            else:
                found = to_features(rows)
            return network.fully_connected(self._weights, found)

        def from_windows(windows: Any) -> Any:
            return embed(windows, lambda chunk: features(log_mel(chunk)))

        def from_examples(examples: Any) -> Any:
            return embed(examples, features)

        self._from_windows = self._program(from_windows, [None, EXAMPLE_SAMPLES])
        self._from_examples = self._program(from_examples, [None, EXAMPLE_FRAMES, MEL_BANDS])

    @property
    def fewest(self) -> int:
        """Rows that every call of the program has at least: shorter input is filled up with silence."""
        return self._fewest

    @property
    def weights(self) -> Mapping[str, Any]:
        """The network's variables by checkpoint name, in the session's precision."""
        return self._weights

    def warm_up(self) -> float:
        """Trace and compile the program, run it once, and return the seconds that took."""
        start = time.perf_counter()
        self.embed_windows(np.zeros((1, EXAMPLE_SAMPLES), np.float32))
        return time.perf_counter() - start

    def embed_windows(self, windows: Array) -> Array:
        """Embed windows of waveform, float32 [n, 15600] mono 16 kHz in -1..1, to float32 [n, 128] on the host."""
        return self._run(self._from_windows, windows, (EXAMPLE_SAMPLES,))

    def embed_examples(self, examples: Array) -> Array:
        """Embed log-mel examples, float32 [n, 96, 64], to float32 [n, 128] on the host."""
        return self._run(self._from_examples, examples, (EXAMPLE_FRAMES, MEL_BANDS))

    def embed_waveform(self, waveform: Array, sample_rate: int, *, hop_s: float = EXAMPLE_HOP_S) -> Array:
        """Embed one clip's waveform.

        Args:
            waveform: [samples] or [samples, channels]; int16, or floats in -1..1.
            sample_rate: Hz.
            hop_s: seconds between examples.

        Returns:
            float32 [examples, 128]; a clip too short for one example is zero-padded to one.
        """
        from runner.framing import WindowCutter
        from runner.resample import StreamResampler

        mono = np.asarray(waveform)
        mono = mono.astype(np.float32) / 32768.0 if mono.dtype == np.int16 else mono.astype(np.float32)
        if mono.ndim == 2:
            mono = mono.mean(axis=1)
        if mono.ndim != 1:
            raise ValueError(f"waveform has shape {np.shape(waveform)}: give [samples] or [samples, channels]")
        resampler = StreamResampler(sample_rate)
        cutter = WindowCutter(hop_s)
        resampled = np.concatenate([resampler.push(mono), resampler.finish()])
        windows = cutter.push(resampled)
        last = cutter.finish()
        return self.embed_windows(windows) if not len(last) else self.embed_windows(np.concatenate([windows, last]))

    def embed_file(self, path: str | Path, *, hop_s: float = EXAMPLE_HOP_S) -> Array:
        """Embed one audio file to float32 [examples, 128]; raises ``ClipError`` where it can't be decoded."""
        from runner.audio import read_clip
        from runner.framing import WindowCutter, cut

        with read_clip(str(path)) as clip:
            found = [self.embed_windows(windows) for windows in cut(iter(clip), WindowCutter(hop_s)) if len(windows)]
        return np.concatenate(found) if found else np.empty((0, EMBEDDING_SIZE), np.float32)

    def _program(self, function: Any, shape: list[int | None]) -> Any:
        import tensorflow as tf

        signature = [tf.TensorSpec(shape, tf.float32)]
        return tf.function(
            function, input_signature=signature, jit_compile=self._compiled_by_xla or None, autograph=False
        )

    def _run(self, program: Any, rows: Array, row_shape: tuple[int, ...]) -> Array:
        if rows.shape[1:] != row_shape:
            raise ValueError(f"rows have shape {rows.shape[1:]}, not {row_shape}")
        if len(rows) <= self.batch_size:
            return self._run_batch(program, rows)
        parts = [
            self._run_batch(program, rows[start : start + self.batch_size])
            for start in range(0, len(rows), self.batch_size)
        ]
        return np.concatenate(parts)

    def _run_batch(self, program: Any, rows: Array) -> Array:

        count = len(rows)
        if count == 0:
            return np.empty((0, EMBEDDING_SIZE), np.float32)
        if count < self._fewest:
            rows = np.concatenate([rows, np.zeros((self._fewest - count, *rows.shape[1:]), np.float32)])
        with self._lock, self._placed():
            return np.asarray(program(_tensor(rows)).numpy()[:count])

    def _placed(self) -> AbstractContextManager[Any]:
        import tensorflow as tf

        context: AbstractContextManager[Any] = tf.device(self._device_name) if self._device_name else nullcontext()
        return context
