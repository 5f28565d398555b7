"""``vggish-runner export output.dir=DIR``: export the model as a TensorFlow SavedModel.

The SavedModel needs nothing of this package: ``tf.saved_model.load(DIR)``.  Signatures:

    waveform (also serving_default)   samples float32 [batch, samples] → embeddings float32 [batch, examples, 128]
    clip                              samples float32 [samples] → embeddings float32 [examples, 128]
    examples                          log_mel float32 [n, 96, 64] → embeddings float32 [n, 128]

Samples are mono 16 kHz in -1..1, cut into examples as a run with the same ``frontend`` cuts them.  An example with NaN,
infinity or samples of another scale (beyond 1000) has an embedding of NaN, as has an empty clip that is padded.  It is
not an error, since a batch may have the clips of many callers, whom one caller's samples should not fail.
``metadata.json`` in the folder, and the function ``metadata()`` of the loaded model, name the weights.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence

from runner.cli import convert
from runner.cli.errors import print_error
from runner.core.errors import RunnerError

_USAGE = """\
usage: python -m runner export output.dir=DIR [weights=audioset|file|random ...] [precision=...] [frontend.tail=pad ...]

Writes a TensorFlow SavedModel (tf.saved_model.load) with the signatures waveform [batch, samples], clip [samples] and
examples [n, 96, 64], and metadata.json. The keys are those of python -m runner; the model passes the parity gate
first.

       vggish-runner export hoplite|npy|raven|audacity|youtube8m RUN FOLDER

Writes the embeddings of a run in the layout of another program: vggish-runner export hoplite --help
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Export the model, or a run's embeddings; return exit status 1 if that fails."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    if argv and argv[0] in convert.FORMATS:
        return convert.main(argv)
    if not argv or {"-h", "--help"} & set(argv):
        print(_USAGE)
        return 0 if argv else 1
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from runner.config.composition import compose_config, format_hydra_error
    from runner.inference.saved_model import export

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        folder = export(compose_config(argv))
    except (RunnerError, HydraException, OmegaConfBaseException) as error:
        print_error(format_hydra_error(error))
        return 1
    print(f"SavedModel in {folder}")
    print(f'  model = tf.saved_model.load("{folder}")')
    print('  embeddings = model.signatures["clip"](samples)["embeddings"]  # float32 [samples] at 16 kHz → [n, 128]')
    return 0
