"""VGGish's constants, in one place (source: the AudioSet VGGish release, ``vggish_params.py``)."""

from __future__ import annotations

SAMPLE_RATE = 16_000
"""Hz; every waveform is mono at this rate before the log-mel."""

STFT_WINDOW = 400
"""Samples of the periodic Hann window (25 ms)."""

STFT_HOP = 160
"""Samples between frames (10 ms)."""

FFT_LENGTH = 512

MEL_BANDS = 64

MEL_MIN_HZ = 125.0

MEL_MAX_HZ = 7500.0

LOG_OFFSET = 0.01
"""log-mel = ln(mel + LOG_OFFSET)."""

LARGEST_LOG_MEL = 100.0
"""No float32 has so large a logarithm."""

EXAMPLE_FRAMES = 96
"""Frames of one example (0.96 s)."""

EXAMPLE_SAMPLES = STFT_WINDOW + (EXAMPLE_FRAMES - 1) * STFT_HOP
"""Samples that one example's frames cover: 15,600."""

EXAMPLE_HOP_S = 0.96

FLOP_AN_EXAMPLE = 1.728e9
"""Multiplications and additions of the network's convolutions and dense layers."""

EMBEDDING_SIZE = 128

VARIABLE_SHAPES: dict[str, tuple[int, ...]] = {
    "vggish/conv1/weights": (3, 3, 1, 64),
    "vggish/conv1/biases": (64,),
    "vggish/conv2/weights": (3, 3, 64, 128),
    "vggish/conv2/biases": (128,),
    "vggish/conv3/conv3_1/weights": (3, 3, 128, 256),
    "vggish/conv3/conv3_1/biases": (256,),
    "vggish/conv3/conv3_2/weights": (3, 3, 256, 256),
    "vggish/conv3/conv3_2/biases": (256,),
    "vggish/conv4/conv4_1/weights": (3, 3, 256, 512),
    "vggish/conv4/conv4_1/biases": (512,),
    "vggish/conv4/conv4_2/weights": (3, 3, 512, 512),
    "vggish/conv4/conv4_2/biases": (512,),
    "vggish/fc1/fc1_1/weights": (12288, 4096),
    "vggish/fc1/fc1_1/biases": (4096,),
    "vggish/fc1/fc1_2/weights": (4096, 4096),
    "vggish/fc1/fc1_2/biases": (4096,),
    "vggish/fc2/weights": (4096, 128),
    "vggish/fc2/biases": (128,),
}
"""Variables of the checkpoint and their shapes, in network order: 72,141,184 parameters."""

PCA_EIGEN_VECTORS = "pca_eigen_vectors"

PCA_MEANS = "pca_means"
"""Names in ``vggish_pca_params.npz``."""

QUANTIZE_MIN = -2.0

QUANTIZE_MAX = 2.0
"""The range that 8-bit quantization maps to 0..255."""
