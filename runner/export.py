"""Carries the model elsewhere: ``python -m runner.export output.dir=DIR [weights=… precision=… frontend.hop_s=…]``.

Writes a TensorFlow SavedModel that needs nothing of this package: ``tf.saved_model.load(DIR)``.  Signatures:

    waveform (also serving_default)   samples float32 [batch, samples] → embeddings float32 [batch, examples, 128]
    clip                              samples float32 [samples] → embeddings float32 [examples, 128]
    examples                          log_mel float32 [n, 96, 64] → embeddings float32 [n, 128]

Samples are mono 16 kHz in -1..1; what is too short for one example is zero-padded to one, and the tail after the last
whole example is dropped.  An example with NaN, infinity or samples of another scale (beyond 1000) has an embedding of
NaN, as an empty clip has, not an error: a batch may be of many callers, none of whom another one's samples should fail.
``metadata.json`` in the folder, and the function ``metadata()`` of the loaded model, say which weights these are.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from runner.config import RunConfig
from runner.errors import ConfigError, ParityError, RunnerError
from runner.files import commit_folder, write_atomic
from runner.printable import printable
from runner.stores import is_url

METADATA = "metadata.json"
_USAGE = """\
usage: python -m runner.export output.dir=DIR [weights=audioset|file|random ...] [precision=...] [frontend.hop_s=...]

Writes a TensorFlow SavedModel (tf.saved_model.load) with the signatures waveform [batch, samples], clip [samples] and
examples [n, 96, 64], and metadata.json. The keys are those of python -m runner; the session that it is
made of passes the parity gate first.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the model; exit status 1 if that can't be done."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or {"-h", "--help"} & set(given):
        print(_USAGE)
        return 0 if given else 1
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from runner.compose import compose_config, one_message

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        folder = export(compose_config(given))
    except (RunnerError, HydraException, OmegaConfBaseException) as error:
        print(f"error: {printable(one_message(error))}", file=sys.stderr)
        return 1
    print(f"SavedModel in {folder}")
    print(f'  model = tf.saved_model.load("{folder}")')
    print('  embeddings = model.signatures["clip"](samples)["embeddings"]  # float32 [samples] at 16 kHz → [n, 128]')
    return 0


def export(config: RunConfig) -> Path:
    """Write the SavedModel that ``config`` describes to ``output.dir``.

    Returns:
        The folder.

    Raises:
        ConfigError: no folder is given, or it holds something already.
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
    from runner.summary import random_weights_banner
    from runner.weights import resolve_weights

    models = Path(config.paths.models).expanduser().resolve()
    chosen = resolve_weights(config.weights, models, is_demo=False)
    if chosen.meaningless:
        print(random_weights_banner(chosen), file=sys.stderr)

    import tensorflow as tf

    from runner.build import DeviceRequest, build_session, load_weights, parity_answers, place
    from runner.cold_start import CACHE
    from runner.gate import take_through_gate

    request = DeviceRequest(config.device.name, config.device.index, config.device.strict, config.precision.name)
    placement = place(request, config.memory)
    loaded = load_weights(chosen)
    answers = parity_answers(loaded, models / CACHE, placement.precision.effective)
    session = build_session(placement, loaded, conv="direct")
    result: dict[str, Any] = {"metrics": {}}
    missed = take_through_gate([session], answers, config.parity, result=result)
    if missed and config.parity.action == "fail":
        raise ParityError(missed)
    about = _about(config, session.metadata.weights, placement.precision.effective, result)
    module, signatures = _module(session.weights, placement.precision.compute_dtype, config.frontend.hop_s, about)
    unfinished = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    tf.saved_model.save(module, str(unfinished), signatures=signatures)
    write_atomic(unfinished / METADATA, about)
    if folder.exists():
        folder.rmdir()
    commit_folder(unfinished, folder)
    return folder


def _about(config: RunConfig, weights: Any, precision: str, result: dict[str, Any]) -> str:
    from runner.hardware import versions
    from runner.vggish.constants import EMBEDDING_SIZE, SAMPLE_RATE

    about = {
        "model": "VGGish",
        "sample_rate": SAMPLE_RATE,
        "embedding_size": EMBEDDING_SIZE,
        "hop_s": config.frontend.hop_s,
        "short_clips": "pad",
        "tail": "drop",
        "precision": precision,
        "weights": {key: weights[key] for key in ("source", "checksum", "seed", "meaningless")},
        "parity": {"passed": result["parity"]["passed"], **result["metrics"]},
        "versions": versions(),
    }
    return json.dumps(about, indent=2)


def _module(weights: Any, compute_dtype: str, hop_s: float, about: str) -> tuple[Any, dict[str, Any]]:
    """The module to save, and its signatures."""
    import tensorflow as tf

    from runner.framing import hop_samples
    from runner.vggish import frontend, network
    from runner.vggish.constants import EMBEDDING_SIZE, EXAMPLE_FRAMES, EXAMPLE_SAMPLES, MEL_BANDS
    from runner.vggish.session import FEWEST_ON_CPU

    dtype = tf.dtypes.as_dtype(compute_dtype)
    hop = hop_samples(hop_s)
    module = tf.Module()
    module.weights = dict(weights)

    def embed(log_mel: Any, sane: Any) -> Any:
        count = tf.shape(log_mel)[0]
        fill = tf.maximum(FEWEST_ON_CPU - count, 0)
        enough, sane = tf.pad(log_mel, [[0, fill], [0, 0], [0, 0]]), tf.pad(sane, [[0, fill]])
        return network.embed(module.weights, enough, dtype, sane)[:count]

    def waveform(samples: Any) -> dict[str, Any]:
        short = tf.maximum(EXAMPLE_SAMPLES - tf.shape(samples)[1], 0)
        framed = tf.signal.frame(tf.pad(samples, [[0, 0], [0, short]]), EXAMPLE_SAMPLES, hop)
        count, windows = tf.shape(framed)[1], tf.reshape(framed, [-1, EXAMPLE_SAMPLES])
        log_mel = frontend.log_mel(windows)
        sane = frontend.are_samples(windows) & frontend.are_log_mel(log_mel) & (tf.shape(samples)[1] > 0)
        embeddings = embed(log_mel, sane)
        return {"embeddings": tf.reshape(embeddings, [-1, count, EMBEDDING_SIZE])}

    def clip(samples: Any) -> dict[str, Any]:
        return {"embeddings": waveform(samples[tf.newaxis])["embeddings"][0]}

    def examples(log_mel: Any) -> dict[str, Any]:
        return {"embeddings": embed(log_mel, frontend.are_log_mel(log_mel))}

    def program(function: Callable[..., Any], shape: list[int | None], name: str) -> Any:
        return tf.function(function, input_signature=[tf.TensorSpec(shape, tf.float32, name=name)], autograph=False)

    module.waveform = program(waveform, [None, None], "samples")
    module.clip = program(clip, [None], "samples")
    module.examples = program(examples, [None, EXAMPLE_FRAMES, MEL_BANDS], "log_mel")
    module.metadata = tf.function(lambda: tf.constant(about), input_signature=[], autograph=False)
    signatures = {"waveform": module.waveform, "clip": module.clip, "examples": module.examples}
    return module, {"serving_default": module.waveform, **signatures}


if __name__ == "__main__":
    sys.exit(main())
