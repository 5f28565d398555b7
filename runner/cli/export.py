"""Carries the model elsewhere: ``python -m runner export output.dir=DIR [weights=… precision=… frontend.hop_s=…]``.

Writes a TensorFlow SavedModel that needs nothing of this package: ``tf.saved_model.load(DIR)``.  Signatures:

    waveform (also serving_default)   samples float32 [batch, samples] → embeddings float32 [batch, examples, 128]
    clip                              samples float32 [samples] → embeddings float32 [examples, 128]
    examples                          log_mel float32 [n, 96, 64] → embeddings float32 [n, 128]

Samples are mono 16 kHz in -1..1, cut into examples as a run of the same configuration cuts them:
``frontend.short_clips`` says whether what is too short for one example is zero-padded to one or has none,
``frontend.tail`` whether what is left after the last whole example has one more.  An example with NaN, infinity or
samples of another scale (beyond 1000) has an embedding of NaN, as an empty clip has that is padded, not an error: a
batch may be of many callers, none of whom another one's samples should fail.  ``metadata.json`` in the folder, and the
function ``metadata()`` of the loaded model, say which weights these are.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence

from runner.cli import convert
from runner.core.errors import RunnerError
from runner.core.printable import printable

_USAGE = """\
usage: python -m runner export output.dir=DIR [weights=audioset|file|random ...] [precision=...] [frontend.tail=pad ...]

Writes a TensorFlow SavedModel (tf.saved_model.load) with the signatures waveform [batch, samples], clip [samples] and
examples [n, 96, 64], and metadata.json. The keys are those of python -m runner; the session that it is
made of passes the parity gate first.

       vggish-runner export hoplite|npy|raven|audacity|youtube8m RUN FOLDER

Writes the embeddings of a run in the layout of another program: vggish-runner export hoplite --help
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the model; exit status 1 if that can't be done."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given and given[0] in convert.FORMATS:
        return convert.main(given)
    if not given or {"-h", "--help"} & set(given):
        print(_USAGE)
        return 0 if given else 1
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from runner.config.composition import compose_config, format_hydra_error
    from runner.inference.saved_model import export

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        folder = export(compose_config(given))
    except (RunnerError, HydraException, OmegaConfBaseException) as error:
        print(f"error: {printable(format_hydra_error(error))}", file=sys.stderr)
        return 1
    print(f"SavedModel in {folder}")
    print(f'  model = tf.saved_model.load("{folder}")')
    print('  embeddings = model.signatures["clip"](samples)["embeddings"]  # float32 [samples] at 16 kHz → [n, 128]')
    return 0
