"""Exports the model, frontend included, as a SavedModel."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.config.schema import FrontendConfig
from runner.core.errors import ConfigError, ParityError
from runner.core.files import commit_folder, write_atomic
from runner.core.paths import is_url
from runner.inference.tensorflow_import import import_tensorflow, without_library_notes
from runner.vggish.spec import VGGISH

if TYPE_CHECKING:
    from runner.config.schema import RunConfig
    from runner.inference.gate import GateResult
    from runner.inference.session import EmbeddingSession

METADATA = "metadata.json"

_EXPORTED = ("hop_s", "short_clips", "tail", "resampler")
"""Keys of ``frontend`` that an exported model applies, or that do nothing to waveforms at 16 kHz."""

Tensors = dict[str, Any]
"""What a signature gives, by name."""


def export(config: RunConfig) -> Path:
    """Write the SavedModel that ``config`` describes to ``output.dir``.

    Returns:
        The folder.

    Raises:
        ConfigError: ``output.dir`` is not set, or not an empty folder; the front end prepares files in its own way; the
            model is another.
        WeightsError: the weights can't be had.
        ParityError: the model's embeddings are not the reference's.
    """
    if config.output.dir is None:
        raise ConfigError("output.dir is not set: say where the SavedModel is to go, as in output.dir=exported")
    if is_url(config.output.dir):
        raise ConfigError(f"output.dir={config.output.dir} is in an object store: export to a folder, and copy it")
    folder = Path(config.output.dir).expanduser().absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"output.dir={folder} is not an empty folder: name another")
    if config.model.spec != VGGISH:
        raise ConfigError(f"model={config.model.name} can't be exported with its outputs: only VGGish's embedding can")
    _check_frontend(config.frontend)
    from runner.models.vggish.model import VGGish
    from runner.weights.selection import WeightsRequest, random_weights_banner

    models = config.paths.models_folder
    model = VGGish(conv="direct")
    chosen = model.choose_weights(WeightsRequest(config.weights, models))
    if chosen.is_random:
        print(random_weights_banner(chosen), file=sys.stderr)

    with without_library_notes():
        import_tensorflow()
    import tensorflow as tf

    from runner.core.layout import CACHE
    from runner.inference.builder import DeviceRequest, build_session, place_on_device
    from runner.inference.gate import run_parity_gate

    request = DeviceRequest(config.device.name, config.device.index, config.device.strict, config.precision.name)
    placement = place_on_device(request, config.memory, model.spec)
    loaded = model.load(chosen)
    checked = config.parity.name != "off"
    answers = model.answers(loaded, models / CACHE, placement.precision.effective) if checked else None
    session = build_session(placement, model, loaded)  # it takes the arrays of the weights
    gate = None
    if answers is not None:
        gate = run_parity_gate([session], answers, config.parity)
        if gate.failure and config.parity.name == "strict":
            raise ParityError(gate.failure)
    metadata = _metadata(config, session, gate)
    module, signatures = _module(session, placement.precision.compute_dtype, config.frontend, metadata)
    unfinished = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    tf.saved_model.save(module, str(unfinished), signatures=signatures)
    write_atomic(unfinished / METADATA, metadata)
    if folder.exists():
        folder.rmdir()
    commit_folder(unfinished, folder)
    return folder


def _check_frontend(frontend: FrontendConfig) -> None:
    """Raise ConfigError for preparation of whole files, which an exported model does not see."""
    for key, default in vars(FrontendConfig()).items():
        value = getattr(frontend, key)
        if value != default and key not in _EXPORTED:
            raise ConfigError(
                f"frontend.{key}={value} is no part of an exported model, which takes mono waveforms at 16 kHz: "
                f"prepare the waveform likewise yourself, and leave it at {default}"
            )


def _metadata(config: RunConfig, session: EmbeddingSession, gate: GateResult | None) -> str:
    """Describe the model: JSON text."""
    from runner.devices.host import versions
    from runner.vggish.constants import EMBEDDING_SIZE, SAMPLE_RATE

    weights = session.metadata.weights
    values = {
        "model": "VGGish",
        "sample_rate": SAMPLE_RATE,
        "embedding_size": EMBEDDING_SIZE,
        "hop_s": config.frontend.hop_s,
        "short_clips": config.frontend.short_clips,
        "tail": config.frontend.tail,
        "precision": session.metadata.precision.effective,
        "weights": {key: getattr(weights, key) for key in ("source", "checksum", "seed", "is_random")},
        "parity": {"passed": gate.report.passed, **gate.metrics} if gate else {"passed": None},
        "versions": versions(),
    }
    return json.dumps(values, indent=2)


def cut(samples: Any, frontend: FrontendConfig) -> Any:
    """The windows of waveforms, as ``runner.audio.framing.WindowCutter`` cuts them, in TensorFlow's operations.

    Args:
        samples: float32 [batch, samples], mono 16 kHz.
        frontend: hop, and what becomes of short clips and of the tail.

    Returns:
        float32 [batch, n, 15600].
    """
    import tensorflow as tf

    from runner.vggish.constants import EXAMPLE_FRAMES, EXAMPLE_SAMPLES, STFT_HOP, STFT_WINDOW
    from runner.vggish.spec import VGGISH

    hop, length = frontend.framing(VGGISH).hop_samples, tf.shape(samples)[1]
    padded = tf.constant(EXAMPLE_SAMPLES if frontend.short_clips == "pad" else 0)
    if frontend.tail == "pad":
        examples = 1 + (length - EXAMPLE_SAMPLES) // hop
        covered = tf.maximum((examples - 1) * (hop // STFT_HOP) + EXAMPLE_FRAMES, examples * (hop // STFT_HOP))
        leaves_a_frame = (length >= EXAMPLE_SAMPLES) & (1 + (length - STFT_WINDOW) // STFT_HOP > covered)
        padded = tf.where(leaves_a_frame, examples * hop + EXAMPLE_SAMPLES, padded)
    return tf.signal.frame(tf.pad(samples, [[0, 0], [0, tf.maximum(padded - length, 0)]]), EXAMPLE_SAMPLES, hop)


def _module(
    session: EmbeddingSession, compute_dtype: str, cutting: FrontendConfig, metadata: str
) -> tuple[Any, Mapping[str, Any]]:
    """The module to save, and its signatures."""
    import tensorflow as tf

    from runner.inference.session import MIN_ROWS_CPU
    from runner.models.vggish.program import VGGishProgram
    from runner.vggish import frontend, network
    from runner.vggish.constants import EMBEDDING_SIZE, EXAMPLE_FRAMES, EXAMPLE_SAMPLES, MEL_BANDS

    dtype = tf.dtypes.as_dtype(compute_dtype)
    vggish = session.program
    assert isinstance(vggish, VGGishProgram)
    module = tf.Module()
    module.weights = dict(session.weights)

    def embed(log_mel: Any, sane: Any) -> Any:
        count = tf.shape(log_mel)[0]
        fill = tf.maximum(MIN_ROWS_CPU - count, 0)
        filled, sane = tf.pad(log_mel, [[0, fill], [0, 0], [0, 0]]), tf.pad(sane, [[0, fill]])
        return network.embed(module.weights, filled, dtype, sane)[:count]

    def waveform(samples: Any) -> Tensors:
        framed = cut(samples, cutting)
        windows = tf.reshape(framed, [-1, EXAMPLE_SAMPLES])
        log_mel = frontend.log_mel(windows)
        sane = frontend.are_samples(windows) & frontend.are_log_mel(log_mel) & (tf.shape(samples)[1] > 0)
        embeddings = embed(log_mel, sane)
        return {"embeddings": tf.reshape(embeddings, [*tf.unstack(tf.shape(framed)[:2]), EMBEDDING_SIZE])}

    def clip(samples: Any) -> Tensors:
        return {"embeddings": waveform(samples[tf.newaxis])["embeddings"][0]}

    def examples(log_mel: Any) -> Tensors:
        return {"embeddings": embed(log_mel, frontend.are_log_mel(log_mel))}

    def program(function: Callable[..., Any], shape: list[int | None], name: str) -> Any:
        return tf.function(function, input_signature=[tf.TensorSpec(shape, tf.float32, name=name)], autograph=False)

    def windows(embed: Callable[[Any], Any]) -> Any:
        return program(lambda rows: {"embeddings": embed(rows)}, [None, EXAMPLE_SAMPLES], "windows")

    module.waveform = program(waveform, [None, None], "samples")
    module.clip = program(clip, [None], "samples")
    module.windows = windows(vggish.as_on_cpu)
    module.windows_gpu = windows(vggish.as_by_xla)
    module.examples = program(examples, [None, EXAMPLE_FRAMES, MEL_BANDS], "log_mel")
    module.metadata = tf.function(lambda: tf.constant(metadata), input_signature=[], autograph=False)
    signatures = {name: getattr(module, name) for name in ("waveform", "clip", "windows", "windows_gpu", "examples")}
    return module, {"serving_default": module.waveform, **signatures}
