"""VGGish's specification."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from runner.core.model_spec import ModelSpec, Output
from runner.vggish.constants import (
    EMBEDDING_SIZE,
    EXAMPLE_HOP_S,
    EXAMPLE_SAMPLES,
    FLOP_AN_EXAMPLE,
    SAMPLE_RATE,
    STFT_HOP,
    STFT_WINDOW,
)

LAYER_WIDTHS: Mapping[str, int] = {"embedding": EMBEDDING_SIZE, "fc2": 4096, "fc1": 4096, "pool4": 12288}
"""Values of each layer that a run can write; fc1 and fc2 are the hidden dense layers (``fc1/fc1_1``, ``fc1/fc1_2``)
after their ReLU, pool4 the flattened convolutions."""

VGGISH = ModelSpec(
    name="vggish",
    sample_rate=SAMPLE_RATE,
    window_samples=EXAMPLE_SAMPLES,
    hop_samples=round(EXAMPLE_HOP_S * SAMPLE_RATE),
    outputs=(Output("embedding", EMBEDDING_SIZE),),
    frame_samples=STFT_WINDOW,
    frame_hop=STFT_HOP,
    precisions=("float32", "tf32", "bfloat16", "float16"),
    has_pca=True,
    flop=FLOP_AN_EXAMPLE,
    title="VGGish",
    license="Apache-2.0",
    citation="Hershey et al., CNN Architectures for Large-Scale Audio Classification, ICASSP 2017",
)
"""The released network, whose output is that of its last dense layer."""


def vggish_spec(layer: str) -> ModelSpec:
    """Return the specification of VGGish up to a layer of ``LAYER_WIDTHS``."""
    if layer == "embedding":
        return VGGISH
    return replace(VGGISH, outputs=(Output(layer, LAYER_WIDTHS[layer]),), has_pca=False)
