"""The session: a program on its device, ready to embed batches, waveforms and files."""

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

from runner.audio.framing import Framing, WindowCutter, cut, scaled
from runner.audio.samples import as_mono, as_rate, as_samples
from runner.audio.source_windows import SourceWindows
from runner.core.errors import ClipError
from runner.devices.detection import DeviceType
from runner.inference.device_copy import DeviceCopy, as_tensor
from runner.inference.gpu_memory import GpuMemory, is_out_of_memory
from runner.inference.memory import IN_FLIGHT_ON_CUDA
from runner.inference.resampling import DeviceResampler

if TYPE_CHECKING:
    from runner.audio.framing import Windows
    from runner.contract.result import Decision, DeviceReport, Effect, WeightsReport
    from runner.core.model_spec import ModelSpec
    from runner.models.program import Program

log = logging.getLogger(__name__)

Array = NDArray[np.float32]

MIN_ROWS_CPU = 2
"""For one row alone oneDNN and Eigen take other convolution kernels, whose sums differ by 3e-6: padded to two, the bits
are the same at every batch size."""


@dataclass(frozen=True)
class SessionMetadata:
    """Device, precision, weights and algorithm of a session, as requested and as in effect.

    ``gpu_memory`` are the allocator's settings in effect, ``versions`` those of the packages.
    """

    device: DeviceReport
    precision: Decision
    weights: WeightsReport
    conv: Decision | None = None
    gpu_memory: GpuMemory = field(default_factory=GpuMemory)
    versions: Mapping[str, str] = field(default_factory=dict)


class EmbeddingSession:
    """Embeds waveform on one device.

    Embeddings do not depend on the batch they are computed in: short input is padded with silence to ``min_rows`` rows,
    whose results are dropped (XLA compiles once for each shape, so there it is the whole batch).

    Where the device runs out of memory, the batch size is halved for good, and the rows are embedded all the same.

    Args:
        program: the computation, on its device.
        batch_size: largest batch that one call of the program takes; longer input is split.
        metadata: description of the session.

    Attributes:
        program: the computation.
        metadata: description of the session.
        oom_backoffs: a message for each time that memory ran out.
    """

    def __init__(self, program: Program, batch_size: int, metadata: SessionMetadata) -> None:
        self.program = program
        self.metadata = metadata
        self.oom_backoffs: list[str] = []
        self._on_cuda = program.device_type is DeviceType.GPU
        self._copy = DeviceCopy(program.device_name, own_stream=self._on_cuda)
        self._resampler = DeviceResampler(program.device_name, use_xla=program.is_compiled_by_xla)
        self._batch_size = batch_size
        self._lock = threading.Lock()

    @property
    def spec(self) -> ModelSpec:
        """The model's rate, windows and outputs."""
        return self.program.spec

    @property
    def device_name(self) -> str:
        """TensorFlow's name of the device."""
        return self.program.device_name

    @property
    def weights(self) -> Mapping[str, Any]:
        """The network's variables by checkpoint name, in the session's precision."""
        return self.program.weights

    @property
    def compiler(self) -> Effect:
        """The maker of the program's kernels (xla or graph), and why."""
        return self.program.compiler

    @property
    def copies(self) -> Effect:
        """How batches get to the device (own_stream, tensorflow or none), and why."""
        return self._copy.method

    @property
    def resampling_faults(self) -> list[str]:
        """A message for each kind of windows that the device could not resample."""
        return self._resampler.faults

    @property
    def fills_batches(self) -> bool:
        """Whether every call of the program takes a full batch: shorter input is padded to it."""
        return self._on_cuda

    @property
    def min_rows(self) -> int:
        """Least rows of a call of the program: shorter input is padded with silence."""
        return self._batch_size if self._on_cuda else MIN_ROWS_CPU

    @property
    def in_flight(self) -> int:
        """Calls of ``embed_windows`` that keep the device busy, from as many threads."""
        return IN_FLIGHT_ON_CUDA if self._on_cuda else 1

    @property
    def effective_batch_size(self) -> int:
        """The batch size in effect: the requested one, less where memory ran out."""
        return self._batch_size

    def set_batch_size(self, batch_size: int) -> None:
        """Take batches of another size from now on."""
        self._batch_size = batch_size

    def memory_peak_mib(self) -> float | None:
        """Return the most memory that tensors took on the device so far; None where TensorFlow does not count it."""
        import tensorflow as tf

        if not self._on_cuda:
            return None
        return float(tf.config.experimental.get_memory_info(self.device_name[1:])["peak"]) / (1 << 20)

    def warm_up(self, dtype: str = "float32") -> float:
        """Trace and compile the program for windows of ``dtype``, run it once, and return the seconds that took.

        Where XLA can't compile it, TensorFlow's own kernels take over, and ``compiler`` says so.
        """
        start = time.perf_counter()
        silence = np.zeros((1, self.spec.window_samples), dtype)
        try:
            self.embed_windows(silence)
        except Exception as error:
            if not self.program.is_compiled_by_xla or is_out_of_memory(error):
                raise
            reason = f"XLA failed: {type(error).__name__}: {str(error).splitlines()[0][:200]}"
            self.program.leave_xla(reason)
            log.warning("%s; TensorFlow's own kernels are used, which are slower", reason)
            self.embed_windows(silence)
        self._copy.free_buffers()  # the replicas' threads have their own
        return time.perf_counter() - start

    def embed_windows(self, windows: Windows | SourceWindows, copied: Callable[[], None] | None = None) -> Array:
        """Embed windows of waveform to float32 [n, width] on the host: the outputs side by side.

        Args:
            windows: mono, [n, samples] at the model's rate: float32 in -1..1, or int16; of other types, those that
                ``samples.as_samples`` scales; or windows at another rate.
            copied: called once the windows are on a device of its own memory, with the results still to come.

        Returns:
            A row of NaN for a window that holds NaN, infinity or samples beyond ``LARGEST_SAMPLE``.

        Raises:
            ValueError: another type or shape.
        """
        if isinstance(windows, SourceWindows):
            return self._embed("float32", self.resample(windows, copied))
        if not isinstance(windows, np.ndarray) or windows.dtype not in (np.float32, np.int16):
            windows = as_samples(windows, "windows")
        return self._embed(str(windows.dtype), windows, copied)

    def resample(self, source: SourceWindows, copied: Callable[[], None] | None = None) -> Any:
        """Resample windows to float32 [n, samples] at the model's rate: a tensor on the device, or an array.

        Args:
            source: windows at another rate.
            copied: as ``embed_windows``'.
        """
        if self._on_cuda:
            on_device = self._copy.staged(source.windows)
            if copied is not None:
                copied()
        else:
            on_device = as_tensor(source.windows[: source.count])
        with self._placed():
            return self._resampler.resample(source, on_device)

    def embed_examples(self, examples: Array) -> Array:
        """Embed log-mel examples, floats [n, 96, 64], to float32 [n, width] on the host; VGGish alone takes them.

        Returns:
            A row of NaN for an example that holds NaN, infinity or numbers beyond ``LARGEST_LOG_MEL``.

        Raises:
            ValueError: another type or shape.
        """
        examples = np.asarray(examples)
        if examples.dtype.kind != "f":
            raise ValueError(f"examples have type {examples.dtype}: give log-mel as float32")
        with np.errstate(over="ignore"):
            return self._embed("examples", examples.astype(np.float32, copy=False))

    def log_mel(self, windows: Windows) -> Array | None:
        """Compute the log-mel alone that windows are embedded by, float32 [n, frames, bands] on the host; None where
        the program does not give it."""
        with self._placed():
            log_mel = self.program.log_mel(self.on_device(windows))
            return None if log_mel is None else np.asarray(log_mel.numpy())

    def embed_waveform(self, waveform: NDArray[Any], sample_rate: int, *, hop_s: float | None = None) -> Array:
        """Embed one clip's waveform.

        Args:
            waveform: [samples] or [samples, channels]: floats in -1..1, or int16, int32 or uint8 as a WAV file has
                them (``scipy.io.wavfile`` gives these).
            sample_rate: Hz.
            hop_s: seconds between examples; the model's own hop when None.

        Returns:
            float32 [examples, width]; a clip too short for one example is zero-padded to one.

        Raises:
            ValueError: ``waveform`` is of another type or shape, empty, NaN, infinite or of another scale; the sample
                rate or the hop is none.
            ClipError: ``too_short``, if no sample at the model's rate is left of it; ``non_finite_embedding``.
        """
        from runner.audio.resample import StreamResampler

        mono, rate, cutter = as_mono(waveform), as_rate(sample_rate), WindowCutter(Framing.of(self.spec, hop_s))
        if rate != self.spec.sample_rate:
            resampler = StreamResampler(rate, self.spec.sample_rate)
            mono = np.concatenate([resampler.push(scaled(mono)), resampler.finish()])
        elif not self.spec.takes_int16:
            mono = scaled(mono)
        windows = cutter.push(mono)
        return self._embed_clip([windows if len(windows) else cutter.finish()])

    def embed_file(self, path: str | Path, *, hop_s: float | None = None) -> Array:
        """Embed one audio file to float32 [examples, width]; raises ``ClipError`` where it can't be decoded."""
        from runner.audio.preparation import Preparation
        from runner.audio.reader import read_clip

        cutter = WindowCutter(Framing.of(self.spec, hop_s))
        preparation = Preparation(self.spec.sample_rate, takes_int16=self.spec.takes_int16)
        with read_clip(str(path), preparation=preparation) as clip:
            return self._embed_clip(cut(iter(clip), cutter))

    def _embed_clip(self, blocks: Iterable[Windows]) -> Array:
        """Embed the windows of one clip, which come in blocks."""
        chunks = [self.embed_windows(windows) for windows in blocks if len(windows)]
        if not chunks:
            rate_khz = self.spec.sample_rate / 1000
            raise ClipError("too_short", f"no sample at {rate_khz:g} kHz is left of it")
        embeddings = chunks[0] if len(chunks) == 1 else np.concatenate(chunks)
        if not np.isfinite(embeddings).all():
            raise ClipError("non_finite_embedding", "the network gave NaN or infinity for it: load it in float32")
        return embeddings

    def on_device(self, windows: Windows) -> Any:
        """Copy a batch of windows to the device, for ``run_on_device``."""
        return self._copy.by_tensorflow(windows)

    def run_on_device(self, windows: Any) -> Any:
        """Embed a whole batch from ``on_device``; the result stays there (on a GPU this does not wait for it)."""
        with self._placed():
            return self.program.function("int16" if windows.dtype.name == "int16" else "float32")(windows)

    def _embed(self, kind: str, rows: Any, copied: Callable[[], None] | None = None) -> Array:
        """Embed rows of one kind of the program's inputs, an array or a tensor on the device, in batches; back off
        where memory runs out."""
        expected = self.program.row_shapes[kind]
        if rows.shape[1:] != expected:
            raise ValueError(f"rows have shape {rows.shape}: give [n, {', '.join(map(str, expected))}]")
        chunks = []
        done = 0
        while done < len(rows):
            batch_size = self._batch_size
            batch = rows[done : done + batch_size]
            try:
                chunks.append(self._embed_batch(self.program.function(kind), batch, copied))
            except Exception as error:
                if batch_size == 1 or not is_out_of_memory(error):
                    raise
                self._back_off(batch_size)
                continue
            done += len(batch)
        if len(chunks) == 1:
            return chunks[0]
        return np.concatenate(chunks) if chunks else np.empty((0, self.spec.width), np.float32)

    def _embed_batch(self, function: Any, rows: Any, copied: Callable[[], None] | None) -> Array:
        count = len(rows)
        rows = self._padded(rows)
        if not self._on_cuda:
            with self._lock, self._placed():
                return np.asarray(function(as_tensor(rows) if isinstance(rows, np.ndarray) else rows).numpy()[:count])
        if not isinstance(rows, np.ndarray):
            on_device = rows
        else:
            on_device = self._copy.staged(rows) if rows.ndim == 2 else self.on_device(rows)
            if copied is not None:
                copied()
        with self._placed():
            return np.asarray(function(on_device).numpy()[:count])

    def _padded(self, rows: Any) -> Any:
        """Pad rows, an array or a tensor on the device, with silence to ``min_rows``."""
        missing = self.min_rows - len(rows)
        if missing <= 0:
            return rows
        if isinstance(rows, np.ndarray):
            return np.concatenate([rows, np.zeros((missing, *rows.shape[1:]), rows.dtype)])
        import tensorflow as tf

        with self._placed():
            return tf.pad(rows, [[0, missing], *[[0, 0]] * (len(rows.shape) - 1)])

    def _back_off(self, batch_size: int) -> None:
        """Halve the batch size, unless another thread has done so."""
        with self._lock:
            if self._batch_size == batch_size:
                self._batch_size = batch_size // 2
                self.oom_backoffs.append(f"{self.device_name} ran out of memory: batch_size halved from {batch_size}")
                log.warning("%s", self.oom_backoffs[-1])

    def _placed(self) -> Any:
        import tensorflow as tf

        return tf.device(self.device_name)
