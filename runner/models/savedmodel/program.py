"""Loads a SavedModel or Keras file as a function from windows to outputs by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from runner.core.errors import WeightsError
from runner.core.model_spec import Output

if TYPE_CHECKING:
    from runner.config.schema import SavedModelConfig
    from runner.core.model_spec import ModelSpec

_SERVING = "serving_default"

_PROBED_ROWS = 2


def load_function(path: str, signature: str | None, samples: int, device: str = "cpu") -> LoadedFunction:
    """Load a model onto the device in whose scope this is called.

    One that takes a single waveform at a time is called window by window.  Of a signature that has another form for the
    kind of device, as ``windows_gpu`` for ``windows`` in our own exports, that form is taken.

    Args:
        path: a SavedModel's folder, or a Keras file.
        signature: a signature, or the name of a function of the object; None: ``serving_default``, else the object.
        samples: of a window.
        device: cpu, gpu or metal.

    Raises:
        WeightsError: it is no such file, lacks the signature, needs operations that TensorFlow does not have here, or
            takes no waveform.
    """
    import tensorflow as tf

    try:
        is_keras = Path(path).suffix in (".keras", ".h5")
        loaded = tf.keras.models.load_model(path, compile=False) if is_keras else tf.saved_model.load(path)
    except Exception as error:
        if "Op type not registered" in str(error):
            missing = str(error).split("'")[1::2][:1]
            raise WeightsError(
                f"{path} needs the custom operation {', '.join(missing)}, which TensorFlow does not have: such models "
                "can't be run here"
            ) from error
        first = (str(error).splitlines() or [""])[0][:200]
        raise WeightsError(f"{path} can't be loaded ({type(error).__name__}: {first})") from error
    function = loaded if is_keras else _function_of(loaded, path, signature, device)
    shape = _input_shape(function, is_keras=is_keras, samples=samples)
    if shape is None:
        raise WeightsError(f"{path} takes no waveform: it needs one input [batch, {samples}] or [{samples}] of float32")
    return LoadedFunction(loaded, function, shape, samples)


class LoadedFunction:
    """A loaded model as a function from float32 windows [n, samples] to a tensor by output name.

    It holds the model, whose variables would be freed otherwise.

    Attributes:
        is_batched: whether the model takes several windows at a time.
    """

    def __init__(self, loaded: Any, function: Any, shape: tuple[int | None, ...], samples: int) -> None:
        self._loaded, self._function, self._shape, self._samples = loaded, function, shape, samples
        self._names = _keywords(function)
        self.is_batched = len(shape) > 1 and shape[0] is None
        if not self.is_batched:
            self._one = [samples] if len(shape) == 1 else [1, *self._tail]
            self._singles = [name for name, value in self._probe().items() if value.dtype.is_floating]

    def _probe(self) -> Mapping[str, Any]:
        import tensorflow as tf

        return self._call(tf.zeros(self._one))

    def __call__(self, windows: Any) -> Mapping[str, Any]:
        import tensorflow as tf

        if self.is_batched:
            return self._call(tf.reshape(windows, [-1, *self._tail]))

        def call(window: Any) -> Mapping[str, Any]:
            outputs = self._call(tf.reshape(window, self._one))
            return {name: tf.cast(outputs[name], tf.float32) for name in self._singles}

        types = {name: tf.TensorSpec(None, tf.float32) for name in self._singles}
        return dict(tf.map_fn(call, windows, fn_output_signature=types))

    @property
    def _tail(self) -> list[int]:
        """Shape of a window in a batch: Keras models may have a channel of one."""
        return [self._samples, *[1] * (len(self._shape) - 2)]

    def _call(self, waveform: Any) -> Mapping[str, Any]:
        found = self._function(**{self._names[0]: waveform}) if self._names else self._function(waveform)
        return _by_name(found)


def _function_of(loaded: Any, path: str, signature: str | None, device: str) -> Any:
    signatures = dict(getattr(loaded, "signatures", {}))
    name = signature or _SERVING
    if name in signatures:
        return signatures.get(f"{name}_{device}", signatures[name])
    if signature is None and callable(loaded):
        return loaded.__call__
    if signature is not None and callable(function := getattr(loaded, signature, None)):
        return function
    known = [*signatures, *(key for key in dir(loaded) if _is_function(loaded, key))]
    raise WeightsError(
        f"{path} has no signature {name}: use model.signature={' or '.join(known) or 'NAME'}"
        if known
        else f"{path} has no signature: save it with one"
    )


def _is_function(loaded: Any, name: str) -> bool:
    return not name.startswith("_") and hasattr(getattr(loaded, name, None), "concrete_functions")


def _input_shape(function: Any, *, is_keras: bool, samples: int) -> tuple[int | None, ...] | None:
    """Return the shape of the one input that takes windows of ``samples``; None where there is no such."""
    if is_keras:
        shapes = [tuple(function.input_shape)] if isinstance(function.input_shape, tuple) else []
    elif hasattr(function, "concrete_functions"):
        shapes = [shape for concrete in function.concrete_functions for shape in _shapes_of(concrete)]
    else:
        shapes = _shapes_of(function)
    for shape in shapes:
        tail = shape[1:] if len(shape) > 1 else shape
        if tail and tail[0] in (None, samples) and all(size == 1 for size in tail[1:]):
            return shape
    return None


def _shapes_of(concrete: Any) -> list[tuple[int | None, ...]]:
    """Return the shape of a concrete function's only tensor; none where it has several without defaults."""
    import tensorflow as tf

    arguments, keywords = concrete.structured_input_signature
    tensors = [
        spec for spec in (*arguments, *keywords.values()) if isinstance(spec, tf.TensorSpec) and spec.dtype.is_floating
    ]
    return [tuple(tensors[0].shape.as_list())] if len(tensors) == 1 and tensors[0].shape.rank else []


def _keywords(function: Any) -> list[str]:
    """Return the name of a signature's input, which it takes by keyword; none for other functions."""
    return list(function.structured_input_signature[1]) if hasattr(function, "structured_input_signature") else []


def _by_name(found: Any) -> dict[str, Any]:
    if isinstance(found, Mapping):
        return dict(found)
    if isinstance(found, tuple | list):
        return {f"output_{number}": value for number, value in enumerate(found)}
    return {"embedding": found}


def load_and_probe(path: str, config: SavedModelConfig, spec: ModelSpec) -> tuple[LoadedFunction, list[Output]]:
    """Load a model on the CPU; return it and its outputs.

    Raises:
        WeightsError: as ``load_function`` and ``probe_outputs`` do.
    """
    import tensorflow as tf

    with tf.device("/CPU:0"):
        function = load_function(path, config.signature, spec.window_samples)
        return function, probe_outputs(function, spec, tuple(config.outputs))


def probe_outputs(function: LoadedFunction, spec: ModelSpec, wanted: tuple[str, ...]) -> list[Output]:
    """Return the outputs that are one vector a window, by running the function on silence.

    Args:
        function: from ``load_function``.
        spec: of its windows.
        wanted: names of those to return, in this order; empty: all, those named as embeddings first.

    Raises:
        WeightsError: it fails, lacks an output, or has none that is one vector a window.
    """
    import tensorflow as tf

    try:
        found = function(tf.zeros([_PROBED_ROWS, spec.window_samples]))
    except Exception as error:
        first = (str(error).splitlines() or [""])[0][:300]
        raise WeightsError(
            f"the model fails on windows of {spec.window_samples} samples ({type(error).__name__}: {first}): see its "
            "documentation for model.sample_rate and model.window_s"
        ) from error
    widths: dict[str, int] = {}
    for name in sorted(found, key=lambda name: ("embedding" not in name, name)):
        value = found[name]
        shape = tuple(value.shape)
        rows = shape[0] if shape else 0
        if value.dtype.is_floating and rows == _PROBED_ROWS and np.prod(shape[1:-1]) == 1 and len(shape) > 1:
            widths[name] = int(shape[-1])
    if missing := [name for name in wanted if name not in widths]:
        reason = "is not one vector a window" if missing[0] in found else "is no output of the model"
        raise WeightsError(f"model.outputs: {missing[0]} {reason}: use {', '.join(widths) or 'another model'}")
    if not widths:
        shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in found.items())
        raise WeightsError(
            f"no output of the model is one vector a window (for {_PROBED_ROWS} windows: {shapes}): set model.window_s "
            "to the length of one of its own windows"
        )
    return [Output(name, widths[name]) for name in wanted or widths]
