"""YAMNet's specification."""

from __future__ import annotations

from runner.core.model_spec import ModelSpec, Output
from runner.vggish.constants import EXAMPLE_SAMPLES, SAMPLE_RATE
from runner.yamnet.constants import CLASSES, EMBEDDING_SIZE, HOP_SAMPLES


def yamnet_spec(classes: tuple[str, ...] = ()) -> ModelSpec:
    """Return YAMNet's specification.

    Each window's log-mel begins at its own first sample, so a hop may be any number of samples.  The release pads the
    tail whenever a sample is left that no window has: a frame is one sample.

    Args:
        classes: names of the 521 classes (``class_map.read_classes``); none before they are read.
    """
    return ModelSpec(
        name="yamnet",
        sample_rate=SAMPLE_RATE,
        window_samples=EXAMPLE_SAMPLES,
        hop_samples=HOP_SAMPLES,
        outputs=(Output("embedding", EMBEDDING_SIZE), Output("scores", CLASSES, classes)),
        frame_samples=1,
        frame_hop=1,
        precisions=("float32", "tf32", "bfloat16", "float16"),
        title="YAMNet",
        license="Apache-2.0",
        citation="Plakal and Ellis, YAMNet, https://github.com/tensorflow/models/tree/master/research/audioset/yamnet",
    )


YAMNET = yamnet_spec()
"""The released network, whose classes are named in a file of the release."""
