"""The program that a device runs: windows of waveform to rows of outputs, in TensorFlow."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from runner.contract.result import Effect
from runner.core.samples import INT16_SCALE, LARGEST_SAMPLE
from runner.devices.detection import DeviceType

if TYPE_CHECKING:
    from runner.contract.result import Decision
    from runner.core.model_spec import ModelSpec
    from runner.models.base import Target

Array = NDArray[np.float32]

_XLA = Effect("xla", "one program on the GPU")

_NO_XLA = Effect("graph", "XLA is slower than TensorFlow's own kernels on a CPU, and absent on Metal")


class Program(ABC):
    """A model on one device: a ``tf.function`` for each kind of input, compiled by XLA on CUDA.

    Inputs are windows [n, ``spec.window_samples``], ``float32`` in -1..1 and, where the model takes them, ``int16``;
    each gives float32 [n, ``spec.width``].  A row that holds NaN, infinity or numbers of another scale gives NaN.

    Args:
        spec: the model's.
        target: the device; TensorFlow must already be told which devices it may see.
        algorithm: between several that compute the same; None where there is one.

    Attributes:
        spec: the model's, with all outputs.
        device_type: kind of device.
        device_name: TensorFlow's name of the device.
        weights: variables by name, in the program's precision; empty where the program has none of its own.
        compiler: the maker of the kernels (xla or graph), and why.
        algorithm: as given.
    """

    def __init__(self, spec: ModelSpec, target: Target, algorithm: Decision | None = None) -> None:
        import tensorflow as tf

        tf.config.experimental.enable_tensor_float_32_execution(target.precision == "tf32")
        self.spec = spec
        self.device_type, self.device_name = target.device, target.name
        self.algorithm = algorithm
        self.compiler = _XLA if target.device is DeviceType.GPU else _NO_XLA
        self.weights: Mapping[str, Any] = {}
        self._functions: dict[str, Any] = {}
        self._lock = threading.Lock()

    @property
    def is_compiled_by_xla(self) -> bool:
        """Whether XLA compiles the functions: once for each shape."""
        return self.compiler.effective == "xla"

    @property
    def row_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of one row of each kind of input."""
        window = (self.spec.window_samples,)
        return {"float32": window, "int16": window} if self.spec.takes_int16 else {"float32": window}

    def function(self, kind: str) -> Any:
        """Return the function for a kind of input, from any thread; it is compiled when first called."""
        import tensorflow as tf

        with self._lock:
            if kind not in self._functions:
                rows = tf.TensorSpec([None, *self.row_shapes[kind]], tf.int16 if kind == "int16" else tf.float32)
                function = tf.function(
                    self.computation(kind),
                    input_signature=[rows],
                    jit_compile=self.is_compiled_by_xla or None,
                    autograph=False,
                )
                with tf.device(self.device_name):
                    self._functions[kind] = function.get_concrete_function()  # whose calls take half as long in Python
            return self._functions[kind]

    def leave_xla(self, reason: str) -> None:
        """Use TensorFlow's own kernels from now on, because of ``reason``."""
        with self._lock:
            self.compiler = Effect("graph", reason)
            self._functions.clear()

    def log_mel(self, windows: Any) -> Any | None:
        """Compute the log-mel of windows, a tensor [n, frames, bands], for the gate; None where there is no such."""
        return None

    def embed(self, windows: Array) -> Array:
        """Compute the rows of windows, float32 [n, ``spec.window_samples``] to float32 [n, ``spec.width``]."""
        import tensorflow as tf

        with tf.device(self.device_name):
            return np.asarray(self.function("float32")(tf.constant(windows)).numpy())

    @abstractmethod
    def computation(self, kind: str) -> Callable[[Any], Any]:
        """Return the function of tensors for a kind of input, that ``function`` traces."""


class FunctionProgram(Program):
    """The program of a model that is a function from windows to outputs by name.

    Args:
        spec: the model's.
        target: the device.
        build: makes the function, within the device's scope.
    """

    def __init__(
        self, spec: ModelSpec, target: Target, build: Callable[[], Callable[[Any], Mapping[str, Any]]]
    ) -> None:
        import tensorflow as tf

        super().__init__(spec, target)
        with tf.device(self.device_name):
            self._outputs_of = build()

    def computation(self, kind: str) -> Callable[[Any], Any]:
        """Return the function of tensors for a kind of input."""
        return self._embed

    def _embed(self, windows: Any) -> Any:
        import tensorflow as tf

        if windows.dtype == tf.int16:
            windows = tf.cast(windows, tf.float32) * INT16_SCALE
        are_samples = tf.reduce_all(tf.abs(windows) <= LARGEST_SAMPLE, axis=1, keepdims=True)  # NaN is not
        outputs = self._outputs_of(tf.where(are_samples, windows, 0.0))
        columns = [
            tf.reshape(tf.cast(outputs[output.name], tf.float32), [-1, output.width]) for output in self.spec.outputs
        ]
        rows = tf.concat(columns, axis=1) if len(columns) > 1 else columns[0]
        return tf.where(are_samples, rows, float("nan"))
