"""VGGish's specification."""

from __future__ import annotations

from runner.core.model_spec import ModelSpec, Output
from runner.vggish.constants import EMBEDDING_SIZE, EXAMPLE_HOP_S, EXAMPLE_SAMPLES, SAMPLE_RATE, STFT_HOP, STFT_WINDOW

VGGISH = ModelSpec(
    name="vggish",
    sample_rate=SAMPLE_RATE,
    window_samples=EXAMPLE_SAMPLES,
    hop_samples=round(EXAMPLE_HOP_S * SAMPLE_RATE),
    outputs=(Output("embedding", EMBEDDING_SIZE),),
    frame_samples=STFT_WINDOW,
    frame_hop=STFT_HOP,
    license="Apache-2.0",
    citation="Hershey et al., CNN Architectures for Large-Scale Audio Classification, ICASSP 2017",
)
"""The released network, whose output is that of its last dense layer."""
