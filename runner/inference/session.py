"""The session: the built model on its device, ready to embed."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from runner.audio.samples import as_mono, as_rate, as_samples
from runner.core.errors import ClipError
from runner.devices.cuda import CudaError, StagingBuffer
from runner.devices.detection import DeviceType
from runner.inference.memory import IN_FLIGHT_ON_CUDA
from runner.vggish import frontend, network, winograd
from runner.vggish.arrays import aligned
from runner.vggish.constants import (
    EMBEDDING_SIZE,
    EXAMPLE_FRAMES,
    EXAMPLE_HOP_S,
    EXAMPLE_SAMPLES,
    INT16_SCALE,
    MEL_BANDS,
    SAMPLE_RATE,
)
from runner.vggish.framing import scaled
from runner.vggish.postprocess import pca_in_effect

if TYPE_CHECKING:
    from runner.devices.selection import DeviceChoice
    from runner.inference.precision import PrecisionChoice
    from runner.vggish.framing import Windows
    from runner.vggish.postprocess import Postprocessor

log = logging.getLogger(__name__)

Array = NDArray[np.float32]

CPU_CHUNK = 32

CPU_CHUNK_COARSE = 64
"""Examples that a CPU convolves at a time, in float32 and in coarser precisions (measured: fewer waste time between
operations, more fall out of the caches)."""

MIN_ROWS_CPU = 2

FEWEST_DENSE_ON_CPU = 128
"""For one row alone oneDNN and Eigen take other convolution kernels, whose sums differ by 3e-6, and for fewer than 128
other products in the dense layers (3e-7): filled up to these, the bits are the same at every batch size."""


def _tensor(rows: NDArray[Any]) -> Any:
    """The rows as a tensor, without a copy where their memory is aligned (that of slots is)."""
    import tensorflow as tf

    return tf.experimental.dlpack.from_dlpack(aligned(rows, rows.dtype).__dlpack__())


def _log_mel(device: DeviceType, precision: PrecisionChoice) -> Callable[[Any], Any]:
    """Exact for float32; for coarser precisions the fastest one whose error is far below theirs."""
    if precision.effective == "tf32":  # the product with the mel filters must not be a TF32 one
        return lambda windows: frontend.log_mel(windows, "float64", "float32")
    if precision.effective == "float32":
        return lambda windows: frontend.log_mel(windows, "float32")
    if device is DeviceType.GPU:
        return lambda windows: frontend.log_mel(windows, "float32", "float32")
    return frontend.folded_log_mel


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

    The program is one ``tf.function`` from windows to embeddings over weights held as variables: scaling, framing,
    log-mel and network; on CUDA, XLA compiles it.  A row that holds NaN, infinity or numbers of another scale has an
    embedding of NaN: nothing makes a number of it.  Embeddings do not depend on the batch they are computed in: short
    input is filled up with silence to ``min_rows`` rows, whose results are dropped (XLA compiles once per shape, so
    there it is the whole batch).

    Where the device runs out of memory, the batch is halved, once and for all, and the rows are embedded all the same;
    ``oom_backoffs`` tells of it.

    Args:
        weights: float32 arrays by checkpoint name; emptied, so that they are not in memory twice.
        device: the device chosen; TensorFlow must already be told which devices it may see.
        precision: number format of the network.
        batch_size: largest batch that one call of the program takes; longer input is split.
        metadata: what to tell about the session.
        conv: algorithm of the deep convolutions, ``direct`` or (on a CPU in float32) ``winograd``.
        ordinal: which of the GPUs that TensorFlow may see.
    """

    def __init__(
        self,
        weights: dict[str, Array],
        device: DeviceChoice,
        precision: PrecisionChoice,
        batch_size: int,
        metadata: SessionMetadata,
        conv: str = "direct",
        ordinal: int = 0,
    ) -> None:
        import tensorflow as tf

        self.metadata = metadata
        self.oom_backoffs: list[str] = []
        """What was done about memory that ran out."""
        on_cpu = device.effective is DeviceType.CPU
        self._on_cuda = device.effective is DeviceType.GPU
        self.device_name = "/CPU:0" if on_cpu else f"/GPU:{ordinal}"
        self._compiled_by_xla = self._on_cuda
        self.compiler = {"effective": "xla", "reason": "one program on the GPU"} if self._on_cuda else _NO_XLA
        """What makes kernels of the program, and why."""
        self.copies = {"effective": "own_stream", "reason": "copy and compute overlap"} if self._on_cuda else _NO_COPIES
        """How batches get to the device, and why."""
        self._own_stream = self._on_cuda
        self._thread_local = threading.local()
        self._lock = threading.Lock()
        self._rows_at_once = batch_size
        tf.config.experimental.enable_tensor_float_32_execution(precision.effective == "tf32")
        dtype = tf.dtypes.as_dtype(precision.compute_dtype)
        if conv == "winograd":
            winograd.transform_in_place(weights)
        with self._placed():
            self._weights = network.variables(weights, dtype, fused=self._on_cuda)
        log_mel = _log_mel(device.effective, precision)
        chunk = CPU_CHUNK if dtype == tf.float32 else CPU_CHUNK_COARSE
        deep_layers = winograd.deep_layers if conv == "winograd" else network.deep_layers

        def features(examples: Any) -> Any:
            if self._compiled_by_xla:
                return network.fused_convolutions(self._weights, examples, dtype)
            return deep_layers(self._weights, network.first_layers(self._weights, examples, dtype))

        def embed(rows: Any, to_features: Callable[[Any], Any]) -> Any:
            # On a CPU the convolutions go by small chunks, which stay in its caches; the dense layers, which read
            # 200 MB of weights, go by the whole batch.
            if on_cpu:
                found = network.in_chunks(to_features, rows, chunk, network.FEATURES, dtype)
                count = tf.shape(found)[0]
                enough = tf.pad(found, [[0, tf.maximum(FEWEST_DENSE_ON_CPU - count, 0)], [0, 0]])
                return network.only_finite(network.fully_connected(self._weights, enough)[:count], found)
            found = to_features(rows)
            return network.only_finite(network.fully_connected(self._weights, found), found)

        def waveform(windows: Any) -> Any:
            return tf.cast(windows, tf.float32) * INT16_SCALE if windows.dtype == tf.int16 else windows

        def of_examples(examples: Any) -> Any:
            return network.marked(features(examples), frontend.are_log_mel(examples))

        self._log_mel: Callable[[Any], Any] = lambda windows: log_mel(waveform(windows))

        def of_windows(windows: Any) -> Any:
            found = of_examples(self._log_mel(windows))
            return found if windows.dtype == tf.int16 else network.marked(found, frontend.are_samples(windows))

        self._functions: dict[str, tuple[Callable[[Any], Any], Any]] = {
            name: (
                lambda windows: embed(windows, of_windows),
                tf.TensorSpec([None, EXAMPLE_SAMPLES], kind),
            )
            for name, kind in (("float32", tf.float32), ("int16", tf.int16))
        }
        self._functions["examples"] = (
            lambda examples: embed(examples, of_examples),
            tf.TensorSpec([None, EXAMPLE_FRAMES, MEL_BANDS], tf.float32),
        )
        self._programs: dict[str, Any] = {}

    @property
    def fills_batches(self) -> bool:
        """Whether every call of the program is as long as a full batch: shorter input is filled up to it."""
        return self._on_cuda

    @property
    def min_rows(self) -> int:
        """Rows that every call of the program has at least: shorter input is filled up with silence."""
        return self._rows_at_once if self._on_cuda else MIN_ROWS_CPU

    @property
    def in_flight(self) -> int:
        """Calls of ``embed_windows`` that keep the device busy, from as many threads."""
        return IN_FLIGHT_ON_CUDA if self._on_cuda else 1

    @property
    def effective_batch_size(self) -> int:
        """The batch size in effect: what was asked for, less where memory ran out."""
        return self._rows_at_once

    @property
    def weights(self) -> Mapping[str, Any]:
        """The network's variables by checkpoint name, in the session's precision."""
        return self._weights

    def memory_peak_mib(self) -> float | None:
        """What tensors took on the device at most so far; None where TensorFlow does not count it."""
        import tensorflow as tf

        if not self._on_cuda:
            return None
        return float(tf.config.experimental.get_memory_info(self.device_name[1:])["peak"]) / (1 << 20)

    def resize(self, batch_size: int) -> None:
        """Take batches of another size from now on."""
        self._rows_at_once = batch_size

    def warm_up(self, dtype: str = "float32") -> float:
        """Trace and compile the program for windows of ``dtype``, run it once, and return the seconds that took.

        Where XLA can't compile it, TensorFlow's own kernels take over, and ``compiler`` says so.
        """
        start = time.perf_counter()
        silence = np.zeros((1, EXAMPLE_SAMPLES), dtype)
        try:
            self.embed_windows(silence)
        except Exception as error:
            if not self._compiled_by_xla or _is_out_of_memory(error):
                raise
            self._compiled_by_xla = False
            self._programs.clear()
            reason = f"XLA failed: {type(error).__name__}: {str(error).splitlines()[0][:200]}"
            self.compiler = {"effective": "graph", "reason": reason}
            log.warning("%s; TensorFlow's own kernels are used, which are slower", reason)
            self.embed_windows(silence)
        self._thread_local = threading.local()  # this thread's places on the device are for the replicas' threads
        return time.perf_counter() - start

    def embed_windows(self, windows: Windows, copied: Callable[[], None] | None = None) -> Array:
        """Embed windows of waveform to float32 [n, 128] on the host.

        Args:
            windows: mono 16 kHz, [n, 15600]: float32 in -1..1, or int16 samples; of other types, those that
                ``samples.as_samples`` scales.
            copied: called once the windows are on a device of its own memory, with the results still to come.

        Returns:
            A row of NaN for a window that holds NaN, infinity or samples beyond ``LARGEST_SAMPLE``.

        Raises:
            ValueError: another type or shape.
        """
        if not isinstance(windows, np.ndarray) or windows.dtype not in (np.float32, np.int16):
            windows = as_samples(windows, "windows")
        return self._run(str(windows.dtype), windows, copied)

    def embed_examples(self, examples: Array) -> Array:
        """Embed log-mel examples, floats [n, 96, 64], to float32 [n, 128] on the host.

        Returns:
            A row of NaN for an example that holds NaN, infinity or numbers beyond ``LARGEST_LOG_MEL``.

        Raises:
            ValueError: another type or shape.
        """
        examples = np.asarray(examples)
        if examples.dtype.kind != "f":
            raise ValueError(f"examples have type {examples.dtype}: give log-mel as float32")
        with np.errstate(over="ignore"):
            return self._run("examples", examples.astype(np.float32, copy=False))

    def log_mel(self, windows: Windows) -> Array:
        """The log-mel that windows [n, 15600] are embedded by, computed alone: float32 [n, 96, 64] on the host."""
        with self._placed():
            return np.asarray(self._log_mel(self.on_device(windows)).numpy())

    def embed_waveform(self, waveform: NDArray[Any], sample_rate: int, *, hop_s: float = EXAMPLE_HOP_S) -> Array:
        """Embed one clip's waveform.

        Args:
            waveform: [samples] or [samples, channels]: floats in -1..1, or int16, int32 or uint8 as a WAV file has
                them (``scipy.io.wavfile`` gives these).
            sample_rate: Hz.
            hop_s: seconds between examples.

        Returns:
            float32 [examples, 128]; a clip too short for one example is zero-padded to one.

        Raises:
            ValueError: ``waveform`` is of another type or shape, empty, NaN, infinite or of another scale; the sample
                rate or the hop is none.
            ClipError: ``too_short``, if no sample at 16 kHz is left of it; ``non_finite_embedding``.
        """
        from runner.audio.resample import StreamResampler
        from runner.vggish.framing import WindowCutter

        mono, rate, cutter = as_mono(waveform), as_rate(sample_rate), WindowCutter(hop_s)
        if rate != SAMPLE_RATE:
            resampler = StreamResampler(rate)
            mono = np.concatenate([resampler.push(scaled(mono)), resampler.finish()])
        windows = cutter.push(mono)
        return self._of_clip([windows if len(windows) else cutter.finish()])

    def embed_file(self, path: str | Path, *, hop_s: float = EXAMPLE_HOP_S) -> Array:
        """Embed one audio file to float32 [examples, 128]; raises ``ClipError`` where it can't be decoded."""
        from runner.audio.reader import read_clip
        from runner.vggish.framing import WindowCutter, cut

        cutter = WindowCutter(hop_s)
        with read_clip(str(path)) as clip:
            return self._of_clip(cut(iter(clip), cutter))

    def _of_clip(self, parts: Iterable[Windows]) -> Array:
        """Embed the windows of one clip, which come in parts."""
        found = [self.embed_windows(windows) for windows in parts if len(windows)]
        if not found:
            raise ClipError("too_short", "no sample at 16 kHz is left of it")
        embeddings = found[0] if len(found) == 1 else np.concatenate(found)
        if not np.isfinite(embeddings).all():
            raise ClipError("non_finite_embedding", "the network gave NaN or infinity for it: load it in float32")
        return embeddings

    def on_device(self, windows: Windows) -> Any:
        """A batch of windows copied to the device, for ``run_on_device``."""
        import tensorflow as tf

        with self._placed():
            return tf.identity(_tensor(windows))

    def run_on_device(self, windows: Any) -> Any:
        """Embed what ``on_device`` gave, a whole batch; the result stays there (on a GPU this does not wait for it)."""
        with self._placed():
            return self._program("int16" if windows.dtype.name == "int16" else "float32")(windows)

    def _program(self, name: str) -> Any:
        import tensorflow as tf

        with self._lock:
            if name not in self._programs:
                function, signature = self._functions[name]
                self._programs[name] = tf.function(
                    function,
                    input_signature=[signature],
                    jit_compile=self._compiled_by_xla or None,
                    autograph=False,
                )
            return self._programs[name]

    def _run(self, name: str, rows: NDArray[Any], copied: Callable[[], None] | None = None) -> Array:
        expected = tuple(self._functions[name][1].shape[1:])
        if rows.shape[1:] != expected:
            raise ValueError(f"rows have shape {rows.shape}: give [n, {', '.join(map(str, expected))}]")
        parts = []
        done = 0
        while done < len(rows):
            limit = self._rows_at_once
            batch = rows[done : done + limit]
            try:
                parts.append(self._run_batch(self._program(name), batch, copied))
            except Exception as error:
                if limit == 1 or not _is_out_of_memory(error):
                    raise
                self._back_off(limit)
                continue
            done += len(batch)
        if len(parts) == 1:
            return parts[0]
        return np.concatenate(parts) if parts else np.empty((0, EMBEDDING_SIZE), np.float32)

    def _run_batch(self, program: Any, rows: NDArray[Any], copied: Callable[[], None] | None) -> Array:
        count = len(rows)
        if count < self.min_rows:
            rows = np.concatenate([rows, np.zeros((self.min_rows - count, *rows.shape[1:]), rows.dtype)])
        if not self._on_cuda:
            with self._lock, self._placed():
                return np.asarray(program(_tensor(rows)).numpy()[:count])
        on_device = self._copy_to_device(rows) if self._own_stream and rows.ndim == 2 else self.on_device(rows)
        if copied is not None:
            copied()
        with self._placed():
            return np.asarray(program(on_device).numpy()[:count])

    def _copy_to_device(self, windows: Windows) -> Any:
        """The windows on the GPU, in this thread's place for batches of their size and type."""
        import tensorflow as tf

        places: dict[Any, StagingBuffer] = self._thread_local.__dict__.setdefault("places", {})
        place = places.get(windows.dtype)
        if place is None or place.tensor.shape[0] != len(windows):
            places.pop(windows.dtype, None)
            with self._placed():
                tensor = tf.zeros(windows.shape, windows.dtype)
                tensor[:1, :1].numpy()  # waits until they are written
            try:
                place = places[windows.dtype] = StagingBuffer(tensor)
            except CudaError as error:
                self._own_stream = False
                self.copies = {"effective": "tensorflow", "reason": str(error)}
                log.warning("%s: batches are copied by TensorFlow, between computations", error)
                return self.on_device(windows)
        return place.fill(windows)

    def _back_off(self, limit: int) -> None:
        """Take half the rows at once, unless another thread has seen to it."""
        with self._lock:
            if self._rows_at_once == limit:
                self._rows_at_once = limit // 2
                self.oom_backoffs.append(f"{self.device_name} ran out of memory: batch_size halved from {limit}")
                log.warning("%s", self.oom_backoffs[-1])

    def _placed(self) -> Any:
        import tensorflow as tf

        return tf.device(self.device_name)


_SIGNS_OF_FULL_MEMORY = (
    "out of memory",
    "resource_exhausted",
    "resource exhausted",
    "alloc_failed",  # cuBLAS's and cuDNN's own
    "autotuning failed",  # XLA: no algorithm could be tried (seen on a GPU with 4 GiB to give)
    "failed to determine best cudnn convolution algorithm",
    "no algorithm worked",
)

_NO_COPIES = {"effective": "none", "reason": "a CPU computes where the batches are; TensorFlow sees to Metal's copies"}

_NO_XLA = {"effective": "graph", "reason": "XLA is slower than TensorFlow's own kernels on a CPU, and absent on Metal"}


def _is_out_of_memory(error: Exception) -> bool:
    import tensorflow as tf

    if isinstance(error, tf.errors.ResourceExhaustedError):
        return True
    text = str(error).lower()
    return isinstance(error, tf.errors.OpError) and any(sign in text for sign in _SIGNS_OF_FULL_MEMORY)


def identity_of(session: VGGishSession, postprocess: Postprocessor | None) -> dict[str, str]:
    """Weights, precision and, where embeddings are post-processed, PCA parameters in effect."""
    metadata = session.metadata
    return {
        "weights.checksum": str(metadata.weights["checksum"]),
        "precision": str(metadata.precision["effective"]),
        **pca_in_effect(postprocess),
    }
